"""What the importers of all methods share: names both ways, reading without executing code."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itr.errors import CheckpointError
from itr.nn.clip.jit_archive import is_jit_archive, read_jit_archive
from itr.view import Facts

SHOWN = 8  # names in a line of the log
# What no weight of a text encoder tells: a model's option -> what an importer's `read` calls it.
TEXT_EXTRA_OPTIONS = {
    "text.name": "name",
    "text.tokenizer": "tokenizer",
    "text.heads": "heads",
}


def extra_options(keys: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """What ``options`` (a model node, perhaps a part of one) says of ``keys``, an importer's
    ``EXTRA_OPTIONS``, as its `read` takes it."""
    given = flat(options)
    return {theirs: given[ours] for ours, theirs in keys.items() if given.get(ours) is not None}


def flat(node: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The leaves of ``node`` by dotted name."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found


def head_width(told: Mapping[str, Any], width: int, usual: int) -> int:
    """Of an image tower ``width`` wide: as ``told`` (``head_width``, or ``image_heads``, the number
    of heads), else the ``usual`` one."""
    if told.get("image_heads"):
        return int(width // told["image_heads"])
    return int(told.get("head_width") or usual)


def listed(names: Sequence[str]) -> str:
    """``names``, or where they are many, how many each module has."""
    if len(names) <= SHOWN:
        return ", ".join(names)
    modules = Counter(".".join(n.split(".")[: 2 if n.startswith("twin.") else 1]) for n in names)
    return ", ".join(f"{module}.* ({count})" for module, count in modules.items())


class NameTable:
    """Pairs (authors' prefix, our prefix); what follows a prefix is the same on both sides."""

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        self.pairs = sorted(pairs, key=lambda pair: -len(pair[0]))
        self.reverse = sorted(((b, a) for a, b in self.pairs), key=lambda pair: -len(pair[0]))

    def to_ours(self, official: str) -> str | None:
        """Our name of an authors' weight; None if the table does not know it."""
        return _renamed(official, self.pairs)

    def to_official(self, ours: str) -> str | None:
        """The authors' name of one of our weights; None if they have no such weight."""
        return _renamed(ours, self.reverse)


def _renamed(name: str, pairs: list[tuple[str, str]]) -> str | None:
    for old, new in pairs:
        if name.startswith(old):
            return new + name[len(old) :]
    return None


@dataclass
class ImportReport:
    """What became of each weight."""

    matched: list[str] = field(default_factory=list)  # same name on both sides
    renamed: list[tuple[str, str]] = field(default_factory=list)  # authors' name, ours
    ignored: list[str] = field(default_factory=list)  # authors' weights that we have no use for
    missing: list[str] = field(default_factory=list)  # ours that stay as they were initialised

    def lines(self, path: Path) -> list[str]:
        """For the log: how many weights of ``path`` were used, and which were not."""
        count = len(self.matched) + len(self.renamed)
        told = [f"{path.name}: {count} weights read, {len(self.renamed)} of them renamed"]
        for what, names in (("ignored", self.ignored), ("does not hold", self.missing)):
            if names:
                told.append(f"{path.name}: {what} ({len(names)}): {listed(names)}")
        return told


@dataclass
class Imported:
    """An authors' checkpoint in our terms. ``config`` and ``facts`` rebuild the architecture."""

    model_name: str
    config: Any
    facts: Facts
    state: dict[str, Tensor]
    report: ImportReport
    weights: dict[str, float]  # of the loss terms, as the authors' options say
    info: dict[str, Any]  # JSON-able: epoch, best_rsum, all options
    depth: dict[str, int] = field(default_factory=dict)  # re-ranked, by data set; "*": any other

    def load_into(self, model: nn.Module) -> None:
        """Load the weights; those of ``report.missing`` stay as they are. Raises CheckpointError
        if the model has other weights than the imported ones."""
        result = model.load_state_dict(self.state, strict=False)
        lost = sorted(set(result.missing_keys) - set(self.report.missing))
        if lost or result.unexpected_keys:
            raise CheckpointError(
                f"the model does not fit the imported weights: missing {', '.join(lost) or 'none'};"
                f" unexpected {', '.join(result.unexpected_keys) or 'none'}"
            )


def load_pickle(path: Path) -> Any:
    """The contents of a ``torch.save`` file: tensors, plain values and `argparse.Namespace` only;
    of a TorchScript archive (OpenAI's CLIP) its tensors by their dotted names.

    Raises CheckpointError if the file is missing, truncated, not of this kind, or would need code
    of its own to be executed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected an authors' checkpoint (.pth)")
    if is_jit_archive(path):
        return read_jit_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{path}: not a readable PyTorch checkpoint ({type(error).__name__}: {reason}); it is "
            "truncated, no checkpoint at all, or holds objects that only code could rebuild"
        ) from error


def without_prefix(state: Mapping[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """``state`` without a prefix that every name bears (DataParallel writes one)."""
    if not all(name.startswith(prefix) for name in state):
        return dict(state)
    return {name[len(prefix) :]: value for name, value in state.items()}


def require_fit(
    path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], optional: set[str]
) -> list[str]:
    """Our names that ``state`` lacks and may lack. Raises CheckpointError that lists every other
    missing, unexpected or misshapen weight."""
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
        lines = [f"{path}: the weights do not fit (named as this suite names them)"]
        lines += [f"  {kind} ({len(v)}): {', '.join(v)}" for kind, v in faults.items() if v]
        raise CheckpointError("\n".join(lines))
    return sorted(absent & optional)


def to_json(value: Any) -> Any:
    """``value`` as JSON can hold it."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return str(value)
