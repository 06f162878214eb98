"""What a training run is made of: opened, checked and built before anything is written."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from itr import parallel
from itr.data.checks import fingerprint
from itr.data.checks.decodable import broken_image_warnings, find_broken_images, require_decodable
from itr.data.checks.leaks import check_leaks
from itr.data.config import DataConfig
from itr.data.images.regions import cache_regions
from itr.data.layouts.region_arrays import check_regions_finite, check_same_width
from itr.data.layouts.registry import open_split, require_enough_shards
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.loading.second_text import open_second_texts
from itr.data.records import Split
from itr.data.text.token_cache import tokenize_cached
from itr.data.text.token_table import TokenTable
from itr.data.text.tokenizer import Tokenizer, open_tokenizer
from itr.evaluation.evaluator import Evaluator
from itr.jobs.init_weights import initialize_from, skip_pretrained, stored_tokenizer
from itr.models.base import RetrievalModel
from itr.models.build import build_model, model_class, model_config
from itr.training.config import TrainConfig
from itr.training.device import prepare_data, resolve_device, resolve_precision
from itr.training.process_setup import prepare_model, resolve_num_workers
from itr.view import Facts, TextView, View


@dataclass
class RunComponents:
    """All that a run is made of; built, and thereby checked, before anything is written."""

    splits: dict[str, Split]
    tokenizer: Tokenizer
    model: RetrievalModel
    loader: TrainLoader
    evaluators: dict[str, Evaluator]
    device: torch.device
    precision: str
    told: list[str]  # of the weights that training starts from, for the log
    manifest: dict[str, Any]  # what each split holds
    warnings: list[str]  # of the data


def assemble_run(config: TrainConfig, values: Mapping[str, Any]) -> RunComponents:
    """Open and check the data, build tokenizer and model."""
    with parallel.rank0_first():  # what is made on first use is made once
        return _build_parts(config, values)


def _build_parts(config: TrainConfig, values: Mapping[str, Any]) -> RunComponents:
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    data = prepare_data(config.data)
    view = model_class(config.model).view_for(model_config(config.model))
    splits = _open_splits(config, data, view)
    tokenizer, model, told = _build_model(config, values, view, splits["train"], device)
    cache = Path(data.cache)
    broken = find_broken_images(splits["train"], data.cache)

    def table(name: str, text: TextView) -> TokenTable:
        return tokenize_cached(tokenizer, splits[name].texts, text, cache)

    view = model.view  # pre-trained weights may have fewer positions than was thought
    runtime, train = config.runtime, splits["train"]
    cached_regions = None
    if runtime.cache_on_device is not None:
        cached_regions = cache_regions(train, device, runtime.cache_on_device)
    loader_options = LoaderOptions(
        config.batch_size,
        config.seed,
        num_workers=resolve_num_workers(runtime.num_workers, train, device),
        rank=parallel.rank(),
        world_size=parallel.world_size(),
        pin_memory=device.type == "cuda",
        finish_on_device=device.type == "cuda",
        length_bucket_batches=config.trainer.length_bucket_batches,
    )
    second = open_second_texts(train, view, tokenizer, data.cache)
    tokens = table("train", view.text)
    train_data = TrainData(train, view, tokens, tokenizer, second, cached_regions)
    loader = TrainLoader(train_data, loader_options, broken)
    evaluators = {
        name: Evaluator(
            split,
            view,
            table(name, view.text_eval),
            protocols=data.protocols,
            batch_size=runtime.eval_batch_size,
            tie_break=config.tie_break,
            device=device,
            precision=precision,
            workers=resolve_num_workers(runtime.num_workers, split, device),
            rerank=config.rerank,
        )
        for name, split in splits.items()
        if name != "train"
    }
    held = {name: fingerprint.describe(split) for name, split in splits.items()}
    faults = broken_image_warnings(train, broken)
    return RunComponents(
        splits, tokenizer, model, loader, evaluators, device, precision, told, held, faults
    )


def _open_splits(config: TrainConfig, data: DataConfig, view: View) -> dict[str, Split]:
    """The splits that a run reads, the training split first, and checked together."""
    names = ("train", "test") if config.select_on == "test" else ("train", "val", "test")
    wants_second = view.second_text is not None
    asked = config.runtime.num_workers
    workers = 0 if isinstance(asked, str) else asked  # auto: no more than there are tars
    # Before hours of listing:
    require_enough_shards(data, view.kind, wants_second, parallel.world_size(), workers)
    splits = {
        name: open_split(data, name, view.kind, second=wants_second and name == "train")
        for name in names
    }
    for split in splits.values():
        check_regions_finite(split, data.cache)
    for name in names[1:]:
        splits[name] = require_decodable(splits[name], data.cache)
    check_same_width(list(splits.values()))
    check_leaks(splits)
    return splits


def _build_model(
    config: TrainConfig, values: Mapping[str, Any], view: View, train: Split, device: torch.device
) -> tuple[Tokenizer, RetrievalModel, list[str]]:
    """Tokenizer and model on ``device``, and what is to be told of its first weights."""
    second = train.second_texts() if view.second_text is not None else []
    init = config.model.get("init")
    tokenizer = stored_tokenizer(init) or open_tokenizer(view, itertools.chain(train.texts, second))
    facts = Facts(tokenizer.vocabulary_size, mask_id=tokenizer.mask_id, **_region_shape(train))
    node, facts = skip_pretrained(config.model, facts)
    model = build_model(node, values["loss"], facts).to(device)
    told = [] if init is None else initialize_from(model, config.model["name"], init)
    told += prepare_model(config, model)
    model.check_batch(config.batch_size // parallel.world_size())
    return tokenizer, model, told


def _region_shape(split: Split) -> dict[str, int]:
    if split.regions is None:
        return {}
    _, regions, width = split.regions.shape
    shape = {"region_width": int(width), "regions": int(regions)}
    return shape if split.guides is None else {**shape, "guide_width": split.guides.shape[1]}
