"""Any authors' checkpoint: recognised, loaded, written as one of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from itr import checkpoint
from itr.data.text.tokenizer import Tokenizer
from itr.errors import CheckpointError
from itr.instantiate import nearest
from itr.models.albef import ALBEF
from itr.models.alip import ALIP
from itr.models.base import RetrievalModel
from itr.models.build import model_meta
from itr.models.hrem import HREM
from itr.models.multisea import MultiSEA
from itr.models.user import USER
from itr.models.vse import VSE
from itr.official import albef, alip, hrem, multisea, user, vse
from itr.official.name_table import Imported, load_pickle

IMPORTERS: dict[str, tuple[Any, type[RetrievalModel]]] = {
    "albef": (albef, ALBEF),
    "alip": (alip, ALIP),
    "hrem": (hrem, HREM),
    "multisea": (multisea, MultiSEA),
    "user": (user, USER),
    "vse": (vse, VSE),
}


def recognize(path: Path) -> str:
    """The method whose authors wrote ``path``. Raises CheckpointError if none of those known."""
    payload = load_pickle(path)
    for name, (importer, _) in IMPORTERS.items():
        if importer.recognizes(payload):
            return name
    keys = ", ".join(map(str, payload)) if isinstance(payload, Mapping) else type(payload).__name__
    raise CheckpointError(
        f"{path}: no known authors' checkpoint; found {keys}; known: {', '.join(IMPORTERS)}"
    )


def importer_of(name: str) -> tuple[Any, type[RetrievalModel]]:
    """The importer of method ``name``, and its model. Raises CheckpointError if there is none."""
    if name not in IMPORTERS:
        raise CheckpointError(
            f"model={name}: no importer{nearest(name, IMPORTERS)} (known: {', '.join(IMPORTERS)})"
        )
    return IMPORTERS[name]


def load_official(
    path: Path, name: str, text: Mapping[str, Any] | None = None
) -> tuple[RetrievalModel, Imported]:
    """The model of an authors' file, which must be one of method ``name``; ``text`` overrides
    what the file does not say of its text encoder. Raises CheckpointError."""
    importer, cls = importer_of(name)
    imported = importer.read(path, text)
    model = cls(imported.config, nn.ModuleDict(), imported.weights, imported.facts)
    imported.load_into(model)
    return model, imported


def open_file(
    path: Path,
    tokenizer: str | None = None,
    heads: int | None = None,
    image_heads: int | None = None,
) -> tuple[RetrievalModel, Imported]:
    """The model of an authors' file of any method, for sizes that it does not say: attention
    ``heads`` of a text encoder and ``image_heads`` of an image tower that are not the authors' own.

    Raises CheckpointError as `load_official`, and for heads of an image tower that is not there.
    """
    name = recognize(path)
    if image_heads and not {"image_heads", "head_width"} & set(
        IMPORTERS[name][0].EXTRA_OPTIONS.values()
    ):
        raise CheckpointError(f"{path}: --image-heads: model={name} has no image tower")
    told = {"heads": heads, "image_heads": image_heads, "tokenizer": tokenizer}
    return load_official(path, name, {key: value for key, value in told.items() if value})


def convert(
    path: Path,
    out: Path,
    tokenizer: str | None = None,
    heads: int | None = None,
    image_heads: int | None = None,
) -> Imported:
    """Write the authors' file ``path`` as a checkpoint of ours, with its JSON beside it.

    ``out`` is a ``*.safetensors`` file, or a folder that gets ``best.safetensors``.
    ``tokenizer`` (a name or directory) makes it self-contained; heads as `open_file` takes them.
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
    target.with_suffix(".json").write_text(json.dumps(readable, indent=2) + "\n")
    return imported
