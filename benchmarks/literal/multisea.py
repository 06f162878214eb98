"""Multi-SEA's arithmetic written down literally: every row of every pair, its keys and values
projected anew, one draw a time, one query a time.

A second implementation to compare with, in numbers and in time. It takes a model's weights and
nothing else of it. B pairs, L rows, D width, K queue rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import BERT_TINY, Case, bert, sizes
from benchmarks.literal.plain import Choose, metrics, one
from benchmarks.random_data import Words
from itr.batch import Batch
from itr.data.loading.eval_batches import caption_batches, image_batches
from itr.data.records import Split
from itr.data.text.token_table import TokenTable
from itr.models.base import Encoded
from itr.models.multisea import MultiSEA
from itr.nn.agent_attention import Expert, MultiHeadAttention
from itr.nn.gated_feed_forward import GatedFeedForward

HIDDEN = torch.finfo(torch.float32).min


def rms(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm written out."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def split(x: Tensor, heads: int) -> Tensor:
    """[P, L, D] -> [P, H, L, D / H]."""
    return x.view(len(x), x.shape[1], heads, -1).transpose(1, 2)


def softmax_of(part: MultiHeadAttention, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """Probabilities of attention, with their dropout."""
    share = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
    return F.dropout(share, part.attention_dropout, part.training)


def bias_of(mask: Tensor) -> Tensor:
    """What is added to the logits of rows that are not there."""
    return (1.0 - mask.float()) * HIDDEN


def close(part: MultiHeadAttention, x: Tensor, heads: Tensor) -> Tensor:
    """Output projection, residual, norm."""
    mixed = heads.transpose(1, 2).reshape(x.shape)
    return rms(x + part.dropout(part.out(mixed)), part.norm.weight)


def self_attention(part: MultiHeadAttention, x: Tensor, mask: Tensor) -> Tensor:
    """[P, L, D] -> [P, L, D]."""
    q, k, v = (split(f(x), part.heads) for f in (part.query, part.key, part.value))
    return close(part, x, softmax_of(part, q, k, bias_of(mask)[:, None, None, :]) @ v)


def agent_attention(
    part: MultiHeadAttention, agents: int, x: Tensor, mask: Tensor, y: Tensor, y_mask: Tensor
) -> Tensor:
    """``x`` [P, L, D] looks at ``y`` [P, K, D] through ``agents`` rows."""
    q, k, v = part.query(x), part.key(y), part.value(y)
    g = F.interpolate(q.transpose(1, 2), size=agents, mode="linear").transpose(1, 2)
    q, k, v, g = (split(t, part.heads) for t in (q, k, v, g))
    gathered = softmax_of(part, g, k, bias_of(y_mask)[:, None, None, :]) @ v
    return close(part, x, softmax_of(part, q, g, bias_of(mask)[:, None, :, None]) @ gathered)


def feed_forward(part: GatedFeedForward, x: Tensor) -> Tensor:
    """[P, L, D] -> [P, L, D]."""

    def act(t: Tensor) -> Tensor:
        return t * torch.clip(t + 3, 0, 1) / 6

    u, v = act(part.dense1(x)), part.dropout(part.dense2(x))
    return rms(x + part.dropout(part.dense3(u * v)) * act(part.dense4(v)), part.norm.weight)


def stack(
    model: MultiSEA,
    kind: str,
    x: Tensor,
    mask: Tensor,
    y: Tensor | None = None,
    y_mask: Tensor | None = None,
) -> list[Tensor]:
    """The A-Former's input and each layer's output; alone, or fused with ``y``."""
    states = [x]
    for expert in model.aformer.text if kind == "text" else model.aformer.image:
        assert isinstance(expert, Expert)
        x = self_attention(expert.attention, x, mask)
        if y is not None and y_mask is not None:
            x = agent_attention(expert.cross, model.aformer.agents, x, mask, y, y_mask)
        x = feed_forward(expert.feedforward, x)
        states.append(x)
    return states


def encode(model: MultiSEA, kind: str, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Feats, embeds and mask of one modality."""
    if kind == "image":
        feats, embeds = model.images(batch.pixels)
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
    else:
        assert batch.token_mask is not None
        feats, embeds = model.texts(batch.tokens, batch.token_mask)
        mask = batch.token_mask
    states = stack(model, kind, embeds, mask)[-1]
    pooled = torch.tanh(model.aformer.pooler(states[:, 0]))
    a = model.alpha
    return a * pooled + (1 - a) * feats, a * states + (1 - a) * embeds, mask


