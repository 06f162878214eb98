"""From a checkpoint (ours, or an authors' file) to a model that can be evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from itr import checkpoint
from itr.data.text import Tokenizer
from itr.errors import CheckpointError
from itr.evaluation.stored import file_hash
from itr.models.base import RetrievalModel
from itr.models.build import restore
from itr.official.loading import load_official, recognise
from itr.training import rundir, state


@dataclass
class Loaded:
    """A checkpoint, ready to be evaluated, and how it was evaluated in training."""

    model: RetrievalModel
    tokenizer: Tokenizer
    path: Path
    data: dict[str, Any] | None  # the data node it was trained with
    origin: dict[str, Any]  # fields of the results that say where the weights are from
    precision: str = "fp32"
    ties: str = "pessimistic"
    rerank: dict[str, Any] = field(default_factory=dict)


def load_checkpoint(
    source: str | Path, told: dict[str, Any] | None = None, device: torch.device | str = "cpu"
) -> Loaded:
    """The model of ``source``: a run directory, a checkpoint of ours, or an authors' file.

    ``told`` is what the user says of the model (``name``, ``text``), which an authors' file may
    need. Raises CheckpointError for a file that is missing, broken or of another method, and for a
    tokenizer that is not its own.
    """
    path, told = state.resolve(Path(source)), told or {}
    official = path.suffix != ".safetensors"
    loaded = _load_official(path, told) if official else _load_ours(path, told)
    ids, known = loaded.tokenizer.vocabulary_size, loaded.model.facts.vocabulary
    if ids > known:
        raise CheckpointError(
            f"{path}: the tokenizer has {ids} ids, the checkpoint's text encoder {known}; name its "
            "own with model.text.tokenizer=DIR"
        )
    loaded.origin["checkpoint_sha256"] = file_hash(path)
    loaded.model.to(device).eval()
    return loaded


def _load_ours(path: Path, told: dict[str, Any]) -> Loaded:
    meta = checkpoint.read_meta(path)
    if "model_name" not in meta:
        raise CheckpointError(f"{path}: holds no model; expected a checkpoint or a run directory")
    name, asked = meta["model_name"], told.get("name")
    if asked not in (None, name):
        raise CheckpointError(f"{path}: a checkpoint of model={name}, not of model={asked}")
    model = restore(path, meta)
    if meta["tokenizer"] is not None:
        tokenizer = Tokenizer.from_json(meta["tokenizer"])
    else:  # a converted authors' file
        asked = (told.get("text") or {}).get("tokenizer")
        tokenizer = Tokenizer.from_bert(asked or model.view.tokenizer)
    run = meta.get("config", {})
    origin = {
        "checkpoint": str(path),
        "model": name,
        "data": (run.get("data") or {}).get("name"),
        "loss": run.get("loss", {}).get("name"),
        "seed": run.get("seed"),
        "select_on": run.get("select_on"),
        "best_updates": meta.get("best", {}).get("updates"),
        "trained_on": (run.get("data") or {}).get("name"),
        "seedless_hash": rundir.config_hash({**run, "seed": None}) if run else None,
    }
    return Loaded(
        model,
        tokenizer,
        path,
        run.get("data"),
        origin,
        precision=meta.get("precision", "fp32"),
        ties=run.get("ties", "pessimistic"),
        rerank=run.get("rerank", {}),
    )


def _load_official(path: Path, told: dict[str, Any]) -> Loaded:
    name = told.get("name") or recognise(path)
    model, imported = load_official(path, name, _told(told.get("text") or {}))
    origin = {"checkpoint": str(path), "model": name, "data": None, "official": True}
    origin |= {f"official/{key}": value for key, value in imported.info.items() if key != "opt"}
    return Loaded(model, Tokenizer.from_bert(model.view.tokenizer), path, None, origin)


def _told(text: dict[str, Any]) -> dict[str, Any]:
    """What the user says of a text encoder that an authors' file does not; 12 heads is no news."""
    told = {key: text[key] for key in ("name", "tokenizer") if text.get(key)}
    if text.get("num_attention_heads", 12) != 12:
        told["num_attention_heads"] = text["num_attention_heads"]
    return told
