"""USER: Unified Semantic Enhancement with Momentum Contrast for Image-Text Retrieval (TIP 2024).

Zhang, Ji, Wang, Pang, Li. The encoders are those of VSE-infinity. Regions are first enhanced by a
global vector of their image. Momentum copies of both encoders fill two queues of negatives.

B pairs, R regions, W region width, G guide width, D joint width, K queue size. v, t: images and
texts. Keys are embeddings from the momentum encoders.

The paper's second enhancement, guided by a frozen CLIP (``model.enhance=cge``, ``sge+cge``), is not
in the authors' code. It follows our reading of the abstract and could not be verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError, DataError
from itr.losses.score import Scores
from itr.models.base import Terms
from itr.models.vse import VSE, VSEConfig
from itr.nn.momentum import MomentumTwin, fill_momentum_weights
from itr.nn.pooling import l2_normalize
from itr.nn.queue import FeatureQueue
from itr.options import configured, option
from itr.parallel import all_gather
from itr.view import Facts

ENHANCEMENTS = ("none", "sge", "cge", "sge+cge")
PROJECTIONS = ("linear", "mlp", "none")


@dataclass
@configured("model/user.yaml", "model")
class USERConfig(VSEConfig):
    """Options of `USER`; the defaults are the paper's Flickr30K settings."""

    region_drop: float = option(at_least=0, below=1)
    enhance: str = option(choices=ENHANCEMENTS)
    guide_projection: str = option(choices=PROJECTIONS)
    regions: int = option(at_least=1)
    enhance_dropout: float = option(at_least=0, below=1)
    attention_scale: float = option()
    queue_size: int = option()
    momentum: float = option(at_least=0, at_most=1)


# 3.2 Unified semantic enhancement


class SelfGuide(nn.Module):
    """Self-guided enhancement: a global vector of the regions, [B, R, W] -> [B, W], unit length.

    It has no mask, so every image must have exactly ``regions`` regions.
    """

    def __init__(self, width: int, regions: int, dropout: float):
        super().__init__()
        self.regions = regions
        self.local = nn.Linear(width, width)
        self.local_norm = nn.BatchNorm1d(regions)  # a channel is a region slot
        self.local_dropout = nn.Dropout(dropout)
        self.whole = nn.Linear(width, width)
        self.whole_norm = nn.BatchNorm1d(width)
        self.whole_dropout = nn.Dropout(dropout)
        self.common = nn.Linear(width, 1)
        for linear in (self.local, self.whole, self.common):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def shares(self, regions: Tensor) -> Tensor:
        """Weight of each region in the global vector: [B, R, W] -> [B, R], rows sum to 1."""
        local = self.local_dropout(self.local_norm(self.local(regions)).tanh())
        whole = self.whole_norm(self.whole(regions.mean(dim=1))).tanh()
        whole = self.whole_dropout(whole) * self.common.weight  # [B, W]
        return (local @ whole[:, :, None] + self.common.bias).squeeze(2).softmax(dim=1)

    def forward(self, regions: Tensor, guides: Tensor | None = None) -> Tensor:
        """Raises DataError for another number of regions, ConfigError for a batch of one."""
        if regions.shape[1] != self.regions:
            raise DataError(_other_count(regions.shape[1], self.regions))
        if self.training and len(regions) < 2:
            raise ConfigError(TOO_SMALL)
        shares = self.shares(regions)
        return l2_normalize((shares[:, None].to(regions.dtype) @ regions).squeeze(1))


