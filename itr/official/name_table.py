"""Shared parts of the importers: two-way name tables, and loading without executing code."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from itr.errors import CheckpointError
from itr.nn.clip.jit_archive import is_jit_archive, read_jit_archive
from itr.view import Facts
from itr.weights_file import load_torch

SHOWN = 8  # names per log line
# Options of a text encoder that its weights do not determine: model option -> argument of `read`.
TEXT_EXTRA_OPTIONS = {
    "text.name": "name",
    "text.tokenizer": "tokenizer",
    "text.heads": "heads",
}


def extra_options(keys: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for an importer's `read` from ``options``, a (partial) model node.

    ``keys`` is the importer's ``EXTRA_OPTIONS``.
    """
    values = flat(options)
    return {theirs: values[ours] for ours, theirs in keys.items() if values.get(ours) is not None}


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of ``node`` by dotted name."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def head_width(options: Mapping[str, Any], width: int, default: int) -> int:
    """Width of an attention head in an image tower of ``width``.

    ``options`` may hold ``head_width`` or ``image_heads`` (the number of heads).
    """
    if options.get("image_heads"):
        return int(width // options["image_heads"])
    return int(options.get("head_width") or default)


def listed(names: Sequence[str]) -> str:
    """``names`` as text; if there are many, the number of names per module."""
    if len(names) <= SHOWN:
        return ", ".join(names)
    modules = Counter(".".join(n.split(".")[: 2 if n.startswith("twin.") else 1]) for n in names)
    return ", ".join(f"{module}.* ({count})" for module, count in modules.items())


class NameTable:
    """Two-way table of weight names, from pairs (authors' prefix, our prefix).

    The rest of a name is the same on both sides.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        self.pairs = sorted(pairs, key=lambda pair: -len(pair[0]))
        self.reverse = sorted(((b, a) for a, b in self.pairs), key=lambda pair: -len(pair[0]))

    def to_ours(self, official: str) -> str | None:
        """Our name of an authors' weight; None if it is unknown."""
        return _renamed(official, self.pairs)

    def to_official(self, ours: str) -> str | None:
        """The authors' name of one of our weights; None if they have none."""
        return _renamed(ours, self.reverse)


def _renamed(name: str, pairs: list[tuple[str, str]]) -> str | None:
    for old, new in pairs:
        if name.startswith(old):
            return new + name[len(old) :]
    return None


@dataclass
class ImportReport:
    """How each weight was imported."""

    matched: list[str] = field(default_factory=list)  # same name on both sides
    renamed: list[tuple[str, str]] = field(default_factory=list)  # (authors' name, our name)
    ignored: list[str] = field(default_factory=list)  # authors' weights without a counterpart
    missing: list[str] = field(default_factory=list)  # our weights left at their initial values

    def lines(self, path: Path) -> list[str]:
        """Log lines: the number of weights read from ``path``, and which are ignored or missing."""
        count = len(self.matched) + len(self.renamed)
        lines = [f"{path.name}: {count} weights read, {len(self.renamed)} of them renamed"]
        for what, names in (("ignored", self.ignored), ("missing", self.missing)):
            if names:
                lines.append(f"{path.name}: {what} ({len(names)}): {listed(names)}")
        return lines


@dataclass
class Imported:
    """An authors' checkpoint in our format. ``config`` and ``facts`` rebuild the architecture."""

    model_name: str
    config: Any
    facts: Facts
    state: dict[str, Tensor]
    report: ImportReport
    weights: dict[str, float]  # of the loss terms, from the authors' options
    info: dict[str, Any]  # JSON-serializable: epoch, best_rsum, all options
    depth: dict[str, int] = field(default_factory=dict)  # re-ranking k by dataset; "*": default

    def load_into(self, model: nn.Module) -> None:
        """Load the weights into ``model``; those in ``report.missing`` are left unchanged.

        Raises CheckpointError if the model's weights differ from the imported ones.
        """
        result = model.load_state_dict(self.state, strict=False)
        lost = sorted(set(result.missing_keys) - set(self.report.missing))
        if lost or result.unexpected_keys:
            raise CheckpointError(
                f"the model does not fit the imported weights: missing {', '.join(lost) or 'none'};"
                f" unexpected {', '.join(result.unexpected_keys) or 'none'}"
            )


def load_pickle(path: Path) -> Any:
    """Load a ``torch.save`` file of tensors, plain values and `argparse.Namespace`.

    For a TorchScript archive (OpenAI's CLIP), returns its tensors by dotted name. No code in the
    file is executed. Raises CheckpointError if the file is missing, damaged, of another kind, or
    holds other objects.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: file not found; expected an authors' checkpoint (.pth)")
    return read_jit_archive(path) if is_jit_archive(path) else load_torch(path)


def without_prefix(state: Mapping[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """``state`` without ``prefix`` (written by DataParallel), if every name has it."""
    if not all(name.startswith(prefix) for name in state):
        return dict(state)
    return {name[len(prefix) :]: value for name, value in state.items()}


def require_fit(
    path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], optional: set[str]
) -> list[str]:
    """Check that ``state`` fits the ``expected`` weights; returns the missing ``optional`` names.

    Raises CheckpointError that lists all other missing weights, unexpected ones, and wrong shapes.
    """
    absent = set(expected) - set(state)
    faults = {
        "missing": sorted(absent - optional),
        "unexpected": sorted(set(state) - set(expected)),
        "shape": [
            f"{name} {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in sorted(set(state) & set(expected))
            if state[name].shape != expected[name].shape
        ],
    }
    if any(faults.values()):
        lines = [f"{path}: the weights do not fit (by our names)"]
        lines += [f"  {kind} ({len(v)}): {', '.join(v)}" for kind, v in faults.items() if v]
        raise CheckpointError("\n".join(lines))
    return sorted(absent & optional)


def to_json(value: Any) -> Any:
    """``value`` with containers and scalars that JSON can represent; other objects as text."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return str(value)
