"""What trainer and evaluator know of a model. B pairs, D width, L tokens, P re-ranked pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.view import Facts, View


@dataclass
class Terms:
    """What one forward pass gives: named scalar losses to weigh and sum, and things to log only."""

    losses: dict[str, Tensor]
    report: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Encoded:
    """Encoded images or captions. ``pooled`` [N, D] is what the method scores by dot product."""

    pooled: Tensor
    tokens: Tensor | None = None  # [N, L, D], for re-ranking
    mask: Tensor | None = None  # [N, L] bool


@dataclass(frozen=True)
class SlotScores:
    """What a model of one configuration hands to a slot: it decides which losses fit there."""

    cosine: bool = True  # values lie in [-1, 1]
    remedy: str = ""  # what to type to get cosines, where they can be had
    soft: str | None = None  # the option that hands soft targets in; None: hard matches only
    scale: bool = False  # the model has a temperature of its own


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate; ``names`` are those of ``named_parameters``."""

    name: str
    names: tuple[str, ...]
    lr: float
    weight_decay: float


class RetrievalModel(nn.Module, ABC):
    """Turns a batch into named loss terms (training) or embeddings (evaluation).

    ``slots`` maps slot names to the losses that the model calls. ``weights`` maps terms to their
    weights: the trainer multiplies and sums, and a model skips a term of weight 0 (`uses_term`).
    """

    Config: ClassVar[type]  # the dataclass of `conf/model/<name>.yaml`, less `_target_` and `name`
    slot_names: ClassVar[tuple[str, ...]]
    term_names: ClassVar[tuple[str, ...]]
    tasks: ClassVar[tuple[str, ...]] = ("retrieval",)  # values of `task=` that it can be trained on
    shares_batch_loss: ClassVar[bool] = (
        True  # pairs of all ranks share a loss; False: each rank has its own
    )
    symmetric_rerank: ClassVar[bool] = False  # `rerank` ignores the direction: pairs scored once
    size_key: ClassVar[str | None] = None  # the option for the pixels of a side; None: no pixels
    rerank_block: ClassVar[int] = 1  # how many pairs of an image `rerank` likes in a row

    def __init__(
        self, config: Any, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__()
        self.config = config
        self.slots = slots
        self.weights = dict(weights)
        self.facts = facts
        self.chunk_pairs: int | None = (
            None  # pairs that pass anything deep at once (``grad_cache``)
        )
        self.view = self.view_for(config)

    @classmethod
    @abstractmethod
    def view_for(cls, config: Any) -> View:
        """How a model of this configuration wants its data (known before it is built)."""

    @classmethod
    def slot_scores(cls, config: Any, slot: str) -> SlotScores:
        """What a model of this configuration hands to ``slot`` (known before it is built)."""
        return SlotScores()

    @abstractmethod
    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """The loss terms of one micro-batch; keys are among ``term_names``."""

    @abstractmethod
    def encode_images(self, batch: Batch) -> Encoded:
        """Embeddings of the images of ``batch``, as evaluation scores them."""

    @abstractmethod
    def encode_texts(self, batch: Batch) -> Encoded:
        """Embeddings of the captions of ``batch``, as evaluation scores them."""

    @abstractmethod
    def parameter_groups(self, lr: float, weight_decay: float) -> list[ParameterGroup]:
        """Every parameter, in exactly one group; by module, never by substring."""

    def check_batch(self, share: int) -> None:
        """Raises ConfigError if the method cannot train on batches of ``share`` pairs a device."""

    def states(self, batch: Batch) -> dict[str, Tensor]:
        """What `terms_of` needs of the trained encoders: rows [B, ...], each from its pair alone,
        so that a batch may be encoded a few pairs at a time (``grad_cache``)."""
        raise NotImplementedError(f"{type(self).__name__} sees a batch as a whole")

    def frozen_states(self, batch: Batch) -> dict[str, Tensor]:
        """What `terms_of` needs beside them that carries no gradient; rows [B, ...]."""
        return {}

    def terms_of(
        self, states: Mapping[str, Tensor], batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """The loss terms from `states` and `frozen_states` of the whole ``batch``.

        Deep layers process ``chunk_pairs`` pairs at a time.
        """
        raise NotImplementedError(f"{type(self).__name__} sees a batch as a whole")

    @classmethod
    def cacheable(cls) -> bool:
        """Whether ``forward`` is `terms_of` the `states`."""
        return cls.states is not RetrievalModel.states

    def uses_term(self, term: str) -> bool:
        """Whether ``term`` counts at all (its weight is not 0)."""
        return self.weights.get(term, 0.0) != 0.0

    def reads_model_scale(self, slots: Iterable[str]) -> bool:
        """Whether the loss in any of ``slots`` reads the model's temperature."""
        return any(slot in self.slots and self.slots[slot].uses_scale for slot in slots)

    def sleeping(self, clock: Clock) -> frozenset[str]:
        """Names of the modules (or single parameters) that take no part at ``clock``: no gradient,
        no update, no decay."""
        return frozenset()

    def before_step(self, clock: Clock) -> None:
        """Called before each micro-batch (momentum, clamps)."""

    def after_step(self, clock: Clock) -> None:
        """Called after each micro-batch, also when the update is skipped (enqueue, clamps)."""

    def rerank(
        self, images: Encoded, texts: Encoded, pairs: Tensor, direction: str, block: int = 1
    ) -> Tensor:
        """Final scores [P] of ``pairs`` [P, 2] (image row, text row), sorted by image; ``block``
        pairs in a row share it.

        ``direction`` is ``i2t`` or ``t2i``; ``both`` where ``symmetric_rerank`` holds.
        """
        raise NotImplementedError(f"{type(self).__name__} scores by its embeddings alone")

    def heat(self, images: Batch, texts: Batch) -> Tensor | None:
        """Where in image i caption i was found: [P, g, g], higher is hotter. None: the
        model has no map of its own (a gallery then hides parts of the image and looks)."""
        return None

    def fit_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another model of this class, changed where a fixed rule makes them fit this
        one (position embeddings at another resolution). Whoever starts a run from them calls it."""
        return dict(state)

    @property
    def reranks(self) -> bool:
        """Whether the model has a second, slower score for pairs."""
        return type(self).rerank is not RetrievalModel.rerank


def parameter_names(model: nn.Module, modules: Iterable[nn.Module]) -> tuple[str, ...]:
    """Names (in ``model``) of the parameters of ``modules``, in ``named_parameters`` order."""
    wanted = {id(parameter) for module in modules for parameter in module.parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in wanted)