class ClipGuide(nn.Module):
    """CLIP-guided enhancement: a frozen CLIP's image embedding in region space, [B, G] -> [B, W].

    ``projection`` is ``linear``, ``mlp`` (two layers with a ReLU) or ``none``. Raises ConfigError
    for ``none`` if the widths differ.
    """

    def __init__(self, width: int, guide_width: int, projection: str = "linear"):
        super().__init__()
        if projection == "none" and guide_width != width:
            raise ConfigError(
                f"model.guide_projection=none: the CLIP embeddings are {guide_width} wide, but the "
                f"regions {width}; pass model.guide_projection=linear"
            )
        linears = {"none": 0, "linear": 1, "mlp": 2}[projection]
        layers: list[nn.Module] = []
        for number in range(linears):
            linear = nn.Linear(width if number else guide_width, width)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [nn.ReLU(), linear] if number else [linear]
        self.project = nn.Sequential(*layers)

    def forward(self, regions: Tensor, guides: Tensor | None) -> Tensor:
        """Unit vectors [B, W]. Raises DataError if ``guides`` is None."""
        if guides is None:
            raise DataError(NO_GUIDES)
        return l2_normalize(self.project(guides))


class Enhancement(nn.Module):
    """Adds each global vector to every region, weighted by their similarity."""

    def __init__(self, guides: Mapping[str, nn.Module], scale: float):
        super().__init__()
        self.guides, self.scale = nn.ModuleDict(guides), scale

    def forward(self, regions: Tensor, guides: Tensor | None = None) -> Tensor:
        """[B, R, W] -> [B, R, W]; similarities use the unenhanced regions."""
        enhanced = regions
        for guide in self.guides.values():
            whole = guide(regions, guides)
            similarity = (regions @ whole[:, :, None].to(regions.dtype)).squeeze(2)
            attention = l2_normalize((self.scale * similarity).softmax(dim=1))
            enhanced = enhanced + attention[:, :, None] * whole[:, None]
        return enhanced


TOO_SMALL = (
    "batch_size: 1 pair per device, but batch normalization in the enhancement needs at least 2; "
    "set batch_size to at least 2 per device, or pass model.enhance=none"
)
NO_GUIDES = (
    "model.enhance: the CLIP-guided enhancement needs one CLIP embedding per image, but this "
    "dataset has none; write <split>_clip.npy [rows, width] beside <split>_ims.npy for every split "
    "with itr data guides, or pass model.enhance=sge"
)


def _other_count(regions: int, expected: int) -> str:
    return (
        f"model.regions={expected}: USER normalizes each of {expected} region slots, but this "
        f"dataset has {regions} regions per image; pass model.regions={regions} to train on it (a "
        f"checkpoint needs {expected}), or model.enhance=none"
    )


# 3.3 Momentum contrast


class MomentumKeys(NamedTuple):
    """Embeddings of one batch from the momentum encoders."""

    images: Tensor  # [B, D]
    texts: Tensor  # [B, D]
    image_id: Tensor  # [B]


def queue_scores(queries: Tensor, keys: Tensor, ids: Tensor, queue: FeatureQueue) -> Scores:
    """Scores [B, 1 + K] of each query [B, D] with its positive key (column 0) and the queue."""
    with torch.autocast(queries.device.type, enabled=False):
        own = (queries * keys).sum(dim=1, keepdim=True)
        values = torch.cat([own, queries @ queue.features.t()], dim=1)
    repeat = ids[:, None] == queue.ids
    match = torch.cat([torch.ones_like(repeat[:, :1]), repeat], dim=1)
    return Scores(values, match, own=torch.zeros_like(ids))


# The model


