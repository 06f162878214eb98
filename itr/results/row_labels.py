"""Labels the rows of a results table: model, loss, and the options in which similar rows differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

# Options in the order in which they tell a reader most about a run.
ORDER = ("model", "loss", "data", "task", "optim", "batch_size", "accumulate", "trainer", "rerank",
         "precision", "select_on")  # fmt: skip
# Options that do not describe an experiment.
BOOKKEEPING = (
    "out", "seed", "device", "devices", "nodes", "resume", "overwrite", "tracker", "runtime",
    "recipe.source", "hydra", "data.root", "data.cache", "data.images", "checkpoint",
    "embeddings", "scores", "trainer.log_every", "trainer.checkpoint_every",
    "trainer.checkpoint_minutes", "rerank.batch_size",
)  # fmt: skip
NAMED_GROUPS = ("model", "loss", "data", "task", "optim", "recipe")  # `<group>.name` sets the rest
SHOWN = 3  # options per label, unless more are needed to tell the rows apart


def differing_options(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted keys whose values differ between ``configs``, most telling first.

    Bookkeeping (`BOOKKEEPING`) is ignored. If the name of a group differs, e.g. ``loss.name``, its
    other options are left out, because they follow from the name.
    """
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config if not is_bookkeeping(key))
    differing = [k for k in keys if len({json.dumps(c.get(k), default=str) for c in flat}) > 1]
    renamed = {group for group in NAMED_GROUPS if f"{group}.name" in differing}
    differing = [
        key for key in differing if key.partition(".")[0] not in renamed or key.endswith(".name")
    ]
    return sorted(differing, key=_priority)  # stable: within a group as in the configuration


def option_labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each of ``configs`` from the options in which they differ, or "" if none does.

    At most `SHOWN` options are listed, or as many as are needed to make the labels unique.
    """
    keys = differing_options(configs)
    flat = [flatten(config) for config in configs]

    def labels(count: int) -> list[str]:
        return [", ".join(_assignment(k, c[k]) for k in keys[:count] if k in c) for c in flat]

    possible = len(set(labels(len(keys))))
    count = next(n for n in range(len(keys) + 1) if len(set(labels(n))) == possible)
    return labels(max(count, min(SHOWN, len(keys))))


def training_length(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """How long a run was trained, e.g. "30 epochs, 3,480 updates"; "" if unknown.

    For an evaluated checkpoint, the updates until that checkpoint.
    """
    updates, best = results.get("updates"), results.get("best_updates")
    if updates is None:
        return "" if best is None else f"{best:,} updates (checkpoint)"
    trainer = config.get("trainer")
    trainer = trainer if isinstance(trainer, Mapping) else {}
    epochs = trainer.get("epochs") if trainer.get("max_steps") is None else None
    return f"{epochs} epochs, {updates:,} updates" if epochs else f"{updates:,} updates"


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_bookkeeping(key: str) -> bool:
    """Whether an option does not describe an experiment."""
    return any(key == option or key.startswith(f"{option}.") for option in BOOKKEEPING)


def _priority(key: str) -> tuple[int, bool]:
    group = key.partition(".")[0]
    return ORDER.index(group) if group in ORDER else len(ORDER), not key.endswith(".name")


def _assignment(key: str, value: Any) -> str:
    name = key.removesuffix(".name") if key.count(".") == 1 else key
    return f"{name}={value}"
