"""The contract of a task. Trainer, jobs, tables and trackers know tasks through it alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from itr.data.config import DataConfig
from itr.data.loading.loader import ItemFields
from itr.data.records import Split
from itr.data.text.token_table import TokenTable
from itr.data.text.tokenizer import Tokenizer
from itr.evaluation.predictions import Predictions
from itr.evaluation.rerank import RerankConfig
from itr.evaluation.split_evaluator import SplitEvaluator
from itr.view import View


@dataclass(frozen=True)
class EvaluationSettings:
    """How a split is evaluated, whatever the task; each task reads what concerns it."""

    view: View
    tokens: TokenTable  # of the captions of the split
    tokenizer: Tokenizer
    batch_size: int
    device: torch.device
    precision: str = "fp32"
    workers: int = 0
    protocols: tuple[str, ...] = ("full",)
    tie_break: str = "pessimistic"
    rerank: RerankConfig = field(default_factory=RerankConfig)
    strict: bool = False  # every protocol must fit the split


class Task(ABC):
    """What is read, what is measured, and on what a checkpoint is selected.

    A task is made from the options of ``conf/task/<name>.yaml``.
    """

    Config: ClassVar[type]
    selects: ClassVar[str]  # the metric on which the best checkpoint is selected
    maximize: ClassVar[bool] = True  # whether a higher value of it is better
    reads_pairs: ClassVar[bool] = False  # images with captions, in any layout, shards included

    def __init__(self, config: Any):
        self.config = config

    @property
    def name(self) -> str:
        """The value of ``task=``."""
        return str(self.config.name)

    @abstractmethod
    def open_split(self, data: DataConfig, split: str, view: View, second: bool = False) -> Split:
        """Open ``split``; with ``second`` it holds a second text of each image.

        Raises a UserError for a dataset that cannot be used.
        """

    def batch_fields(self, split: Split, view: View, tokenizer: Tokenizer) -> ItemFields | None:
        """What training batches of ``split`` hold beside images and captions."""
        return None

    @abstractmethod
    def evaluator(self, split: Split, settings: EvaluationSettings) -> SplitEvaluator:
        """An evaluator of ``split``."""

    def learn(self, train: Split, data: DataConfig) -> list[str]:
        """Take from the training data what evaluation needs; returns lines for the log."""
        return []

    def state(self) -> dict[str, Any]:
        """What `learn` took, JSON-serializable; a checkpoint keeps it."""
        return {}

    def restore(self, state: Mapping[str, Any], data: DataConfig) -> list[str]:
        """Take what `learn` took from a checkpoint (empty: it has none), or from ``data``.

        Returns lines for the log. Raises ConfigError if evaluation lacks something.
        """
        return []

    def submit(self, predictions: Predictions, folder: Path, split: str) -> list[str]:
        """Write the files that a server of this task wants; returns lines that say what to do."""
        return []

    def improves(self, results: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
        """Whether ``results`` are better than ``best`` (None: there are none yet).

        A value that is not known (no item has a published answer) never is, but for the first.
        """
        if best is None:
            return True
        new, old = results.get(self.selects), best.get(self.selects)
        if new is None or old is None:
            return new is not None
        return new > old if self.maximize else new < old

    @abstractmethod
    def line(self, results: Mapping[str, Any]) -> str:
        """The results of a validation in one line."""
