"""What `eval.py` does: a checkpoint (ours, or an authors' file), a split, its numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from itr import checkpoint
from itr.data.layouts import DataConfig, open_split
from itr.data.picture_check import require_pictures
from itr.data.precomp import check_split
from itr.data.text import Tokenizer, build_table
from itr.errors import CheckpointError, ConfigError
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.rerank import RerankConfig
from itr.instantiate import check
from itr.models.base import RetrievalModel
from itr.models.build import restore
from itr.official.loading import load_official, recognise
from itr.results.tables import results_table, write_results
from itr.training import state
from itr.training.common import pick_device, pick_precision, prepare_data
from itr.training.config import PRECISIONS, TIES, RuntimeConfig
from itr.training.progress import Display, close_log, open_log


@dataclass
class EvalConfig:
    """The keys of ``conf/eval.yaml``."""

    checkpoint: str
    data: dict[str, Any]
    model: dict[str, Any]
    loss: dict[str, Any]
    runtime: RuntimeConfig
    rerank: dict[str, Any]
    split: str = "test"
    protocol: Any = None
    out: str | None = None
    device: str = "auto"
    precision: str | None = None
    ties: str | None = None


@dataclass
class Loaded:
    """A checkpoint, ready to be evaluated, and how it was evaluated in training."""

    model: RetrievalModel
    tokenizer: Tokenizer
    data: DataConfig
    origin: dict[str, Any]  # fields of the results that say where the weights are from
    precision: str = "fp32"
    ties: str = "pessimistic"
    rerank: dict[str, Any] = field(default_factory=dict)


def evaluate(values: dict[str, Any]) -> dict[str, Any]:
    """Evaluate a checkpoint on one split; print and return its flat results."""
    config: EvalConfig = check(values, EvalConfig, "")
    _check_options(config)
    path = state.resolve(Path(config.checkpoint))
    device = pick_device(config.device)
    console = Console()
    open_log(None, console)
    try:
        loaded = _load(path, config)
        model = loaded.model.to(device)
        evaluator = _evaluator(config, loaded, device)
        total = evaluator.data.n_images + evaluator.data.n_captions
        with Display(console, total) as display:
            found = evaluator.run(model, progress=display.evaluation)
    finally:
        close_log()
    results = {**loaded.origin, **{f"{config.split}/{key}": value for key, value in found.items()}}
    console.print(results_table(results, str(path)))
    if config.out:
        write_results(Path(config.out), results)
        console.print(f"results are in {config.out}")
    return results


def _check_options(config: EvalConfig) -> None:
    for key, value, known in (
        ("precision", config.precision, PRECISIONS),
        ("ties", config.ties, TIES),
    ):
        if value is not None and value not in known:
            raise ConfigError(f"{key}: '{value}' is unknown; expected one of {', '.join(known)}")


def _load(path: Path, config: EvalConfig) -> Loaded:
    if path.suffix != ".safetensors":
        return _load_official(path, config)
    meta = checkpoint.read_meta(path)
    name, asked = meta["model_name"], config.model.get("name")
    if asked not in (None, name):
        raise CheckpointError(f"{path}: a checkpoint of model={name}, not of model={asked}")
    model = restore(path, meta)
    data = _data_config(config, meta.get("config", {}).get("data"))
    if meta["tokenizer"] is not None:
        tokenizer = Tokenizer.from_json(meta["tokenizer"])
    else:  # a converted authors' file
        asked = (config.model.get("text") or {}).get("tokenizer")
        tokenizer = Tokenizer.from_bert(asked or model.view.tokenizer)
    run = meta.get("config", {})
    origin = {
        "checkpoint": str(path),
        "model": name,
        "data": data.name,
        "loss": run.get("loss", {}).get("name"),
        "seed": run.get("seed"),
        "select_on": run.get("select_on"),
        "best_updates": meta.get("best", {}).get("updates"),
    }
    return Loaded(
        model,
        tokenizer,
        data,
        origin,
        precision=meta.get("precision", "fp32"),
        ties=run.get("ties", "pessimistic"),
        rerank=run.get("rerank", {}),
    )


def _load_official(path: Path, config: EvalConfig) -> Loaded:
    name = config.model.get("name") or recognise(path)
    model, imported = load_official(path, name, _told(config.model.get("text") or {}))
    data = _data_config(config, None)
    origin = {"checkpoint": str(path), "model": name, "data": data.name, "official": True}
    origin |= {f"official/{key}": value for key, value in imported.info.items() if key != "opt"}
    return Loaded(model, Tokenizer.from_bert(model.view.tokenizer), data, origin)


def _told(text: dict[str, Any]) -> dict[str, Any]:
    """What the user says of a text encoder that an authors' file does not; 12 heads is no news."""
    told = {key: text[key] for key in ("name", "tokenizer") if text.get(key)}
    if text.get("num_attention_heads", 12) != 12:
        told["num_attention_heads"] = text["num_attention_heads"]
    return told


def _data_config(config: EvalConfig, stored: dict[str, Any] | None) -> DataConfig:
    """``data=...`` where it is chosen; else the checkpoint's, with what is not null replaced."""
    given = {key: value for key, value in config.data.items() if value is not None}
    chosen = "name" in given and "splits" in given
    if not chosen and stored is None:
        raise ConfigError(f"checkpoint={config.checkpoint}: holds no data set; type data=f30k")
    data: DataConfig = check(given if chosen else {**(stored or {}), **given}, DataConfig, "data")
    if config.protocol is not None:
        asked = [config.protocol] if isinstance(config.protocol, str) else list(config.protocol)
        data = dataclasses.replace(data, protocols=asked)
    return prepare_data(data)


def _evaluator(config: EvalConfig, loaded: Loaded, device: torch.device) -> Evaluator:
    model, tokenizer, data = loaded.model, loaded.tokenizer, loaded.data
    split = open_split(data, config.split, model.view.kind)
    check_split(split, data.cache)
    require_pictures(split, data.cache)
    width = None if split.regions is None else int(split.regions.shape[2])
    if width != model.facts.region_width:
        raise CheckpointError(
            f"{split.source}: regions are {width} wide, the checkpoint's model reads "
            f"{model.facts.region_width}; it was trained on other features"
        )
    if tokenizer.vocabulary_size > model.facts.vocabulary:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocabulary_size} ids, the checkpoint's text encoder "
            f"{model.facts.vocabulary}; name its own with model.text.tokenizer=DIR"
        )
    given = {key: value for key, value in config.rerank.items() if value is not None}
    return Evaluator(
        split,
        model.view,
        build_table(tokenizer, split.captions(), model.view.text_eval, Path(data.cache)),
        protocols=data.protocols,
        batch_size=config.runtime.eval_batch_size,
        ties=config.ties or loaded.ties,
        device=device,
        precision=pick_precision(config.precision or loaded.precision, device),
        strict=config.protocol is not None,
        workers=config.runtime.workers,
        rerank=check({**loaded.rerank, **given}, RerankConfig, "rerank"),
    )
