"""Opens, checks and builds everything that a training run needs, before anything is written."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from itr import parallel
from itr.data.checks import fingerprint
from itr.data.checks.decodable import (
    broken_image_warnings,
    find_broken_images,
    require_decodable,
)
from itr.data.checks.leaks import check_leaks
from itr.data.config import DataConfig
from itr.data.images.regions import cache_regions
from itr.data.layouts.region_arrays import check_regions_finite, check_same_width
from itr.data.layouts.registry import require_enough_shards
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.loading.second_text import open_second_texts
from itr.data.records import Split
from itr.data.text.known_tokenizers import open_tokenizer
from itr.data.text.token_cache import tokenize_cached
from itr.data.text.token_table import TokenTable, truncation_notes
from itr.data.text.tokenizer import Tokenizer
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.split_evaluator import SplitEvaluator
from itr.instantiate import build
from itr.jobs.init_weights import initialize_from, skip_pretrained, stored_tokenizer
from itr.models.adapters import adapt
from itr.models.base import Model, RetrievalModel
from itr.models.build import build_model, model_class, model_config
from itr.tasks.known_tasks import build_task
from itr.tasks.task import EvaluationSettings, Task
from itr.training.config import TrainConfig
from itr.training.device import resolve_device, resolve_precision
from itr.training.process_setup import prepare_model, resolve_num_workers
from itr.view import Facts, TextView, View


@dataclass
class RunComponents:
    """The parts of a run. Building them has checked them."""

    splits: dict[str, Split]
    tokenizer: Tokenizer
    model: Model
    loader: TrainLoader
    evaluators: dict[str, SplitEvaluator]
    task: Task
    device: torch.device
    precision: str
    messages: list[str]  # about the initial weights and the model's wrappers, for the log
    manifest: dict[str, Any]  # content of each split
    warnings: list[str]  # about the data


def assemble_run(config: TrainConfig, values: Mapping[str, Any]) -> RunComponents:
    """Build the components of the run that ``config``, the checked form of ``values``, describes.

    Raises a UserError for data, weights and options that cannot be used.
    """
    with parallel.rank0_first():  # rank 0 makes what is cached; the others read it
        return _assemble(config, values)


def prepare_data(data: DataConfig) -> DataConfig:
    """Make a dataset that is generated on first use; returns ``data`` with its actual ``root``."""
    if data.prepare is None:
        return data
    root = build({**data.prepare, "parent": data.root}, "data.prepare")
    return dataclasses.replace(data, root=str(root), prepare=None)


def rerank_warnings(evaluator: SplitEvaluator, model: Model) -> list[str]:
    """A warning if ``rerank.k`` exceeds the number of candidates of a query."""
    if not isinstance(evaluator, Evaluator) or not isinstance(model, RetrievalModel):
        return []
    data, k = evaluator.data, evaluator.rerank.k
    if not evaluator.reranks(model):
        return []
    if k <= min(data.n_images, data.n_captions):
        return []
    return [
        f"rerank.k={k}: {data.source} has {data.n_images} images and {data.n_captions} captions; "
        f"{min(k, data.n_captions)} captions per image and {min(k, data.n_images)} images per "
        "caption are re-ranked"
    ]


def _assemble(config: TrainConfig, values: Mapping[str, Any]) -> RunComponents:
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    data = prepare_data(config.data)
    options, weights = model_config(config.model), config.loss.weights
    view = model_class(config.model).training_view(options, weights)
    task = build_task(config.task)
    splits = _open_splits(config, task, data, view)
    tokenizer, model, messages = _build_model(config, values, view, splits["train"], device)
    broken = find_broken_images(splits["train"], data.cache)
    view = model.view  # pretrained weights may have fewer positions than configured

    truncated: list[str] = []

    def table(name: str, text: TextView) -> TokenTable:
        made = tokenize_cached(tokenizer, splits[name].texts, text, Path(data.cache))
        truncated.extend(truncation_notes(name, made, text))
        return made

    train = splits["train"]
    second = open_second_texts(train, view, tokenizer, data.cache)
    cached = None
    if config.runtime.cache_on_device is not None:
        cached = cache_regions(train, device, config.runtime.cache_on_device)
    learned = task.learn(train, data)
    items = task.batch_fields(train, view, tokenizer)
    train_data = TrainData(train, view, table("train", view.text), tokenizer, second, cached, items)
    loader = TrainLoader(train_data, _loader_options(config, train, device), broken)
    evaluators = {
        name: task.evaluator(
            split,
            EvaluationSettings(
                view,
                table(name, view.text_eval),
                tokenizer,
                batch_size=config.runtime.eval_batch_size,
                device=device,
                precision=precision,
                workers=resolve_num_workers(config.runtime.num_workers, split, device),
                protocols=tuple(data.protocols),
                tie_break=config.tie_break,
                rerank=config.rerank,
            ),
        )
        for name, split in splits.items()
        if name != "train"
    }
    return RunComponents(
        splits=splits,
        tokenizer=tokenizer,
        model=model,
        loader=loader,
        evaluators=evaluators,
        task=task,
        device=device,
        precision=precision,
        messages=[*messages, *learned],
        manifest={name: fingerprint.describe(split) for name, split in splits.items()},
        warnings=[
            *broken_image_warnings(splits["train"], broken),
            *truncated,
            *(line for e in evaluators.values() for line in rerank_warnings(e, model)),
        ],
    )


def _loader_options(config: TrainConfig, train: Split, device: torch.device) -> LoaderOptions:
    runtime = config.runtime
    return LoaderOptions(
        config.batch_size,
        config.seed,
        num_workers=resolve_num_workers(runtime.num_workers, train, device),
        rank=parallel.rank(),
        world_size=parallel.world_size(),
        pin_memory=device.type == "cuda",
        finish_on_device=device.type == "cuda",
        length_bucket_batches=config.trainer.length_bucket_batches,
    )


def _open_splits(config: TrainConfig, task: Task, data: DataConfig, view: View) -> dict[str, Split]:
    """The splits that a run reads, the training split first, checked against each other."""
    names = ("train", "test") if config.select_on == "test" else ("train", "val", "test")
    second_text = view.second_text is not None
    setting = config.runtime.num_workers
    workers = 0 if isinstance(setting, str) else setting  # auto never exceeds the number of tars
    if task.reads_pairs:  # before listing tars, which may take hours
        require_enough_shards(data, view.kind, second_text, parallel.world_size(), workers)
    splits = {
        name: task.open_split(data, name, view, second=second_text and name == "train")
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
) -> tuple[Tokenizer, Model, list[str]]:
    """Tokenizer, model on ``device``, and messages about its initial weights and wrappers."""
    second = train.second_texts() if view.second_text is not None else []
    init = config.model.get("init")
    tokenizer = stored_tokenizer(init) or open_tokenizer(view, itertools.chain(train.texts, second))
    facts = Facts(tokenizer.vocabulary_size, mask_id=tokenizer.mask_id, **_region_shape(train))
    node, facts = skip_pretrained(config.model, facts)
    model = build_model(node, values["loss"], facts).to(device)
    messages = [] if init is None else initialize_from(model, config.model["name"], init)
    messages += adapt(model)
    messages += prepare_model(config, model)
    model.check_batch(config.batch_size // parallel.world_size())
    return tokenizer, model, messages


def _region_shape(train: Split) -> dict[str, int]:
    if train.regions is None:
        return {}
    _, regions, width = train.regions.shape
    shape = {"region_width": int(width), "regions": int(regions)}
    return shape if train.guides is None else {**shape, "guide_width": train.guides.shape[1]}
