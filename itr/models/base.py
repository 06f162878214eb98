"""The interface between models and trainer or evaluator.

B pairs, D width, L tokens, P re-ranked pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.options import faults
from itr.view import Facts, View


@dataclass
class Terms:
    """The result of one training forward pass."""

    losses: dict[str, Tensor]  # scalars, weighted and summed by the trainer
    report: dict[str, Tensor] = field(default_factory=dict)  # scalars that are only logged


@dataclass
class Encoded:
    """Encoded images or captions. ``pooled`` [N, D] is what the method scores by dot product."""

    pooled: Tensor
    tokens: Tensor | None = None  # [N, L, D], for re-ranking
    mask: Tensor | None = None  # [N, L] bool


@dataclass(frozen=True)
class SlotScores:
    """Properties of the scores in a slot, which decide which losses fit there."""

    cosine: bool = True  # values are in [-1, 1]
    remedy: str = ""  # options that make them cosines, if there are any
    soft: str | None = None  # the option that enables soft targets; None: hard matches only
    scale: bool = False  # the model learns a temperature
    bias: bool = False  # the model was trained with a sigmoid loss, whose bias it learns


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate; ``names`` are those of ``named_parameters``."""

    name: str
    names: tuple[str, ...]
    lr: float
    weight_decay: float


