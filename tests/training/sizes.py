"""Every model in a size that trains in seconds, on the scenes of ``tests/conftest.py``."""

from __future__ import annotations

from pathlib import Path

from tests.models.model_sizes import MODEL_SIZES

COMMON = (
    "data.prepare.train=60",
    "data.prepare.val=20",
    "data.prepare.test=20",
    "tracker=none",
    "device=cpu",
    "runtime.estimate=false",
    "runtime.eval_batch_size=8",
    "rerank.k=12",
)
SIZES = {name: sizes.run for name, sizes in MODEL_SIZES.items()}
# Without dropout: ranks cannot share the dropout masks of one model.
NO_DROPOUT = {name: sizes.no_dropout for name, sizes in MODEL_SIZES.items()}


def overrides(model: str, world: Path, *more: str) -> list[str]:
    """Overrides of a tiny run of ``model``."""
    places = (f"data.root={world / 'data'}", f"data.cache={world / 'cache'}")
    return [f"model={model}", *COMMON, *SIZES[model], *places, *more]