def contrast(model: MultiSEA, v: Tensor, u: Tensor, ids: Tensor) -> Tensor:
    """The contrastive loss over batch and queue."""
    known = torch.cat([ids.view(1, -1), model.image_queue.ids.view(1, -1)], dim=1)
    same = torch.eq(ids.view(-1, 1), known).float()
    target = same / same.sum(dim=1, keepdim=True)
    costs = []
    for a, b, queue in ((v, u, model.text_queue), (u, v, model.image_queue)):
        keys = torch.cat([b.detach().t(), queue.features.t().clone().detach()], dim=1)
        logits = a @ keys / model.temp
        costs.append(-torch.sum(F.log_softmax(logits, dim=1) * target, dim=1).mean())
    return (costs[0] + costs[1]) / 2


def negatives(
    model: MultiSEA, v: Tensor, u: Tensor, ids: Tensor, choose: Choose
) -> tuple[list[int], list[int]]:
    """An image for each text, then a text for each image: one draw at a time."""
    found: list[list[int]] = []
    same = torch.eq(ids.view(-1, 1), ids.view(1, -1))
    for a, b in ((u, v), (v, u)):
        weights = (a @ b.t() / model.temp).detach().softmax(1).masked_fill(same, 0)
        found.append([one(choose, weights[i]) for i in range(len(ids))])
    return found[0], found[1]


