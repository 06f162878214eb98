"""From a checkpoint (ours, or an authors' file) to a model that can be evaluated."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from itr import checkpoint
from itr.data.text.tokenizer import Tokenizer
from itr.errors import CheckpointError, ConfigError
from itr.evaluation.stored_embeddings import file_hash
from itr.instantiate import check
from itr.jobs import run_dir
from itr.models.base import RetrievalModel
from itr.models.build import restore
from itr.official.load import importer_of, load_official, recognise
from itr.official.name_table import flat, told_of
from itr.training import checkpointing

log = logging.getLogger("itr")


@dataclass
class LoadedCheckpoint:
    """A checkpoint, ready to be evaluated, and how it was evaluated in training."""

    model: RetrievalModel
    tokenizer: Tokenizer
    path: Path
    data: dict[str, Any] | None  # the data node it was trained with
    origin: dict[str, Any]  # fields of the results that say where the weights are from
    precision: str = "fp32"
    ties: str = "pessimistic"
    rerank: dict[str, Any] = field(default_factory=dict)
    depth: dict[str, int] = field(default_factory=dict)  # the authors', by data set; "*": any other

    def rerank_on(self, data: str) -> dict[str, Any]:
        """Options of `RerankConfig` for the data set of that name: training's, or the authors'."""
        depth = self.depth.get(data, self.depth.get("*"))
        return {**({} if depth is None else {"k": depth}), **self.rerank}


def load_checkpoint(
    source: str | Path, told: dict[str, Any] | None = None, device: torch.device | str = "cpu"
) -> LoadedCheckpoint:
    """The model of ``source``: a run directory, a checkpoint of ours, or an authors' file.

    ``told`` is what the user says of the model, a part of its node: ``name``, what an authors' file
    does not tell (``text.tokenizer``, numbers of heads), and the size of the images, for which
    position embeddings are resized. Raises CheckpointError for a file that is missing, broken or of
    another method, and for a tokenizer that is not its own; ConfigError for any other option.
    """
    path, told = checkpointing.resolve(Path(source)), told or {}
    official = path.suffix != ".safetensors"
    loaded = _load_official(path, told) if official else _load_ours(path, told)
    ids, known = loaded.tokenizer.vocabulary_size, loaded.model.facts.vocabulary
    if ids > known:
        raise CheckpointError(
            f"{path}: the tokenizer has {ids} ids, the checkpoint's text encoder {known}; name its "
            "own with model.text.tokenizer=DIR"
        )
    if (size := flat(told).get(loaded.model.size_key or "")) is not None:
        loaded.model = resized(loaded.model, size)
        loaded.origin["image_size"] = size
    loaded.origin["checkpoint_sha256"] = file_hash(path)
    loaded.model.to(device).eval()
    return loaded


def _load_ours(path: Path, told: dict[str, Any]) -> LoadedCheckpoint:
    meta = checkpoint.read_meta(path)
    if "model_name" not in meta:
        raise CheckpointError(f"{path}: holds no model; expected a checkpoint or a run directory")
    name, asked = meta["model_name"], told.get("name")
    if asked not in (None, name):
        raise CheckpointError(f"{path}: a checkpoint of model={name}, not of model={asked}")
    model = restore(path, meta)
    converted = meta["tokenizer"] is None  # an authors' file
    _require_known(path, told, model, ["text.tokenizer"] if converted else [])
    if converted:
        tokenizer = Tokenizer.from_files(flat(told).get("text.tokenizer") or model.view.tokenizer)
    else:
        tokenizer = Tokenizer.from_json(meta["tokenizer"])
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
        "seedless_hash": run_dir.config_hash({**run, "seed": None}) if run else None,
    }
    return LoadedCheckpoint(
        model,
        tokenizer,
        path,
        run.get("data"),
        origin,
        precision=meta.get("precision", "fp32"),
        ties=run.get("tie_break", "pessimistic"),
        rerank=run.get("rerank", {}),
        depth=meta.get("depth", {}),
    )


def _load_official(path: Path, told: dict[str, Any]) -> LoadedCheckpoint:
    name = told.get("name") or recognise(path)
    importer, cls = importer_of(name)
    _require_known(path, told, cls, importer.TOLD)
    model, imported = load_official(path, name, told_of(importer.TOLD, told))
    for line in imported.report.lines(path):
        log.info("%s", line)
    origin = {"checkpoint": str(path), "model": name, "data": None, "official": True}
    origin |= {f"official/{key}": value for key, value in imported.info.items() if key != "opt"}
    tokenizer = Tokenizer.from_files(model.view.tokenizer)
    return LoadedCheckpoint(model, tokenizer, path, None, origin, depth=imported.depth)


def _require_known(
    path: Path,
    told: dict[str, Any],
    model: RetrievalModel | type[RetrievalModel],
    options: Iterable[str],
) -> None:
    """Raises ConfigError if ``told`` says more than ``options``, the method's name and the size of
    its images."""
    known = [*options, *([model.size_key] if model.size_key else [])]
    for key, value in flat(told).items():
        if value is not None and key not in ("name", "_target_", *known):
            can = ", ".join(f"model.{option}" for option in known) or "nothing of the model"
            raise ConfigError(
                f"model.{key}={value}: the model is that of checkpoint={path}, and an evaluation "
                f"cannot change this of it; expected {can}. Leave model.{key} out"
            )


def resized(model: RetrievalModel, size: Any) -> RetrievalModel:
    """``model`` for images of ``size`` pixels a side, its position embeddings interpolated.

    Raises ConfigError for sizes that its image tower cannot take.
    """
    node = OmegaConf.create(dataclasses.asdict(model.config))
    OmegaConf.update(node, str(model.size_key), size)
    config = check(node, type(model.config), "model")
    other = type(model)(config, model.slots, model.weights, model.facts)
    try:
        other.load_state_dict(other.fit_weights(model.state_dict()))
    except RuntimeError as error:
        raise ConfigError(
            f"model.{model.size_key}={size}: the position embeddings of this image tower cannot be "
            f"resized; leave model.{model.size_key} out"
        ) from error
    return other
