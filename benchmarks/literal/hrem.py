"""HREM literally: six loops over samples, one over captions. B pairs, M fragments, D width."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import BERT_256, BERT_TINY, RANDOM_BERT, REGION_WORDS, Case
from benchmarks.literal.plain import Choose, evaluate_regions, lengths_of, padding_mask
from itr.batch import Batch
from itr.data.records import Split
from itr.data.text.token_table import TokenTable
from itr.models.hrem import HREM, FragmentRelation

Encoded = tuple[Tensor, Tensor, Tensor]  # unit [B, D], raw [B, D], fragments [B, M, D]


def top2_pool(fragments: Tensor, lengths: Tensor) -> Tensor:
    """[B, M, D] -> [B, D], sample by sample."""
    rows = []
    for sample, length in zip(fragments, lengths, strict=True):
        k = min(2, int(length))
        rows.append(sample[: int(length)].topk(k, dim=0).values.mean(dim=0))
    return torch.stack(rows)


def mean_pool(fragments: Tensor, lengths: Tensor) -> Tensor:
    """[B, M, D] -> [B, D], sample by sample."""
    return torch.stack(
        [sample[: int(n)].mean(dim=0) for sample, n in zip(fragments, lengths, strict=True)]
    )


def finish(relation: FragmentRelation, fragments: Tensor, lengths: Tensor) -> Encoded:
    """The fragment-level layer and both poolings."""
    mask = padding_mask(lengths, fragments.shape[1])
    related = relation.layer(fragments, mask[:, None, None, :])
    beta = relation.beta
    raw = beta * top2_pool(fragments, lengths) + (1 - beta) * mean_pool(related, lengths)
    unit = raw / (raw.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-8)
    return unit, raw, fragments


def overlap(
    words: Tensor, lengths: Tensor, regions: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p_t2i [C, I], p_i2t [I, C], q_t2i [C, I, k], q_i2t [I, C, k]: caption by caption, its words
    repeated for every image and normalised again."""
    images = F.normalize(regions, dim=-1)
    p_t2i, p_i2t, q_t2i, q_i2t = [], [], [], []
    for c in range(len(words)):
        length = lengths[c]
        kept = length if length > k else k
        caption = words[c, : int(kept)].unsqueeze(0).repeat(len(regions), 1, 1)
        caption = F.normalize(caption, dim=-1)
        s = F.leaky_relu(torch.bmm(caption, images.transpose(1, 2)), 0.1)  # [I, L, R]
        row = F.normalize(s, dim=1).max(dim=2).values
        column = F.normalize(s, dim=2)[:, : int(length)].max(dim=1).values
        p_t2i.append(row[:, : int(length)].mean(dim=1))
        p_i2t.append(column.mean(dim=1))
        q_t2i.append(row.topk(k, dim=1).values)
        q_i2t.append(column.topk(k, dim=1).values)
    return (
        torch.stack(p_t2i),
        torch.stack(p_i2t, dim=1),
        torch.stack(q_t2i),
        torch.stack(q_i2t, dim=1),
    )


def connections(similarity: Tensor, threshold: float) -> Tensor:
    """[B, B] bool: at least as near as the k-th nearest."""
    k = int(len(similarity) * threshold)
    return similarity >= similarity.sort(dim=1, descending=True).values[:, k - 1 : k]


