"""VSE-infinity literally: a GRU pass for every sample. B samples, N fragments, D width."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.cases import BERT_256, BERT_TINY, RANDOM_BERT, REGION_WORDS, Case
from benchmarks.literal.plain import Choose, evaluate_regions, lengths_of
from itr.batch import Batch
from itr.data.records import Split
from itr.data.text.token_table import TokenTable
from itr.models.vse import VSE, VSEImageEncoder, VSETextEncoder
from itr.nn.gpo import GPO

FAR = -10000.0


def l2norm(x: Tensor, dim: int = -1) -> Tensor:
    """x / (|x| + 1e-8)."""
    return x / (x.pow(2).sum(dim=dim, keepdim=True).sqrt() + 1e-8)


def position_codes(count: int, width: int) -> Tensor:
    """Sine and cosine codes [count, width]."""
    codes = torch.zeros(count, width)
    position = torch.arange(0, count).float().unsqueeze(1)
    divisor = torch.exp(torch.arange(0, width, 2).float() * -(math.log(10000.0) / width))
    codes[:, 0::2] = torch.sin(position * divisor)
    codes[:, 1::2] = torch.cos(position * divisor)
    return codes


def pooling_weights(pool: GPO, lengths: Tensor, mask: Tensor) -> Tensor:
    """[B, N]: the GRU runs over the codes of every sample, packed."""
    longest = int(lengths.max())
    codes = position_codes(longest, pool.codes).unsqueeze(0).repeat(len(lengths), 1, 1)
    packed = pack_padded_sequence(codes, lengths.cpu(), batch_first=True, enforce_sorted=False)
    states, _ = pad_packed_sequence(pool.gru(packed)[0], batch_first=True)
    states = (states[:, :, : pool.hidden] + states[:, :, pool.hidden :]) / 2
    scores = pool.score(states).squeeze(2).masked_fill(~mask, FAR)
    return torch.softmax(scores / 0.1, dim=1)


def gpo(pool: GPO, features: Tensor, lengths: Tensor) -> Tensor:
    """[B, N, D] -> [B, D]."""
    features = features[:, : int(lengths.max())]
    mask = torch.arange(features.shape[1]).unsqueeze(0).repeat(len(lengths), 1)
    mask = mask < lengths.long().unsqueeze(1)
    weights = pooling_weights(pool, lengths, mask)
    hidden = ~mask.unsqueeze(2)
    ordered = features.masked_fill(hidden, FAR).sort(dim=1, descending=True).values
    return (weights.unsqueeze(2) * ordered.masked_fill(hidden, 0.0)).sum(dim=1)


def image_vector(encoder: VSEImageEncoder, regions: Tensor, lengths: Tensor) -> Tensor:
    """[B, R, W] -> [B, D]; lengths travel as float32."""
    return l2norm(
        gpo(encoder.pool, encoder.project(regions) + encoder.mlp(regions), lengths.float())
    )


def text_vector(encoder: VSETextEncoder, tokens: Tensor, lengths: Tensor) -> Tensor:
    """[B, L] -> [B, D]."""
    hidden = encoder.bert(tokens, attention_mask=(tokens != 0).float()).last_hidden_state
    return l2norm(gpo(encoder.pool, encoder.project(hidden), lengths.float()))


def triplet(scores: Tensor, margin: float, hardest: bool) -> Tensor:
    """Hinges of rows and columns of ``scores`` [B, B], added."""
    diagonal = scores.diag().view(len(scores), 1)
    rows = (margin + scores - diagonal.expand_as(scores)).clamp(min=0)
    columns = (margin + scores - diagonal.t().expand_as(scores)).clamp(min=0)
    own = torch.eye(len(scores)) > 0.5
    rows, columns = rows.masked_fill(own, 0), columns.masked_fill(own, 0)
    if hardest:
        rows, columns = rows.max(dim=1).values, columns.max(dim=0).values
    return rows.sum() + columns.sum()


class Literal:
    """The literal re-writing around ``model``, whose weights it trains."""

    def __init__(self, model: VSE):
        self.model = model

    def images(self, regions: Tensor, lengths: Tensor) -> Tensor:
        """The image side."""
        return image_vector(self.model.images, regions, lengths)

    def texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The caption side."""
        return text_vector(self.model.texts, tokens, lengths)

    def forward(self, batch: Batch, choose: Choose) -> dict[str, Tensor]:
        """Terms before their weights."""
        assert batch.regions is not None and batch.region_mask is not None
        assert batch.tokens is not None and batch.token_mask is not None
        v = self.images(batch.regions, lengths_of(batch.region_mask))
        u = self.texts(batch.tokens, lengths_of(batch.token_mask))
        return {"batch": triplet(v @ u.t(), 0.2, hardest=True)}

    def evaluate(self, split: Split, tokens: TokenTable) -> dict[str, float]:
        """Recalls of ``split``."""
        return evaluate_regions(self.model, self.images, self.texts, split, tokens)


CASE = Case(
    name="vse",
    recipe=("model=vse", "data=f30k", *RANDOM_BERT),
    train=BERT_256,
    evaluate=BERT_256,
    no_dropout=("model.text.dropout=0",),
    words=REGION_WORDS,
    pairs=64,
    images=200,
    region_width=2048,
    tiny=(*BERT_TINY, "model.embed_size=32"),
)
