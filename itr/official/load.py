"""Recognizes, loads and converts the authors' checkpoints of every method.

The importer of `itr.models.<name>` is the module `itr.official.<name>`; nothing is registered by
hand.
"""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

import itr.models
import itr.official
from itr import checkpoint
from itr.data.text.tokenizer import Tokenizer
from itr.errors import CheckpointError, nearest
from itr.files import atomic_write, explain_write_error
from itr.models.base import Model
from itr.models.build import model_meta
from itr.official.name_table import Imported, load_pickle


class Importer(NamedTuple):
    """The importer of one method and its model.

    ``module`` defines ``recognizes(payload)``, ``read(path, text)``, ``export(model)`` and
    ``EXTRA_OPTIONS`` (model option -> argument of ``read``, for what the weights do not say);
    optionally ``incompatibility(theirs, ours)``.
    """

    module: Any
    model: type[Model]


@functools.cache
def importers() -> dict[str, Importer]:
    """Method name -> importer, for every name that is in both ``itr/official`` and ``itr/models``.

    Raises ImportError for an importer whose model module defines no model.
    """
    models, official = (
        {module.name for module in pkgutil.iter_modules(package.__path__)}
        for package in (itr.models, itr.official)
    )
    return {name: _importer(name) for name in sorted(models & official)}


def _importer(name: str) -> Importer:
    models = importlib.import_module(f"itr.models.{name}")
    return Importer(importlib.import_module(f"itr.official.{name}"), _model_in(models))


def _model_in(module: ModuleType) -> type[Model]:
    """The first model that ``module`` (or package) defines; imports belong to other methods."""
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Model)
            and f"{value.__module__}.".startswith(f"{module.__name__}.")
        ):
            return value
    raise ImportError(f"{module.__name__} defines no Model")


def recognize(path: Path) -> str:
    """The method whose authors wrote ``path``. Raises CheckpointError if no importer knows it."""
    payload = load_pickle(path)
    for name, importer in importers().items():
        if importer.module.recognizes(payload):
            return name
    keys = ", ".join(map(str, payload)) if isinstance(payload, Mapping) else type(payload).__name__
    raise CheckpointError(
        f"{path}: not a checkpoint of a known method's authors; it holds {keys}; expected a file "
        f"of the authors of {', '.join(importers())}"
    )


def importer_of(name: str) -> Importer:
    """The importer of method ``name``. Raises CheckpointError if there is none."""
    if name not in importers():
        known = importers()
        raise CheckpointError(
            f"model={name}: no importer for authors' checkpoints{nearest(name, known)} "
            f"(known: {', '.join(known)})"
        )
    return importers()[name]


def load_official(
    path: Path, name: str, text: Mapping[str, Any] | None = None
) -> tuple[Model, Imported]:
    """The model in an authors' file of method ``name``.

    ``text`` holds what the weights do not say (see `Importer`). Raises CheckpointError.
    """
    importer = importer_of(name)
    imported = importer.module.read(path, text)
    cls = importer.model.class_for(imported.config)
    model = cls(imported.config, nn.ModuleDict(), imported.weights, imported.facts)
    imported.load_into(model)
    return model, imported


def open_file(
    path: Path,
    tokenizer: str | None = None,
    heads: int | None = None,
    image_heads: int | None = None,
) -> tuple[Model, Imported]:
    """The model in an authors' file of any method.

    ``heads`` (text encoder) and ``image_heads`` (image encoder) are numbers of attention heads,
    needed where they differ from the published ones. Raises CheckpointError as `load_official`, and
    for ``image_heads`` of a method without an image encoder.
    """
    name = recognize(path)
    arguments = set(importer_of(name).module.EXTRA_OPTIONS.values())
    if image_heads and not {"image_heads", "head_width"} & arguments:
        raise CheckpointError(
            f"{path}: --image-heads={image_heads}: model={name} has no image tower; remove the flag"
        )
    options = {"heads": heads, "image_heads": image_heads, "tokenizer": tokenizer}
    return load_official(path, name, {key: value for key, value in options.items() if value})


def convert(
    path: Path,
    out: Path,
    tokenizer: str | None = None,
    heads: int | None = None,
    image_heads: int | None = None,
) -> Imported:
    """Convert the authors' file ``path`` to our format, with a JSON description beside it.

    ``out`` is a ``*.safetensors`` file, or a folder in which ``best.safetensors`` is written.
    ``tokenizer`` (a name or directory) is stored inside. ``heads`` and ``image_heads`` as for
    `open_file`.
    """
    model, imported = open_file(path, tokenizer, heads, image_heads)
    target = out if out.suffix == ".safetensors" else out / "best.safetensors"
    meta = {
        **model_meta(model),
        "model_name": imported.model_name,
        "loss": None,
        "tokenizer": Tokenizer.from_files(tokenizer).to_json() if tokenizer else None,
        "official": {"file": path.name, **imported.info},
        "depth": imported.depth,
    }
    checkpoint.write(target, {f"model/{k}": v for k, v in model.state_dict().items()}, meta)
    readable = {key: value for key, value in meta.items() if key != "tokenizer"}
    description = target.with_suffix(".json")
    with explain_write_error(description, "the description", "pass OUT elsewhere"):
        with atomic_write(description) as file:
            file.write(f"{json.dumps(readable, indent=2)}\n".encode())
    return imported