def nearness(a: Tensor, b: Tensor) -> Tensor:
    """exp(-distance); exact distances, as the comparison needs (the authors' are rounded)."""
    return torch.exp(-torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist"))


def direction(s: Tensor, match: Tensor, cutoff: float, choose: Choose) -> Tensor:
    """Distance-weighted triplets of the rows of ``s`` [B, B]; the sampler's weights are made with
    a graph that nobody walks back."""
    n = 512.0
    d = torch.clamp(torch.sqrt(2 - 2 * s), min=0.5)
    log_weight = (2 - n) * torch.log(d) - ((n - 3) / 2) * torch.log(1 - 0.25 * d * d)
    log_weight[match] = 0.0
    log_weight[torch.isinf(log_weight) | torch.isnan(log_weight)] = 0.0
    weight = torch.exp(log_weight - torch.max(log_weight, dim=1, keepdim=True).values)
    weight = weight * (~match).float() * (d < cutoff).float()
    weight = weight / (weight.sum(dim=1, keepdim=True) + 1e-20)
    anchor, positive = torch.where(match)
    negative = choose(weight[anchor])
    return F.relu(0.2 + s[anchor, negative] - s[anchor, positive]).sum()


class Literal:
    """The literal re-writing around ``model``, whose weights it trains."""

    def __init__(self, model: HREM):
        self.model = model

    def images(self, regions: Tensor, lengths: Tensor) -> Encoded:
        """The image side."""
        encoder = self.model.images
        return finish(encoder.relation, encoder.project(regions) + encoder.mlp(regions), lengths)

    def texts(self, tokens: Tensor, lengths: Tensor) -> Encoded:
        """The caption side."""
        encoder = self.model.texts
        hidden = encoder.bert(tokens, attention_mask=(tokens != 0).float()).last_hidden_state
        return finish(encoder.relation, encoder.project(hidden), lengths)

    def forward(self, batch: Batch, choose: Choose) -> dict[str, Tensor]:
        """Terms before their weights."""
        assert batch.regions is not None and batch.region_mask is not None
        assert batch.tokens is not None and batch.token_mask is not None
        assert batch.image_id is not None
        lengths = lengths_of(batch.token_mask)
        images = self.images(batch.regions, lengths_of(batch.region_mask))
        return self.criterion(
            images, self.texts(batch.tokens, lengths), lengths, batch.image_id, choose
        )

    def criterion(
        self, images: Encoded, texts: Encoded, lengths: Tensor, ids: Tensor, choose: Choose
    ) -> dict[str, Tensor]:
        """All terms of encoded sides."""
        cutoff = self.model.config.cutoff
        (v, _, regions), (u, _, words) = images, texts
        match = ids.unsqueeze(0) == ids.unsqueeze(1)

        def loss(a: Tensor, b: Tensor) -> Tensor:
            s = a.mm(b.t())
            return direction(s, match, cutoff, choose) + direction(s.t(), match, cutoff, choose)

        terms = {"base": loss(v, u)}
        bias, t2i, i2t = self.bias(v, u, regions.detach(), words.detach(), lengths)
        x = torch.cat([v, u]).unsqueeze(0)
        for layer in self.model.graph.layers:
            x = layer(x, bias)
        v2, u2 = F.normalize(x[0, : len(v)], dim=1), F.normalize(x[0, len(v) :], dim=1)
        terms["cross"] = loss(v, u2) + loss(v2, u)
        terms["graph"] = loss(v2, u2)
        guide = nearness(v, u).detach()
        terms["reg"] = torch.zeros(())
        for learned, target in ((i2t, guide), (t2i, guide.t())):
            q, p = learned.softmax(dim=1), target.softmax(dim=1)
            terms["reg"] = terms["reg"] + (q * (q.log() - p.log())).sum() / len(q)
        return terms

    def bias(
        self, v: Tensor, u: Tensor, regions: Tensor, words: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The attention bias [2B, 2B] and the learned relevance both ways, [B, B]."""
        graph, relevance = self.model.config.graph, self.model.relevance
        p_t2i, p_i2t, q_t2i, q_i2t = overlap(words, lengths, regions, graph.topk)
        t2i, i2t = relevance.t2i(q_t2i)[..., 0] + p_t2i, relevance.i2t(q_i2t)[..., 0] + p_i2t
        near = [nearness(v, v), i2t, t2i, nearness(u, u)]
        blocks = []
        for block, link in zip(near, [v @ v.t(), p_i2t, p_t2i, u @ u.t()], strict=True):
            connected = connections(link.detach(), graph.threshold)
            blocks.append((graph.mask_weight * block).masked_fill(~connected, float("-inf")))
        rows = [torch.cat(blocks[:2], dim=1), torch.cat(blocks[2:], dim=1)]
        return torch.cat(rows), t2i, i2t

    def evaluate(self, split: Split, tokens: TokenTable) -> dict[str, float]:
        """Recalls of ``split``."""
        return evaluate_regions(
            self.model,
            lambda regions, lengths: self.images(regions, lengths)[0],
            lambda ids, lengths: self.texts(ids, lengths)[0],
            split,
            tokens,
        )


CASE = Case(
    name="hrem",
    recipe=("model=hrem", "data=f30k", *RANDOM_BERT, "model.graph.warmup=0"),
    train=BERT_256,
    evaluate=BERT_256,
    no_dropout=("model.dropout=0", "model.text.dropout=0"),
    words=REGION_WORDS,
    pairs=128,
    images=200,
    region_width=2048,
    repeats=True,
    tiny=(*BERT_TINY, "model.embed_size=32", "model.heads=2", "model.graph.topk=4"),
)
