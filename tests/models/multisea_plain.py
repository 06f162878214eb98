"""Multi-SEA's arithmetic written down literally: every row of every pair, one sample at a time.

A second implementation to compare with, in numbers and in time. It takes a model's weights and
nothing else of it; dropout is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from itr.batch import Batch
from itr.draws import Draws
from itr.models.base import Encoded
from itr.models.multisea import MultiSEA
from itr.nn.agent import Attention, Expert
from itr.nn.gated import GatedFeedForward

HIDDEN = torch.finfo(torch.float32).min


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def split(x: Tensor, heads: int) -> Tensor:
    return x.view(len(x), x.shape[1], heads, -1).transpose(1, 2)


def softmax_of(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)


def bias_of(mask: Tensor) -> Tensor:
    return (1.0 - mask.float()) * HIDDEN


def close(part: Attention, x: Tensor, heads: Tensor) -> Tensor:
    mixed = heads.transpose(1, 2).reshape(x.shape)
    return rms(x + part.out(mixed), part.norm.weight)


def self_attention(part: Attention, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (split(f(x), part.heads) for f in (part.query, part.key, part.value))
    return close(part, x, softmax_of(q, k, bias_of(mask)[:, None, None, :]) @ v)


def agent_attention(
    part: Attention, agents: int, x: Tensor, mask: Tensor, y: Tensor, y_mask: Tensor
) -> Tensor:
    q, k, v = part.query(x), part.key(y), part.value(y)
    g = F.interpolate(q.transpose(1, 2), size=agents, mode="linear").transpose(1, 2)
    q, k, v, g = (split(t, part.heads) for t in (q, k, v, g))
    gathered = softmax_of(g, k, bias_of(y_mask)[:, None, None, :]) @ v
    return close(part, x, softmax_of(q, g, bias_of(mask)[:, None, :, None]) @ gathered)


def feed_forward(part: GatedFeedForward, x: Tensor) -> Tensor:
    def act(t: Tensor) -> Tensor:
        return t * torch.clip(t + 3, 0, 1) / 6

    u, v = act(part.dense1(x)), part.dense2(x)
    return rms(x + part.dense3(u * v) * act(part.dense4(v)), part.norm.weight)


def stack(model: MultiSEA, kind: str, x: Tensor, mask: Tensor, y=None, y_mask=None) -> list[Tensor]:
    states = [x]
    for expert in model.aformer.text if kind == "text" else model.aformer.image:
        assert isinstance(expert, Expert)
        x = self_attention(expert.attention, x, mask)
        if y is not None:
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
        feats, embeds = model.texts(batch.tokens, batch.token_mask)
        mask = batch.token_mask
    states = stack(model, kind, embeds, mask)[-1]
    pooled = torch.tanh(model.aformer.pooler(states[:, 0]))
    a = model.alpha
    return a * pooled + (1 - a) * feats, a * states + (1 - a) * embeds, mask


def contrast(model: MultiSEA, v: Tensor, u: Tensor, ids: list[int]) -> Tensor:
    """The contrastive loss, row by row."""
    known = ids + model.image_queue.ids.tolist()
    total = torch.zeros(())
    for a, b, queue in ((v, u, model.text_queue), (u, v, model.image_queue)):
        for i in range(len(ids)):
            keys = torch.cat([b.detach(), queue.features])
            logits = torch.stack([a[i] @ key for key in keys]) / model.temp
            same = torch.tensor([float(ids[i] == other) for other in known])
            total = total - (same / same.sum() * logits.log_softmax(0)).sum() / len(ids) / 2
    return total


def negatives(
    model: MultiSEA, v: Tensor, u: Tensor, ids: list[int], draws: Draws
) -> tuple[list[int], list[int]]:
    """An image for each text, then a text for each image: one draw at a time."""
    found: list[list[int]] = []
    for a, b in ((u, v), (v, u)):
        weights = (a @ b.t() / model.temp).detach().softmax(1)
        drawn = []
        for i in range(len(ids)):
            row = weights[i].clone()
            for j in range(len(ids)):
                if ids[i] == ids[j]:
                    row[j] = 0
            drawn.append(int(draws.categorical(row[None])[0]))
        found.append(drawn)
    return found[0], found[1]


def losses(model: MultiSEA, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
    """Both terms of one micro-batch, every pair in full."""
    assert batch.image_id is not None
    ids = batch.image_id.tolist()
    v, images, image_mask = encode(model, "image", batch)
    u, texts, text_mask = encode(model, "text", batch)
    wrong_image, wrong_text = negatives(model, v, u, ids, draws)
    own = list(range(len(ids)))
    rows_t, rows_i = own + wrong_text + own, own + own + wrong_image
    x, x_mask = (torch.stack([t[i] for i in rows_t]) for t in (texts, text_mask))
    y, y_mask = (torch.stack([t[i] for i in rows_i]) for t in (images, image_mask))
    labels = torch.tensor([1] * len(ids) + [0] * (2 * len(ids))).repeat(2)
    itm = torch.zeros(())
    for states in (
        stack(model, "text", x, x_mask, y, y_mask),
        stack(model, "image", y, y_mask, x, x_mask),
    ):
        first = torch.cat([states[-3][:, 0], states[-1][:, 0]])
        itm = itm + F.cross_entropy(model.itm_head(first), labels) / 2
    return contrast(model, v, u, ids), itm


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
