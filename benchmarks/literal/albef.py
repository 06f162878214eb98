"""ALBEF literally: pairs in two passes with each pair's image projected anew, one draw a time, one
query a time. B pairs, N image tokens, L words, E joint width, Q queue, P pairs to match."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import RANDOM_BERT, Case, bert, sizes
from benchmarks.literal.plain import Choose, follow, metrics, one
from benchmarks.random_data import Words
from itr.batch import Batch
from itr.data.loading.eval_batches import image_batches
from itr.data.records import Split
from itr.data.text.token_table import TokenTable
from itr.models.albef import ALBEF
from itr.models.albef.config import RANKED_LENGTH
from itr.nn.bert.fusion import BertAttention, FusionBert, FusionLayer

HIDDEN = -10000.0
NOT_RANKED = -100.0


def attend(part: BertAttention, x: Tensor, source: Tensor, bias: Tensor | float) -> Tensor:
    """LN(x + Drop(W Attention(x, source))), the probabilities written out."""

    def split(t: Tensor) -> Tensor:
        return t.view(len(t), t.shape[1], part.heads, -1).permute(0, 2, 1, 3)

    q, k, v = split(part.query(x)), split(part.key(source)), split(part.value(source))
    share = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(dim=-1)
    mixed = (part.dropout(share) @ v).permute(0, 2, 1, 3).reshape(x.shape)
    return part.norm(x + part.dropout(part.out(mixed)))


def fuse(fusion: FusionBert, states: Tensor, mask: Tensor, images: Tensor) -> Tensor:
    """States [P, L, D] of words with image tokens [P, N, Dv]: every layer, every word."""
    bias = (1.0 - mask.float())[:, None, None, :] * HIDDEN
    for layer in fusion.layers:
        assert isinstance(layer, FusionLayer)
        states = attend(layer.words, states, states, bias)
        states = attend(layer.image, states, images, 0.0)
        hidden = layer.contract(F.gelu(layer.expand(states)))
        states = layer.norm(states + layer.dropout(hidden))
    return states


class Literal:
    """The literal re-writing around ``model``, whose weights it trains."""

    def __init__(self, model: ALBEF):
        self.model = model
        names = "vision", "vision_proj", "text", "text_proj", "fusion"
        self.slow = {
            name: copy.deepcopy(model.get_submodule(name)).requires_grad_(False).train()
            for name in names
        }
        self.image_queue = model.image_queue.features.t().clone()
        self.text_queue = model.text_queue.features.t().clone()
        self.ids = model.text_queue.ids.clone().unsqueeze(0)
        self.pointer = torch.zeros(1, dtype=torch.int64)
        self.alpha = 0.4

    def words(self, bert: torch.nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
        """[B, L] twice -> [B, L, D]."""
        return bert(tokens, attention_mask=mask.float()).last_hidden_state

    def move_keys(self) -> None:
        """All momentum copies follow, also the half that retrieval never uses."""
        for name, module in self.slow.items():
            follow(module, self.model.get_submodule(name), self.model.config.momentum)

    def forward(self, batch: Batch, choose: Choose) -> dict[str, Tensor]:
        """Terms before their weights; the keys of the batch enter the queues."""
        model, slow, pixels = self.model, self.slow, batch.pixels
        tokens, mask, ids = batch.tokens, batch.token_mask, batch.image_id
        assert tokens is not None and mask is not None and ids is not None
        images = model.vision.forward_features(pixels)
        v = F.normalize(model.vision_proj(images[:, 0]), dim=-1)
        texts = self.words(model.text, tokens, mask)
        t = F.normalize(model.text_proj(texts[:, 0]), dim=-1)
        self.move_keys()
        with torch.no_grad():
            image_tokens = slow["vision"].forward_features(pixels)
            v_keys = F.normalize(slow["vision_proj"](image_tokens[:, 0]), dim=-1)
            states = self.words(slow["text"], tokens, mask)
            t_keys = F.normalize(slow["text_proj"](states[:, 0]), dim=-1)
        itc, i2t, t2i = self.contrast(v, t, v_keys, t_keys, ids)
        return {"itc": itc, "itm": self.matching(images, texts, mask, i2t, t2i, ids, choose)}

    def contrast(
        self, v: Tensor, t: Tensor, v_keys: Tensor, t_keys: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The term, and the logits both ways [B, B + Q]; the keys then enter the queues."""
        temperature, alpha = self.model.temperature, self.alpha
        with torch.no_grad():
            v_all = torch.cat([v_keys.t(), self.image_queue.clone().detach()], dim=1)
            t_all = torch.cat([t_keys.t(), self.text_queue.clone().detach()], dim=1)
            all_ids = torch.cat([ids.view(1, -1), self.ids.clone().detach()], dim=1)
            positive = torch.eq(ids.view(-1, 1), all_ids).float()
            target = positive / positive.sum(dim=1, keepdim=True)
            soft_i2t = alpha * F.softmax(v_keys @ t_all / temperature, dim=1)
            soft_t2i = alpha * F.softmax(t_keys @ v_all / temperature, dim=1)
            soft_i2t = soft_i2t + (1 - alpha) * target
            soft_t2i = soft_t2i + (1 - alpha) * target
        i2t, t2i = v @ t_all / temperature, t @ v_all / temperature
        there = -torch.sum(F.log_softmax(i2t, dim=1) * soft_i2t, dim=1).mean()
        back = -torch.sum(F.log_softmax(t2i, dim=1) * soft_t2i, dim=1).mean()
        first, last = int(self.pointer), int(self.pointer) + len(ids)
        self.image_queue[:, first:last] = v_keys.t()
        self.text_queue[:, first:last] = t_keys.t()
        self.ids[:, first:last] = ids
        self.pointer[0] = last % self.ids.shape[1]
        return (there + back) / 2, i2t, t2i

    def matching(
        self,
        images: Tensor,
        texts: Tensor,
        mask: Tensor,
        i2t: Tensor,
        t2i: Tensor,
        ids: Tensor,
        choose: Choose,
    ) -> Tensor:
        """The pairs, then a wrong image for each text and a wrong text for each image."""
        count, model = len(ids), self.model
        positive = fuse(model.fusion, texts, mask, images)
        with torch.no_grad():
            same = torch.eq(ids.view(-1, 1), ids.view(1, -1))
            to_texts = F.softmax(i2t[:, :count] + 1e-4, dim=1).masked_fill(same, 0)
            to_images = F.softmax(t2i[:, :count] + 1e-4, dim=1).masked_fill(same, 0)
        images_neg = torch.stack([images[one(choose, to_images[b])] for b in range(count)])
        texts_neg, mask_neg = [], []
        for b in range(count):
            chosen = one(choose, to_texts[b])
            texts_neg.append(texts[chosen])
            mask_neg.append(mask[chosen])
        negative = fuse(
            model.fusion,
            torch.cat([texts, torch.stack(texts_neg)]),
            torch.cat([mask, torch.stack(mask_neg)]),
            torch.cat([images_neg, images]),
        )
        logits = model.itm_head(torch.cat([positive[:, 0], negative[:, 0]]))
        labels = torch.cat([torch.ones(count).long(), torch.zeros(2 * count).long()])
        return F.cross_entropy(logits, labels)

    @torch.no_grad()
    def evaluate(self, split: Split, tokens: TokenTable, k: int) -> dict[str, float]:
        """Recalls of ``split``, the ``k`` best of each query ordered again, one query a time."""
        model = self.model.eval()
        states, mask = self.all_words(tokens)
        t = F.normalize(model.text_proj(states[:, 0]), dim=-1)
        read = image_batches(split, model.view, 64)
        images = torch.cat([model.vision.forward_features(batch.pixels) for batch in read])
        v = F.normalize(model.vision_proj(images[:, 0]), dim=-1)
        similarity = v @ t.t()
        i2t = torch.full(similarity.shape, NOT_RANKED)
        for i, row in enumerate(similarity):
            at = row.topk(k).indices
            fused = fuse(model.fusion, states[at], mask[at], images[i].repeat(k, 1, 1))
            i2t[i, at] = model.itm_head(fused[:, 0])[:, 1]
        t2i = torch.full(similarity.t().shape, NOT_RANKED)
        for i, row in enumerate(similarity.t()):
            at = row.topk(k).indices
            words, there = states[i].repeat(k, 1, 1), mask[i].repeat(k, 1)
            fused = fuse(model.fusion, words, there, images[at])
            t2i[i, at] = model.itm_head(fused[:, 0])[:, 1]
        return metrics(i2t.numpy(), t2i.numpy(), split.text_to_image)

    def all_words(self, tokens: TokenTable) -> tuple[Tensor, Tensor]:
        """States [C, L, D] and masks of all captions, all of one length."""
        length = self.model.config.eval_length or RANKED_LENGTH
        ids = np.zeros((len(tokens), length), dtype=np.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row in range(len(tokens)):
            known = tokens.ids(row)[:length]
            ids[row, : len(known)], mask[row, : len(known)] = known, True
        parts = zip(torch.from_numpy(ids).split(256), mask.split(256), strict=True)
        return torch.cat([self.words(self.model.text, *part) for part in parts]), mask


CASE = Case(
    name="albef",
    recipe=("model=albef", "data=f30k", *RANDOM_BERT),
    train=(
        *sizes("model.image", size=224, width=192, depth=4, heads=3),
        *bert(192, 6, fusion_layer=3),
    ),
    evaluate=(
        *sizes("model.image", size=96, patch=8, width=64, depth=4, heads=2),
        *bert(64, 4, fusion_layer=2),
        "model.embed_size=64",
        "model.queue_size=256",
    ),
    no_dropout=("model.text.dropout=0",),
    words=Words(30522, shortest=8, longest=24, first=101),
    pairs=16,
    images=100,
    image_key="image.size",
    rerank_k=16,
    repeats=True,
    tiny=(
        *sizes("model.image", width=24, depth=2, heads=2, size=32, patch=8),
        *bert(16, 4, fusion_layer=2),
        "model.embed_size=16",
        "model.queue_size=48",
    ),
)
