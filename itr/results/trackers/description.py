"""What every tracker is told about a run beside its configuration: group and tags."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

TRAIN, EVAL = "train", "eval"  # kinds of jobs


def group_of(values: Mapping[str, Any]) -> str | None:
    """``<model>-<data>-<task>`` of a run with the configuration ``values``."""
    words = [_name(values, node) for node in ("model", "data", "task")]
    return "-".join(word for word in words if word) or None


def tags_of(values: Mapping[str, Any], further: Sequence[str]) -> list[str]:
    """Names of model, data, loss and task, then ``further`` ones.

    Tags in the environment variable WANDB_TAGS (e.g. the name of a sweep) are included.
    """
    tags = [_name(values, node) for node in ("model", "data", "loss", "task")]
    tags += ["select_on=test" if values.get("select_on") == "test" else None, *further]
    tags += [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",")]
    return list(dict.fromkeys(tag for tag in tags if tag))


def _name(values: Mapping[str, Any], key: str) -> str | None:
    node = values.get(key)
    return node.get("name") if isinstance(node, Mapping) else None
