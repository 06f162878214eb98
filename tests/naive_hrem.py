"""HREM a second time, as plainly as can be: loops over samples, torch's own layers, the authors'
names. Written from the paper's formulas to check the fast one; shares no code with it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel


@dataclass
class Options:
    embed_size: int = 16
    img_dim: int = 10
    nhead: int = 2
    dropout: float = 0.0
    residual_weight: float = 0.8
    topk: int = 4
    threshold: float = 0.5
    mask_weight: float = 1.0
    norm_input: int = 1
    num_layers_enc: int = 1
    warmup: int = 0
    cross_loss: float = 1
    reg_loss_weight: float = 10


def transformer(options: Options, layers: int) -> nn.TransformerEncoder:
    size = options.embed_size
    layer = nn.TransformerEncoderLayer(size, options.nhead, size, options.dropout)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def pool(fragments: Tensor, related: Tensor, lengths: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    k, top, mean = 2, [], []
    for sample, other, length in zip(fragments, related, lengths.tolist(), strict=True):
        k = min(k, length)
        top.append(sample[:length].sort(dim=0, descending=True).values[:k].mean(dim=0))
        mean.append(other[:length].mean(dim=0))
    raw = beta * torch.stack(top) + (1 - beta) * torch.stack(mean)
    return raw / (raw.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-8), raw


class MLP(nn.Module):
    def __init__(self, width: int, size: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, size // 2), nn.Linear(size // 2, size)])
        self.bns = nn.ModuleList([nn.BatchNorm1d(size // 2), nn.BatchNorm1d(size)])

    def forward(self, x: Tensor) -> Tensor:
        rows = self.bns[0](self.layers[0](x.reshape(-1, x.shape[-1])))
        return self.layers[1](F.relu(rows)).reshape(*x.shape[:2], -1)


class Encoder(nn.Module):
    def __init__(self, options: Options):
        super().__init__()
        self.options, self.aggr = options, transformer(options, 1)

    def finish(self, fragments: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        padded = torch.stack([torch.arange(fragments.shape[1]) >= n for n in lengths])
        related = self.aggr(fragments.transpose(0, 1), src_key_padding_mask=padded).transpose(0, 1)
        return *pool(fragments, related, lengths, self.options.residual_weight), fragments


class Images(Encoder):
    def __init__(self, options: Options):
        super().__init__(options)
        self.fc = nn.Module()
        self.fc.fc = nn.Linear(options.img_dim, options.embed_size)
        self.fc.mlp = MLP(options.img_dim, options.embed_size)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.finish(self.fc.fc(x) + self.fc.mlp(x), lengths)


class CaptionPadder(Encoder):
    def __init__(self, options: Options, bert: BertConfig):
        super().__init__(options)
        self.bert = BertModel(bert)
        self.linear = nn.Linear(bert.hidden_size, options.embed_size)

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.bert(ids, attention_mask=(ids != 0).long()).last_hidden_state
        return self.finish(self.linear(hidden), lengths)


def overlap(
    words: Tensor,
    word_lengths: Tensor,
    regions: Tensor,
    region_lengths: Tensor,
    k: int,
    scan_similarity: bool = True,
    mask_padded_regions: bool = False,
) -> dict[str, Tensor]:
    """Pair by pair: p [query, key] and q [query, key, k] both ways."""
    b = len(words)
    found = {
        "p_t2i": torch.zeros(b, b),
        "p_i2t": torch.zeros(b, b),
        "q_t2i": torch.zeros(b, b, k),
        "q_i2t": torch.zeros(b, b, k),
    }
    for c in range(b):
        length = int(word_lengths[c])
        kept = words[c, : min(max(length, k), words.shape[1])]
        for i in range(b):
            end = int(region_lengths[i]) if mask_padded_regions else regions.shape[1]
            s = torch.stack([F.cosine_similarity(w[None], regions[i], eps=1e-12) for w in kept])
            z = y = s
            if scan_similarity:
                s = torch.where(s > 0, s, 0.1 * s)
                z, y = F.normalize(s, dim=0), F.normalize(s, dim=1)
            row, column = z[:, :end].max(dim=1).values, y[:length, :end].max(dim=0).values
            found["p_t2i"][c, i] = row[:length].sum() / length
            found["q_t2i"][c, i] = row.sort(descending=True).values[:k]
            found["p_i2t"][i, c] = column.mean()
            found["q_i2t"][i, c] = column.sort(descending=True).values[:k]
    return found


def connect(similarity: Tensor, threshold: float) -> Tensor:
    k = math.floor(len(similarity) * threshold)
    return torch.stack([row >= row.sort(descending=True).values[k - 1] for row in similarity])


def nearness(a: Tensor, b: Tensor, sigma: float = 1.0) -> Tensor:
    """exp(-distance / sigma); the derivative at distance 0 is taken as 0."""
    square = (a[:, None] - b[None]).pow(2).sum(dim=-1)
    zero = square == 0
    return torch.where(zero, 1.0, (-square.masked_fill(zero, 1.0).sqrt() / sigma).exp())


def divergence(learned: Tensor, guide: Tensor, t: float = 1.0) -> Tensor:
    q, p = (learned / t).softmax(dim=1), (guide.detach() / t).softmax(dim=1)
    return t**2 * (q * (q.log() - p.log())).sum() / len(q)


def log_weight(s: float, n: int = 512, floor: float = 0.5) -> float:
    if s > 1:
        return math.nan
    d = max(math.sqrt(2 - 2 * s), floor)
    return (2 - n) * math.log(d) - (n - 3) / 2 * math.log(1 - d * d / 4) if d < 2 else math.inf


def sampling_weights(s: Tensor, match: Tensor, cutoff: float) -> Tensor:
    """Row by row, in double precision."""
    s = s.detach()
    weights = torch.zeros(s.shape, dtype=torch.float64)
    for a in range(len(s)):
        logs = []
        for j in range(s.shape[1]):
            value = log_weight(float(s[a, j]))
            logs.append(0.0 if match[a, j] or not math.isfinite(value) else value)
        for j in range(s.shape[1]):
            near = s[a, j] <= 1 and max(math.sqrt(2 - 2 * float(s[a, j])), 0.5) < cutoff
            if near and not match[a, j]:
                weights[a, j] = math.exp(logs[j] - max(logs))
        weights[a] /= weights[a].sum() + 1e-20
    return weights


def triplet(s: Tensor, match: Tensor, drawn: Tensor, margin: float = 0.2) -> Tensor:
    pairs = [(a, p) for a in range(len(s)) for p in range(s.shape[1]) if match[a, p]]
    costs = [
        F.relu(margin + s[a, int(g)] - s[a, p]) for (a, p), g in zip(pairs, drawn, strict=True)
    ]
    return torch.stack(costs).sum()


class Criterion(nn.Module):
    def __init__(self, options: Options):
        super().__init__()
        self.options, k = options, options.topk
        self.gnn = transformer(options, options.num_layers_enc)
        mlp = nn.Sequential(nn.Linear(k, k), nn.ReLU(), nn.Dropout(0.0), nn.Linear(k, 1))
        self.adj_model = nn.Module()
        self.adj_model.adj_learning = nn.Module()
        self.adj_model.adj_learning.mlp_t2i = mlp
        self.adj_model.adj_learning.mlp_i2t = copy.deepcopy(mlp)

    def forward(self, images, texts, lengths, ids, step, draw) -> dict[str, Tensor]:
        """``draw(s, match)`` gives the negatives of one direction; unweighted terms."""
        (v, v_raw, regions), (u, u_raw, words) = images, texts
        match = ids[:, None] == ids[None]

        def loss(a: Tensor, b: Tensor) -> Tensor:
            s = a @ b.t()
            return triplet(s, match, draw(s, match)) + triplet(s.t(), match, draw(s.t(), match))

        terms = {"base": loss(v, u)}
        if step < self.options.warmup:
            return terms
        bias, terms["reg"] = self.bias(v, u, regions.detach(), words.detach(), lengths)
        x = torch.cat([v, u] if self.options.norm_input else [v_raw, u_raw])
        v2, u2 = F.normalize(self.gnn(x[:, None], mask=bias)[:, 0], dim=1).chunk(2)
        if self.options.cross_loss:
            terms["cross"] = loss(v, u2) + loss(v2, u)
        terms["graph"] = loss(v2, u2)
        return terms

    def bias(self, v, u, regions, words, lengths) -> tuple[Tensor, Tensor]:
        options, learning = self.options, self.adj_model.adj_learning
        o = overlap(words, lengths[1], regions, lengths[0], options.topk)
        t2i = learning.mlp_t2i(o["q_t2i"])[..., 0] + o["p_t2i"]
        i2t = learning.mlp_i2t(o["q_i2t"])[..., 0] + o["p_i2t"]
        relevance = torch.cat(
            [torch.cat([nearness(v, v), i2t], 1), torch.cat([t2i, nearness(u, u)], 1)]
        )
        links = [v @ v.t(), o["p_i2t"], o["p_t2i"], u @ u.t()]
        ii, it, ti, tt = (connect(value, options.threshold) for value in links)
        connected = torch.cat([torch.cat([ii, it], 1), torch.cat([ti, tt], 1)])
        guide = nearness(v, u)
        reg = divergence(i2t, guide) + divergence(t2i, guide.t())
        return torch.where(connected, options.mask_weight * relevance, -torch.inf), reg


class NaiveHREM(nn.Module):
    """State dict names are the authors': img_enc.*, txt_enc.*, criterion.*."""

    def __init__(self, options: Options, bert: BertConfig):
        super().__init__()
        self.img_enc, self.txt_enc = Images(options), CaptionPadder(options, bert)
        self.criterion = Criterion(options)
        self.options = options

    def forward(self, batch, step, draw) -> dict[str, Tensor]:
        lengths = batch.region_mask.sum(dim=1), batch.token_mask.sum(dim=1)
        images = self.img_enc(batch.regions, lengths[0])
        texts = self.txt_enc(batch.tokens, lengths[1])
        return self.criterion(images, texts, lengths, batch.image_id, step, draw)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        weights = {
            "base": 1,
            "cross": self.options.cross_loss,
            "graph": 1,
            "reg": self.options.reg_loss_weight,
        }
        return sum(weights[key] * value for key, value in terms.items())

    def groups(self, lr: float) -> list[dict[str, object]]:
        bert = list(self.txt_enc.bert.parameters())
        inside = {id(p) for p in bert}
        return [
            {"params": [p for p in self.txt_enc.parameters() if id(p) not in inside], "lr": lr},
            {"params": bert, "lr": 0.1 * lr},
            {"params": list(self.img_enc.parameters()), "lr": lr},
            {"params": list(self.criterion.parameters()), "lr": lr},
        ]