class USER(VSE):
    """Slots: ``batch`` scores images against captions, ``queue`` each against the other's keys.

    The paper's lambda is the weight of term ``batch``. If the weight of ``queue`` is 0, there are
    no momentum encoders and no queues.
    """

    Config = USERConfig
    slot_names: ClassVar[tuple[str, ...]] = ("batch", "queue")
    term_names: ClassVar[tuple[str, ...]] = ("batch", "queue")
    config: USERConfig

    def __init__(
        self, config: USERConfig, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__(config, slots, weights, facts)
        self.pending: MomentumKeys | None = None
        if not self.uses_term("queue"):
            return
        sources = {"images": self.images, "texts": self.texts}
        # As in the authors' runs: the momentum image encoder stays in training mode (batch
        # statistics and dropout), the momentum BERT in evaluation mode.
        self.twin = MomentumTwin(sources, config.momentum, training=True)
        self.twin.get_submodule("texts.bert").eval()
        size, length = config.embed_size, config.queue_size
        self.image_queue = FeatureQueue(size, length, "uniform", with_ids=True)
        self.text_queue = FeatureQueue(size, length, "uniform", with_ids=True)

    def _check(self) -> None:
        super()._check()
        config, facts = self.config, self.facts
        if config.queue_size < 1 and self.uses_term("queue"):
            raise ConfigError(
                f"model.queue_size={config.queue_size}: expected at least 1; to train without a "
                "queue, pass loss.weights.queue=0"
            )
        if config.enhance == "none":
            return
        if "cge" in config.enhance and facts.guide_width is None:
            raise ConfigError(NO_GUIDES)
        if config.region_drop > 0:
            raise ConfigError(
                f"model.region_drop={config.region_drop}: the enhancement needs all regions of an "
                "image; pass model.region_drop=0 or model.enhance=none"
            )
        if "sge" in config.enhance and facts.regions not in (None, config.regions):
            raise ConfigError(_other_count(facts.regions, config.regions))

    def enhancement(self) -> nn.Module | None:
        """Self-guided, CLIP-guided or both; None for ``enhance=none``."""
        config, facts = self.config, self.facts
        if config.enhance == "none":
            return None
        assert facts.region_width is not None
        guides: dict[str, nn.Module] = {}
        if "sge" in config.enhance:
            guides["own"] = SelfGuide(facts.region_width, config.regions, config.enhance_dropout)
        if "cge" in config.enhance:
            assert facts.guide_width is not None
            guides["clip"] = ClipGuide(
                facts.region_width, facts.guide_width, config.guide_projection
            )
        return Enhancement(guides, config.attention_scale)

    def fit_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` with missing momentum weights copied from its encoders.

        Queues of another size are replaced by this model's random ones.
        """
        fitted = fill_momentum_weights(super().fit_weights(state), self.state_dict())
        for name, own in self.state_dict().items():
            if "_queue." in name and (name not in fitted or fitted[name].shape != own.shape):
                fitted[name] = own
        return fitted

    def check_batch(self, share: int) -> None:
        """The batch normalization of the enhancement needs at least 2 pairs."""
        if share < 2 and "sge" in self.config.enhance:
            raise ConfigError(TOO_SMALL)

    def before_step(self, clock: Clock) -> None:
        """Update the momentum encoders."""
        if self.uses_term("queue"):
            self.twin.update()

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """Terms ``batch`` and ``queue``; sets ``pending`` to the keys of all ranks."""
        images, texts = self.encode_images(batch).pooled, self.encode_texts(batch).pooled
        terms = self.batch_terms(images, texts, batch, clock, draws)
        if self.uses_term("queue"):
            keys = self.pending = MomentumKeys(*map(all_gather, self.keys(batch)))
            images, texts = all_gather(images, "full"), all_gather(texts, "full")
            scores = queue_scores(images, keys.texts, keys.image_id, self.text_queue)
            scores.back = queue_scores(texts, keys.images, keys.image_id, self.image_queue)
            self.add_term(terms, "queue", scores, clock, draws)
        return terms

    @torch.no_grad()
    def keys(self, batch: Batch) -> MomentumKeys:
        """The momentum encoders' embeddings of the same regions and token ids."""
        assert batch.image_id is not None
        return MomentumKeys(
            self.twin["images"](
                batch.regions, batch.region_mask, batch.min_region_length, batch.guides
            ),
            self.twin["texts"](batch.tokens, batch.token_mask, batch.min_token_length),
            batch.image_id,
        )

    def after_step(self, clock: Clock) -> None:
        """Enqueue the keys of all ranks, after their own batch has used the previous ones."""
        if self.pending is None:
            return
        keys, self.pending = self.pending, None
        self.image_queue.enqueue(keys.images, keys.image_id)
        self.text_queue.enqueue(keys.texts, keys.image_id)
