"""Opens the split that a checkpoint is evaluated on, and makes the evaluator that reads it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from itr.data.checks.decodable import require_decodable
from itr.data.layouts.region_arrays import check_regions_finite
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.records import Split
from itr.data.text.token_cache import tokenize_cached
from itr.data.text.token_table import truncation_notes
from itr.errors import CheckpointError, ConfigError
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.rerank import RerankConfig
from itr.instantiate import check
from itr.jobs.assemble import prepare_data
from itr.jobs.eval.checkpoint_data import data_of_checkpoint
from itr.jobs.eval.config import EvalConfig
from itr.jobs.load_checkpoint import LoadedCheckpoint
from itr.training.device import resolve_precision
from itr.training.process_setup import resolve_num_workers

log = logging.getLogger("itr")


def data_config(config: EvalConfig, loaded: LoadedCheckpoint) -> DataConfig:
    """The dataset of ``data=NAME`` if one was chosen, else the checkpoint's.

    Options that are not null replace the checkpoint's. Raises ConfigError if neither names one.
    """
    options = {key: value for key, value in config.data.items() if value is not None}
    chosen = "name" in options and "splits" in options
    if not chosen and loaded.data is None:
        raise ConfigError(
            f"checkpoint={loaded.path}: the file names no dataset; pass one, e.g. data=f30k"
        )
    data: DataConfig
    if chosen:
        data = prepare_data(check(options, DataConfig, "data"))
    else:
        data = data_of_checkpoint(loaded.path, loaded.data or {}, options)
    loaded.origin["data"] = data.name
    return data if config.protocols is None else replace(data, protocols=config.protocols)


def make_evaluator(
    config: EvalConfig,
    loaded: LoadedCheckpoint,
    name: str,
    device: torch.device,
    bank: bool = False,
) -> Evaluator:
    """An evaluator of the split ``name`` or, for a query ``bank``, of its first images.

    Raises CheckpointError if the data does not fit the model.
    """
    data = data_config(config, loaded)
    split = open_retrieval_split(config, data, name, loaded.model.view.kind, bank)
    evaluator = evaluator_of(config, loaded, data, split, device, ["full"] if bank else None)
    for line in truncation_notes(name, evaluator.tokens, evaluator.view.text_eval):
        log.warning("%s", line)
    return evaluator


def evaluator_of(
    config: EvalConfig,
    loaded: LoadedCheckpoint,
    data: DataConfig,
    split: Split,
    device: torch.device,
    protocols: Sequence[str] | None = None,
) -> Evaluator:
    """An evaluator of ``split`` of ``data`` for ``loaded``.

    Its ``protocols`` are those of the data, or the given ones. Raises CheckpointError if the split
    does not fit the model.
    """
    model = loaded.model
    width = None if split.regions is None else int(split.regions.shape[2])
    if width != model.facts.region_width:
        raise CheckpointError(
            f"{split.source}: region features have width {width}, but the model in "
            f"{loaded.path} was trained on width {model.facts.region_width}; pass the features it "
            "was trained on"
        )
    rerank = {**loaded.rerank_on(data.name), **config.typed_rerank}
    text = model.view.text_eval
    tokens = tokenize_cached(loaded.tokenizer, split.texts, text, Path(data.cache))
    return Evaluator(
        split,
        model.view,
        tokens,
        protocols=protocols or data.protocols,
        batch_size=config.runtime.eval_batch_size,
        tie_break=config.tie_break or loaded.ties,
        device=device,
        precision=resolve_precision(config.precision or loaded.precision, device),
        strict=config.protocol is not None and protocols is None,
        workers=resolve_num_workers(config.runtime.num_workers, split, device),
        rerank=check(rerank, RerankConfig, "rerank"),
    )


def open_retrieval_split(
    config: EvalConfig, data: DataConfig, name: str, kind: str, bank: bool = False
) -> Split:
    """The split ``name`` of ``data`` in the form ``kind``, without images that cannot be decoded.

    For a query ``bank``: its first images. Raises as `open_split`.
    """
    split = open_split(data, name, kind)
    if bank:
        return replace(split, records=split.records[: config.hubness.bank_size])
    check_regions_finite(split, data.cache)
    notes, split = len(split.notes), require_decodable(split, data.cache)
    for note in split.notes[notes:]:
        log.warning("%s: %s", name, note)
    return split
