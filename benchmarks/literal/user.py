"""USER literally: key encoders that follow weight by weight, queues that are cloned. B pairs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import BERT_256, BERT_TINY, RANDOM_BERT, REGION_WORDS, Case
from benchmarks.literal.plain import Choose, evaluate_regions, follow, lengths_of
from benchmarks.literal.vse import image_vector, l2norm, text_vector
from itr.batch import Batch
from itr.data.records import Split
from itr.data.text.token_table import TokenTable
from itr.models.user import USER, Enhancement, SelfGuide
from itr.models.vse import VSEImageEncoder

MU, GAMMA = 90.0, 0.5


def enhance(part: Enhancement, x: Tensor) -> Tensor:
    """Self-guided enhancement of regions [B, R, W]."""
    guide = part.guides["own"]
    assert isinstance(guide, SelfGuide)
    local = guide.local_dropout(torch.tanh(guide.local_norm(guide.local(x))))
    whole = guide.whole_dropout(torch.tanh(guide.whole_norm(guide.whole(x.mean(dim=1)))))
    common = local * whole.unsqueeze(1).repeat(1, x.shape[1], 1)
    share = torch.softmax(guide.common(common).squeeze(2), dim=1)
    g = l2norm((share.unsqueeze(2) * x).sum(dim=1))
    likeness = (g.unsqueeze(1).repeat(1, x.shape[1], 1) * x).sum(dim=2)
    attention = l2norm(torch.softmax(part.scale * likeness, dim=1))
    return x + attention.unsqueeze(2) * g.unsqueeze(1).repeat(1, x.shape[1], 1)


def images_of(encoder: VSEImageEncoder, regions: Tensor, lengths: Tensor) -> Tensor:
    """[B, R, W] -> [B, D]."""
    assert isinstance(encoder.enhance, Enhancement)
    return image_vector(encoder, enhance(encoder.enhance, regions), lengths)


def batch_loss(scores: Tensor) -> Tensor:
    """UTO in the batch."""
    count = len(scores)
    positive = torch.diag_embed(torch.diagonal(scores))
    z = torch.exp(MU * (scores * (1.0 - torch.eye(count)) - GAMMA))
    there = torch.log(1 + z.sum(dim=0)) / MU
    back = torch.log(1 + z.sum(dim=1)) / MU
    return (there + back - torch.log(1 + F.relu(positive.sum(dim=0)))).sum() / count


def queue_loss(queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
    """UTO of ``queries`` [B, D] against their own keys and a queue [D, K]."""
    positive = torch.einsum("nc,nc->n", queries, keys)
    negative = torch.einsum("nc,ck->nk", queries, queue)
    z = torch.exp(MU * (negative - GAMMA))
    return (torch.log(1 + z.sum(dim=1)) / MU - torch.log(1 + F.relu(positive))).mean()


class Literal:
    """The literal re-writing around ``model``, whose weights it trains."""

    def __init__(self, model: USER):
        self.model = model
        self.image_keys = copy.deepcopy(model.images).requires_grad_(False).train()
        self.text_keys = copy.deepcopy(model.texts).requires_grad_(False).train()
        self.text_keys.bert.eval()
        self.image_queue = model.image_queue.features.t().clone()
        self.text_queue = model.text_queue.features.t().clone()
        self.pointer = torch.zeros(1, dtype=torch.int64)

    def images(self, regions: Tensor, lengths: Tensor) -> Tensor:
        """The image side."""
        return images_of(self.model.images, regions, lengths)

    def texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The caption side."""
        return text_vector(self.model.texts, tokens, lengths)

    def move_keys(self) -> None:
        """The key encoders follow."""
        follow(self.image_keys, self.model.images, self.model.config.momentum)
        follow(self.text_keys, self.model.texts, self.model.config.momentum)

    def forward(self, batch: Batch, choose: Choose) -> dict[str, Tensor]:
        """Terms before their weights; the keys of the batch enter the queues."""
        assert batch.regions is not None and batch.region_mask is not None
        assert batch.tokens is not None and batch.token_mask is not None
        r_lengths, t_lengths = lengths_of(batch.region_mask), lengths_of(batch.token_mask)
        v, u = self.images(batch.regions, r_lengths), self.texts(batch.tokens, t_lengths)
        self.move_keys()
        with torch.no_grad():
            v_keys = images_of(self.image_keys, batch.regions, r_lengths)
            u_keys = text_vector(self.text_keys, batch.tokens, t_lengths)
        return self.losses(v, u, v_keys, u_keys)

    def losses(self, v: Tensor, u: Tensor, v_keys: Tensor, u_keys: Tensor) -> dict[str, Tensor]:
        """Both terms of embeddings [B, D]; the keys enter the queues."""
        there = queue_loss(v, u_keys, self.text_queue.clone().detach())
        back = queue_loss(u, v_keys, self.image_queue.clone().detach())
        first, last = int(self.pointer), int(self.pointer) + len(v)
        self.image_queue[:, first:last] = v_keys.t()
        self.text_queue[:, first:last] = u_keys.t()
        self.pointer[0] = last % self.image_queue.shape[1]
        return {"queue": there + back, "batch": batch_loss(v @ u.t())}

    def evaluate(self, split: Split, tokens: TokenTable) -> dict[str, float]:
        """Recalls of ``split``."""
        return evaluate_regions(self.model, self.images, self.texts, split, tokens)


CASE = Case(
    name="user",
    recipe=("model=user", "data=f30k", *RANDOM_BERT),
    train=BERT_256,
    evaluate=BERT_256,
    no_dropout=("model.enhance_dropout=0", "model.text.dropout=0"),
    words=REGION_WORDS,
    pairs=64,
    images=200,
    region_width=2048,
    tiny=(*BERT_TINY, "model.embed_size=32", "model.queue_size=48"),
)