def losses(model: MultiSEA, batch: Batch, choose: Choose) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both terms of one micro-batch, every pair in full, and the feats of both sides."""
    assert batch.image_id is not None
    v, images, image_mask = encode(model, "image", batch)
    u, texts, text_mask = encode(model, "text", batch)
    itc = contrast(model, v, u, batch.image_id)
    chosen = negatives(model, v, u, batch.image_id, choose)
    return itc, matching(model, (images, image_mask), (texts, text_mask), chosen), v, u


def matching(
    model: MultiSEA,
    images: tuple[Tensor, Tensor],
    texts: tuple[Tensor, Tensor],
    chosen: tuple[list[int], list[int]],
) -> Tensor:
    """Cross-entropy of 3B pairs at two depths, both ways; embeds and mask of each side."""
    wrong_image, wrong_text = chosen
    own = list(range(len(wrong_image)))
    rows_t, rows_i = own + wrong_text + own, own + own + wrong_image
    x, x_mask = (torch.stack([t[i] for i in rows_t]) for t in texts)
    y, y_mask = (torch.stack([t[i] for i in rows_i]) for t in images)
    labels = torch.tensor([1] * len(own) + [0] * (2 * len(own))).repeat(2)
    itm = torch.zeros(())
    for states in (
        stack(model, "text", x, x_mask, y, y_mask),
        stack(model, "image", y, y_mask, x, x_mask),
    ):
        first = torch.cat([states[-3][:, 0], states[-1][:, 0]])
        itm = itm + F.cross_entropy(model.itm_head(first), labels) / 2
    return itm


def score_matrix(model: MultiSEA, images: Encoded, texts: Encoded, k: int) -> tuple[Tensor, Tensor]:
    """Both score matrices, [N, C] and [C, N], one query at a time; -100 outside the shortlists."""
    assert images.tokens is not None and texts.tokens is not None and texts.mask is not None
    ones = torch.ones(images.tokens.shape[:2], dtype=torch.bool)
    sides = {"image": (images.tokens, ones), "text": (texts.tokens, texts.mask)}
    similarity = images.pooled @ texts.pooled.t() / model.temp
    found = []
    for asking, other, sims in (("image", "text", similarity), ("text", "image", similarity.t())):
        scores = torch.full_like(sims, -100.0)
        for i in range(len(sims)):
            best, at = sims[i].topk(min(k, sims.shape[1]))
            x, x_mask = (t[i][None].repeat_interleave(len(at), 0) for t in sides[asking])
            y, y_mask = (t[at] for t in sides[other])
            states = stack(model, asking, x, x_mask, y, y_mask)
            scores[i, at] = model.itm_head(states[-1][:, 0])[:, 1] + best
        found.append(scores)
    return found[0], found[1]


class Literal:
    """The literal re-writing around ``model``, whose weights and queues it changes."""

    def __init__(self, model: MultiSEA):
        self.model = model
        self.pointer = torch.zeros(1, dtype=torch.int64)

    def forward(self, batch: Batch, choose: Choose) -> dict[str, Tensor]:
        """Terms before their weights; feats and ids then enter the queues."""
        assert batch.image_id is not None
        itc, itm, v, u = losses(self.model, batch, choose)
        self.enqueue(v.detach(), u.detach(), batch.image_id)
        return {"itc": itc, "itm": itm}

    def enqueue(self, v: Tensor, u: Tensor, ids: Tensor) -> None:
        """What does not fit in before the end is dropped."""
        images, texts = self.model.image_queue, self.model.text_queue
        first = int(self.pointer)
        count = min(len(ids), len(images) - first)
        images.features[first : first + count] = v[:count]
        texts.features[first : first + count] = u[:count]
        images.ids[first : first + count] = ids[:count]
        self.pointer[0] = (first + count) % len(images)

    @torch.no_grad()
    def evaluate(self, split: Split, tokens: TokenTable, k: int) -> dict[str, float]:
        """Recalls of ``split``, the ``k`` best of each query ordered again, one query a time."""
        model = self.model.eval()
        images = [encode(model, "image", b) for b in image_batches(split, model.view, 80)]
        texts = [encode(model, "text", b) for b in caption_batches(split, model.view, tokens, 400)]
        v, u = (
            Encoded(*(torch.cat(parts) for parts in zip(*side, strict=True)))
            for side in (images, texts)
        )
        i2t, t2i = score_matrix(model, v, u, k)
        return metrics(i2t.numpy(), t2i.numpy(), split.text_to_image)


CASE = Case(
    name="multisea",
    recipe=(
        "model=multisea",
        "data=f30k",
        "model.pretrained=false",
        "model.text.tokenizer=roberta-from-captions",
    ),
    train=(
        "model.embed_size=128",
        "model.aformer.heads=4",
        *sizes("model.image", width=128, depth=5, head_width=32),
        *bert(128, 2),
    ),
    evaluate=(
        "model.embed_size=64",
        "model.aformer.heads=4",
        *sizes("model.image", size=64, patch=8, width=64, depth=3, head_width=32),
        "model.image.trained_layers=2",
        *bert(64, 2),
    ),
    no_dropout=(
        "model.text.dropout=0",
        "model.aformer.dropout=0",
        "model.aformer.attention_dropout=0",
    ),
    words=Words(4000, shortest=9, longest=32, pad=1, first=0, last=2),
    pairs=20,
    images=60,
    image_key="image.size",
    rerank_k=16,
    tiny=(
        "model.embed_size=16",
        "model.queue_size=30",
        *sizes("model.aformer", heads=2, depth=2, mlp_ratio=2),
        *sizes("model.image", width=16, depth=2, head_width=8, size=32, patch=8),
        "model.image.trained_layers=1",
        *BERT_TINY,
    ),
)
