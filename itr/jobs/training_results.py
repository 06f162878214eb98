"""The results of one training run as an object, and the flat keys under which they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from itr.evaluation.stored_embeddings import file_hash
from itr.jobs import run_dir
from itr.training.config import TrainConfig
from itr.training.cost import RunCost


@dataclass
class RunIdentity:
    """What was trained: names, seed, and hashes of the configuration and the data."""

    run: str
    model: str
    data: str
    trained_on: str
    loss: str
    task: str
    recipe: str | None
    seed: int
    precision: str
    select_on: str
    config_hash: str
    seedless_hash: str  # shared by runs that differ in their seed only
    data_hashes: dict[str, str]  # by split

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        values: Mapping[str, Any],
        folder: Path,
        precision: str,
        manifest: Mapping[str, Any],
    ) -> RunIdentity:
        """The identity of the run in ``folder`` with the composed configuration ``values``."""
        return cls(
            run=folder.name,
            model=config.model["name"],
            data=config.data.name,
            trained_on=config.data.name,
            loss=config.loss.name,
            task=config.task["name"],
            recipe=config.recipe.name,
            seed=config.seed,
            precision=precision,
            select_on=config.select_on,
            config_hash=run_dir.config_hash(values),
            seedless_hash=run_dir.config_hash({**values, "seed": None}),
            data_hashes={split: content["hash"] for split, content in manifest.items()},
        )

    def flat(self) -> dict[str, Any]:
        """Keys of ``results.json``."""
        fields = asdict(self)
        hashes = fields.pop("data_hashes")
        return {**fields, **{f"data_hash_{split}": value for split, value in hashes.items()}}


@dataclass
class SelectedCheckpoint:
    """The checkpoint of the best validation; ``epoch`` counts from 1."""

    epoch: int
    updates: int
    metrics: dict[str, Any]  # of its validation
    sha256: str

    @classmethod
    def of(cls, path: Path, best: Mapping[str, Any]) -> SelectedCheckpoint:
        """The checkpoint at ``path`` with its record of the ``best`` validation."""
        return cls(best["epoch"], best["updates"], best["results"], file_hash(path))


@dataclass
class TrainingResults:
    """Everything that a finished run reports."""

    identity: RunIdentity
    selected: SelectedCheckpoint
    test_metrics: dict[str, Any]
    updates: int
    train_seconds: float  # over all parts of a resumed run
    cost: RunCost
    resumed_at: int | None  # update; None: never resumed
    broken_images: int

    def flat(self) -> dict[str, Any]:
        """Keys of ``results.json``, the tracker's summary and the sweeps."""
        return {
            **self.identity.flat(),
            "best_epoch": self.selected.epoch,
            "best_updates": self.selected.updates,
            "checkpoint_sha256": self.selected.sha256,
            "updates": self.updates,
            "train_seconds": round(self.train_seconds, 1),
            **asdict(self.cost),
            "resumed_at": self.resumed_at,
            "broken_images": self.broken_images,
            **{f"{self.identity.select_on}/{k}": v for k, v in self.selected.metrics.items()},
            **{f"test/{key}": value for key, value in self.test_metrics.items()},
        }
