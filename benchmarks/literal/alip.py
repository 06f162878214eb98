"""ALIP literally: whole contexts, activations computed twice, a read of the device for every number
that is shown. N samples, D joint width."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import Case, sizes
from benchmarks.literal.plain import BATCH, Choose, metrics
from benchmarks.random_data import Words
from itr.batch import Batch
from itr.data.loading.eval_batches import image_batches
from itr.data.records import Split
from itr.data.text.token_table import TokenTable
from itr.models.alip import ALIP
from itr.nn.clip.towers import CLIPTextTransformer
from itr.training.block_wrappers import checkpoint_activations

MOMENTUM = 0.99


def whole_context(tokens: Tensor, length: int) -> Tensor:
    """Ids [N, L] filled up to the whole context."""
    return F.pad(tokens, (0, length - tokens.shape[1]))


def text_vector(tower: CLIPTextTransformer, tokens: Tensor) -> Tensor:
    """[N, L] -> [N, D], not normalised; the last norm sees every position."""
    x = tower.token_embedding(tokens) + tower.positional_embedding
    x = tower.ln_final(tower.transformer(x))
    return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ tower.text_projection


class Literal:
    """The literal re-writing around ``model``, whose weights it trains.

    ``checkpointing``: the authors' forward switches it on and nothing switches it off again.
    """

    def __init__(self, model: ALIP, checkpointing: bool = True):
        self.model, self.length = model, model.config.text.max_positions
        if checkpointing:
            checkpoint_activations(model)
        self.means = [torch.tensor(model.config.gates.start) for _ in range(3)]
        self.shown: list[float] = []

    def text(self, tokens: Tensor) -> Tensor:
        """[N, L] -> unit vectors [N, D]."""
        ids = whole_context(tokens, self.length)
        return F.normalize(text_vector(self.model.texts, ids), dim=-1)

    def forward(self, batch: Batch, choose: Choose) -> dict[str, Tensor]:
        """Terms before their weights."""
        assert batch.pixels is not None and batch.tokens is not None
        assert batch.second_tokens is not None
        x = F.normalize(self.model.images(batch.pixels), dim=-1)
        return self.criterion(x, self.text(batch.tokens), self.text(batch.second_tokens))

    @torch.no_grad()
    def gates(self, x: Tensor, t: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W_s, W_t, W_c, [N] each."""
        pairs = (t, c), (x, t), (x, c)
        found = [(left * right).sum(dim=1) for left, right in pairs]
        for i, similarity in enumerate(found):
            self.means[i] = (1 - MOMENTUM) * similarity.mean() + MOMENTUM * self.means[i]
        e = [torch.exp(s - mean) ** 2 for s, mean in zip(found, self.means, strict=True)]
        low = e[0] < 1.0
        one = torch.ones_like(e[0])
        w_s, w_t, w_c = (torch.where(low, value, one) for value in e)
        return w_s, w_t, w_c

    def criterion(self, x: Tensor, t: Tensor, c: Tensor) -> dict[str, Tensor]:
        """Both terms of unit vectors [N, D]; every logged number is read at once, twice."""
        w_s, w_t, w_c = self.gates(x, t, c)
        scale, target = self.model.logit_scale.exp(), torch.arange(len(x))
        terms = {}
        for name, y, pair in (("raw", t, w_t), ("caption", c, w_c)):
            there = F.cross_entropy(scale * x @ y.t(), target, reduction="none")
            back = F.cross_entropy(scale * y @ x.t(), target, reduction="none")
            terms[name] = (w_s * pair * (there + back) / 2).mean()
        logged = [terms["raw"], terms["caption"], scale, *self.means]
        logged += [w.mean() for w in (w_s, w_t, w_c)] + [w.min() for w in (w_s, w_t, w_c)]
        logged.append(terms["raw"] + terms["caption"])
        self.shown = [value.item() for value in (*logged, *logged)]
        return terms

    def evaluate(self, split: Split, tokens: TokenTable) -> dict[str, float]:
        """Recalls of ``split``."""
        model = self.model.eval()
        v, u = [], []
        for batch in image_batches(split, model.view, BATCH):
            x = model.images(batch.pixels).detach()
            v.append(x / x.norm(dim=-1, keepdim=True))
        for start in range(0, len(tokens), BATCH):
            ids = np.zeros((min(BATCH, len(tokens) - start), self.length), dtype=np.int64)
            for row in range(len(ids)):
                known = tokens.ids(start + row)
                ids[row, : len(known)] = known
            y = text_vector(model.texts, torch.from_numpy(ids)).detach()
            u.append(y / y.norm(dim=-1, keepdim=True))
        scores = (torch.cat(v) @ torch.cat(u).t()).numpy()
        return metrics(scores, scores.T, split.text_to_image)


ALIP_SIZES = (
    "model.embed_size=256",
    *sizes("model.image", depth=4, width=256),
    *sizes("model.text", depth=4, width=256, heads=4),
)
CASE = Case(
    name="alip",
    recipe=("model=alip", "data=yfcc"),
    train=ALIP_SIZES,
    evaluate=ALIP_SIZES,
    no_dropout=(),
    words=Words(49408, shortest=8, longest=32, first=49406, last=49407),
    pairs=64,
    images=200,
    image_key="image.size",
    tiny=(
        "model.image.size=32",
        "model.embed_size=16",
        *sizes("model.image", depth=1, width=16, patch=8, head_width=8),
        *sizes("model.text", depth=1, width=16, heads=2),
    ),
)