class Model(nn.Module, ABC):
    """Base class of everything that is trained: maps a batch to named loss terms.

    ``slots`` maps slot names to the losses that the model calls; a model without scores has none.
    ``weights`` maps terms to their weights: the trainer multiplies and sums, and a model skips a
    term of weight 0 (`uses_term`).
    """

    Config: ClassVar[type]  # the dataclass of `conf/model/<name>.yaml`, less `_target_` and `name`
    slot_names: ClassVar[tuple[str, ...]] = ()
    term_names: ClassVar[tuple[str, ...]]
    tasks: ClassVar[tuple[str, ...]] = ("retrieval",)  # values of `task=` that it trains on
    # Tasks of the same method whose weights can be the initial ones (``model.init``); None: any.
    starts_from: ClassVar[tuple[str, ...] | None] = None
    shares_batch_loss: ClassVar[bool] = (
        True  # pairs of all ranks share a loss; False: each rank has its own
    )
    size_key: ClassVar[str | None] = None  # option of the image size in pixels; None: no pixels

    def __init__(
        self, config: Any, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__()
        if found := faults(config, "model"):
            raise ConfigError("\n".join(found))
        self.config = config
        self.slots = slots
        self.weights = dict(weights)
        self.facts = facts
        self.chunk_pairs: int | None = (
            None  # pairs that pass anything deep at once (``grad_cache``)
        )
        self.frozen_weights: frozenset[str] = frozenset()  # parameters beside adapters (LoRA)
        self.view = self.training_view(config, self.weights)

    @classmethod
    def class_for(cls, config: Any) -> type[Model]:
        """The class that a ``_target_`` of this class builds from ``config``.

        A method with several tasks has one class for each kind of output.
        """
        return cls

    @classmethod
    @abstractmethod
    def view_for(cls, config: Any) -> View:
        """The data that a model of this configuration reads, known before it is built."""

    @classmethod
    def training_view(cls, config: Any, weights: Mapping[str, float]) -> View:
        """`view_for`, without what terms of weight 0 would have read."""
        return cls.view_for(config)

    @classmethod
    def slot_scores(cls, config: Any, slot: str) -> SlotScores:
        """The scores that a model of this configuration passes to ``slot``."""
        return SlotScores()

    @abstractmethod
    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """The loss terms of one micro-batch; keys are among ``term_names``."""

    @abstractmethod
    def parameter_groups(self, lr: float, weight_decay: float) -> list[ParameterGroup]:
        """Every parameter in exactly one group, selected by module and never by substring."""

    def check_batch(self, share: int) -> None:
        """Raises ConfigError if the method cannot train with ``share`` pairs per device."""

    def states(self, batch: Batch) -> dict[str, Tensor]:
        """Encoder outputs for `terms_of`, rows [B, ...].

        A row depends on its own pair only, so a batch can be encoded in chunks (``grad_cache``).
        """
        raise NotImplementedError(f"{type(self).__name__} does not encode pairs independently")

    def frozen_states(self, batch: Batch) -> dict[str, Tensor]:
        """Further inputs of `terms_of` without gradient, rows [B, ...]."""
        return {}

    def terms_of(
        self, states: Mapping[str, Tensor], batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """The loss terms from `states` and `frozen_states` of the whole ``batch``.

        Deep layers process ``chunk_pairs`` pairs at a time.
        """
        raise NotImplementedError(f"{type(self).__name__} does not encode pairs independently")

    @classmethod
    def cacheable(cls) -> bool:
        """Whether ``forward`` equals `terms_of` applied to `states`, as ``grad_cache`` needs."""
        return cls.states is not Model.states

    @classmethod
    def has_rerank(cls) -> bool:
        """Whether the model re-ranks candidates."""
        return False

    def uses_term(self, term: str) -> bool:
        """Whether the weight of ``term`` is not 0."""
        return self.weights.get(term, 0.0) != 0.0

    def reads_model_scale(self, slots: Iterable[str]) -> bool:
        """Whether the loss in any of ``slots`` reads the model's temperature."""
        return any(slot in self.slots and self.slots[slot].uses_scale for slot in slots)

    def sleeping(self, clock: Clock) -> frozenset[str]:
        """Modules or parameters that are frozen at ``clock``: no gradient, no update, no decay.

        Every parameter that may receive no gradient must be listed.
        """
        return frozenset()

    def towers(self) -> dict[str, tuple[str, ...]]:
        """The modules of the image and of the text encoder, for ``trainer.freeze``."""
        return {"image": ("images",), "text": ("texts",)}

    def pretrained_towers(self) -> tuple[tuple[str, ...], ...]:
        """The encoders that begin with trained weights, for ``optim.layer_decay``: the modules of
        each, in the order in which a sample passes them."""
        return tuple(self.towers().values())

    def pretrained_modules(self) -> tuple[str, ...]:
        """What begins with trained weights, which ``model.lora`` freezes and adapts."""
        return tuple(name for tower in self.pretrained_towers() for name in tower)

    def before_step(self, clock: Clock) -> None:
        """Called before each micro-batch, e.g. for momentum updates and clamps."""

    def after_step(self, clock: Clock) -> None:
        """Called after each micro-batch, e.g. to enqueue keys; also if the update is skipped."""

    def init_fault(self, stored: Mapping[str, Any]) -> str:
        """Why weights of a checkpoint with the options ``stored`` cannot be initial ones.

        Empty: nothing is known to be wrong; their sizes are compared in any case.
        """
        return ""

    def fit_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adapt the weights of another model of this class to this one by fixed rules.

        An example is resizing position embeddings. Called when a run is initialized from ``state``.
        """
        return dict(state)


class RetrievalModel(Model):
    """A model that embeds images and captions, and may re-rank the best candidates."""

    symmetric_rerank: ClassVar[bool] = False  # `rerank` ignores the direction: score pairs once
    rerank_block: ClassVar[int] = 1  # consecutive pairs that share an image in `rerank`

    @abstractmethod
    def encode_images(self, batch: Batch) -> Encoded:
        """Embeddings of the images of ``batch``, as evaluation scores them."""

    @abstractmethod
    def encode_texts(self, batch: Batch) -> Encoded:
        """Embeddings of the captions of ``batch``, as evaluation scores them."""

    def rerank(
        self, images: Encoded, texts: Encoded, pairs: Tensor, direction: str, block: int = 1
    ) -> Tensor:
        """Final scores [P] of ``pairs`` [P, 2] (image row, text row), sorted by image.

        ``block`` consecutive pairs share an image. ``direction`` is ``i2t`` or ``t2i``, or ``both``
        if ``symmetric_rerank``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no re-ranking score")

    def heat(self, images: Batch, texts: Batch) -> Tensor | None:
        """Heat maps [P, g, g] of the regions in image i that match caption i.

        None if the model has none; the gallery then computes them by occlusion.
        """
        return None

    @classmethod
    def has_rerank(cls) -> bool:
        """Whether the model defines `rerank`."""
        return cls.rerank is not RetrievalModel.rerank


def parameter_names(model: nn.Module, modules: Iterable[nn.Module]) -> tuple[str, ...]:
    """Names (in ``model``) of the parameters of ``modules``, in ``named_parameters`` order."""
    selected = {id(parameter) for module in modules for parameter in module.parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in selected)
