"""Loads a checkpoint, ours or an authors' file, as a model that can be evaluated."""

from __future__ import annotations

import dataclasses
import functools
import logging
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from itr import checkpoint
from itr.data.text.known_tokenizers import tokenizer_from_json
from itr.data.text.tokenizer import Tokenizer
from itr.errors import CheckpointError, ConfigError
from itr.evaluation.stored_embeddings import file_hash
from itr.instantiate import check
from itr.jobs import run_dir
from itr.models.adapters import adapt
from itr.models.base import Model, RetrievalModel
from itr.models.build import restore
from itr.official.load import importer_of, load_official, recognize
from itr.official.name_table import extra_options, flat
from itr.training.checkpointing import resolve_checkpoint

log = logging.getLogger("itr")


@dataclass
class LoadedCheckpoint:
    """A checkpoint ready to be evaluated, and the settings of its training's evaluation."""

    model: Model
    tokenizer: Tokenizer
    path: Path
    data: dict[str, Any] | None  # the data node of its training
    origin: dict[str, Any]  # result fields about the source of the weights
    precision: str = "fp32"
    ties: str = "pessimistic"
    rerank: dict[str, Any] = field(default_factory=dict)
    depth: dict[str, int] = field(default_factory=dict)  # authors' rerank.k by dataset ("*": other)
    task: dict[str, Any] = field(default_factory=dict)  # the task node of its training
    task_state: dict[str, Any] = field(default_factory=dict)  # see `itr.tasks.task.Task.learn`

    def task_node(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The node of the task in which it is evaluated: the one of ``options``, else its own.

        Options of the same task replace those of training.
        """
        own = self.task or {"name": self.model.tasks[0]}
        if own["name"] == "pretrain":  # measured by retrieval
            own = {"name": "retrieval"}
        if options.get("name") in (None, own["name"]):
            return {**own, **options}
        return dict(options)

    @property
    def retriever(self) -> RetrievalModel:
        """The model as one that embeds images and captions.

        Raises CheckpointError for a checkpoint of another task.
        """
        if not isinstance(self.model, RetrievalModel):
            raise CheckpointError(
                f"{self.path}: a {type(self.model).__name__}, which embeds neither images nor "
                "captions; expected a checkpoint of task=retrieval or task=pretrain"
            )
        return self.model

    def rerank_on(self, data: str) -> dict[str, Any]:
        """Options of `RerankConfig` for the dataset ``data``: training's, else the authors'."""
        depth = self.depth.get(data, self.depth.get("*"))
        return {**({} if depth is None else {"k": depth}), **self.rerank}


def load_checkpoint(
    source: str | Path,
    options: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    typed: bool = True,
    verify: bool = True,
) -> LoadedCheckpoint:
    """The model of ``source``: a run directory, a checkpoint of ours, or an authors' file.

    ``options`` are the options of the model node that the user passed. Allowed are ``name``, what
    an authors' file does not contain (``text.tokenizer``, numbers of heads), and the image size,
    for which position embeddings are resized. Only what the user ``typed`` may be downloaded; a
    name in a file is looked up on this machine. With ``verify`` the checksums of a checkpoint of
    ours are compared. Raises CheckpointError for a file that is missing, damaged or of another
    method, and for a tokenizer that does not match; ConfigError for any other option.
    """
    path, options = resolve_checkpoint(Path(source)), options or {}
    official = path.suffix != ".safetensors"
    if official:
        loaded = _load_official(path, options, typed)
    else:
        loaded = _load_ours(path, options, typed, verify)
    ids, embeddings = loaded.tokenizer.vocabulary_size, loaded.model.facts.vocabulary
    if ids > embeddings:
        raise CheckpointError(
            f"{path}: the tokenizer has {ids} ids, but the checkpoint's text encoder only "
            f"{embeddings}; pass the tokenizer it was trained with, model.text.tokenizer=DIR"
        )
    if (size := flat(options).get(loaded.model.size_key or "")) is not None:
        loaded.model = resized(loaded.model, size)
        loaded.origin["image_size"] = size
    loaded.origin["checkpoint_sha256"] = file_hash(path)
    loaded.model.to(device).eval()
    return loaded


def _load_ours(path: Path, options: dict[str, Any], typed: bool, verify: bool) -> LoadedCheckpoint:
    meta = checkpoint.read_model_meta(path)
    name = meta["model_name"]
    if options.get("name") not in (None, name):
        raise CheckpointError(
            f"{path}: a checkpoint of model={name}, not of model={options['name']}; leave model= "
            "out, or pass another checkpoint"
        )
    model = restore(path, meta, verify)
    converted = meta["tokenizer"] is None  # from an authors' file
    _require_allowed(path, options, model, ["text.tokenizer"] if converted else [])
    if converted:
        given = flat(options).get("text.tokenizer")
        tokenizer = _open_tokenizer(path, given or model.view.tokenizer, bool(given) and typed)
    else:
        tokenizer = tokenizer_from_json(meta["tokenizer"])
    run = meta["config"]
    tower = meta["model_config"].get("tower")
    origin = {
        "checkpoint": str(path),
        "model": name,
        **({} if tower is None else {"tower": tower}),
        "data": (run.get("data") or {}).get("name"),
        "loss": (run.get("loss") or {}).get("name"),
        "seed": run.get("seed"),
        "select_on": run.get("select_on"),
        "best_updates": meta["best"].get("updates"),
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
        ties=run.get("tie_break") or "pessimistic",
        rerank=run.get("rerank") or {},
        depth=meta["depth"],
        task=run.get("task") or {},
        task_state=meta["task_state"],
    )


def _load_official(path: Path, options: dict[str, Any], typed: bool) -> LoadedCheckpoint:
    name = options.get("name") or recognize(path)
    importer, cls = importer_of(name)
    _require_allowed(path, options, cls, importer.EXTRA_OPTIONS)
    model, imported = load_official(path, name, extra_options(importer.EXTRA_OPTIONS, options))
    for line in imported.report.lines(path):
        log.info("%s", line)
    origin = {"checkpoint": str(path), "model": name, "data": None, "official": True}
    origin |= {f"official/{key}": value for key, value in imported.info.items() if key != "opt"}
    tokenizer = _open_tokenizer(path, model.view.tokenizer, typed)
    return LoadedCheckpoint(model, tokenizer, path, None, origin, depth=imported.depth)


def _open_tokenizer(path: Path, name_or_dir: str, download: bool) -> Tokenizer:
    """The tokenizer ``name_or_dir`` for the checkpoint ``path``, which contains none."""
    try:
        return Tokenizer.from_files(name_or_dir, download)
    except ConfigError as error:
        if download:
            raise
        raise CheckpointError(
            f"{path}: contains no tokenizer, and the one that it names, '{name_or_dir}', is not on "
            "this machine; a name in a file is never downloaded. Pass the tokenizer it was trained "
            f"with, model.text.tokenizer=NAME_OR_DIR ({error})"
        ) from error


def _require_allowed(
    path: Path,
    options: dict[str, Any],
    model: Model | type[Model],
    extra: Iterable[str],
) -> None:
    """Raises ConfigError for ``options`` other than ``extra``, the name and the image size."""
    allowed = [*extra, *([model.size_key] if model.size_key else [])]
    for key, value in flat(options).items():
        if value is not None and key not in ("name", "_target_", *allowed):
            choices = ", ".join(f"model.{option}" for option in allowed) or "no model option"
            raise ConfigError(
                f"model.{key}={value}: checkpoint={path} defines the model, and an evaluation "
                f"cannot change this option; expected {choices}. Leave model.{key} out"
            )


def resized(model: Model, size: Any) -> Model:
    """``model`` for images of ``size`` x ``size`` pixels, with interpolated position embeddings.

    Raises ConfigError for sizes that its image encoder does not support.
    """
    node = dataclasses.asdict(model.config)
    *groups, option = str(model.size_key).split(".")
    functools.reduce(operator.getitem, groups, node)[option] = size
    config = check(node, type(model.config), "model")
    other = type(model)(config, model.slots, model.weights, model.facts)
    adapt(other)
    try:
        other.load_state_dict(other.fit_weights(model.state_dict()))
    except RuntimeError as error:
        raise ConfigError(
            f"model.{model.size_key}={size}: the position embeddings of this image encoder cannot "
            f"be resized; leave model.{model.size_key} out"
        ) from error
    return other
