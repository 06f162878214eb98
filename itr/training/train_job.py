"""What `train.py` does with a composed configuration: one run, from files to results."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from itr import checkpoint, parallel
from itr.data import manifest
from itr.data.layouts import open_split, require_readers
from itr.data.leaks import check_leaks
from itr.data.loader import TrainLoader
from itr.data.picture_check import broken_pictures, left_out, require_pictures
from itr.data.precomp import check_same_width, check_split
from itr.data.records import Split
from itr.data.regions import keep_resident
from itr.data.second import open_second
from itr.data.text import Tokenizer, TokenTable, build_table, open_tokenizer
from itr.errors import Stopped
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.stored import file_hash
from itr.models import pairs
from itr.models.base import RetrievalModel
from itr.models.build import build_model, model_class, model_config, model_meta
from itr.results.hard import COLUMNS, hard_queries
from itr.results.pictures import Pictures
from itr.results.tables import results_table, write_results
from itr.results.tracker import Tracker, open_trackers
from itr.training import rundir, state
from itr.training.common import keep_queries, pick_device, pick_precision, prepare_data
from itr.training.config import TrainConfig, check_config
from itr.training.progress import Display, close_log, log, open_log
from itr.training.ranks import launch
from itr.training.recipe import departures, precision_line
from itr.training.setup import pick_workers, prepare_model, set_up_torch
from itr.training.signals import StopRequest
from itr.training.silent import SilentTracker
from itr.training.start import start_from, stored_tokenizer, without_hub
from itr.training.trainer import Trainer
from itr.view import Facts, TextView


@dataclass
class Parts:
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


def train(values: dict[str, Any]) -> dict[str, Any]:
    """Train one run to its end and return its results (at once if it is finished already).

    Raises a UserError for whatever the user can mend: before training wherever it can be known.
    """
    config = check_config(values)
    cuda = pick_device(config.device).type == "cuda"
    if config.devices * config.nodes > 1 and not parallel.launched():
        return launch(train, values, config.devices, config.nodes, cuda)
    with StopRequest() as stop:
        parallel.join(cuda, config.runtime.collective_timeout)
        results = _train(config, values, stop)
        stop.check("stopped by a signal when the run was finished")  # a multirun goes no farther
    return results


def _train(config: TrainConfig, values: dict[str, Any], stop: StopRequest) -> dict[str, Any]:
    console = Console(quiet=parallel.rank() > 0)
    folder, finished = parallel.decided(lambda: rundir.open_run(values))
    if finished is not None:
        console.print(f"{folder} is finished already; overwrite=true trains it again")
        console.print(results_table(finished, str(folder)))
        return finished
    set_up_torch(config)
    open_log(None, console)
    try:
        parts = build_parts(config, values)
        sizes = parallel.decided(lambda: state.check_space(folder, parts.model))
        with rundir.taken(folder):
            if parallel.rank() == 0:
                rundir.keep_manifest(folder, parts.manifest)
                rundir.describe_run(folder, values)
                open_log(folder / rundir.LOG, console)
            _announce(config, folder, parts, sizes)
            results = _run(config, values, folder, parts, console, stop)
        console.print(results_table(results, str(folder)))
        log.info("results and checkpoints are in %s", folder)
        return results
    finally:
        close_log()


def build_parts(config: TrainConfig, values: Mapping[str, Any]) -> Parts:
    """Open and check the data, build tokenizer and model."""
    with parallel.first_alone():  # what is made on first use is made once
        return _build_parts(config, values)


def _build_parts(config: TrainConfig, values: Mapping[str, Any]) -> Parts:
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    view = model_class(config.model).view_for(model_config(config.model))
    data = prepare_data(config.data)
    names = ("train", "test") if config.select_on == "test" else ("train", "val", "test")
    wants_second = view.second_text is not None
    world, asked = parallel.world_size(), config.runtime.workers
    workers = 0 if isinstance(asked, str) else asked  # auto: no more than there are tars
    require_readers(data, view.kind, wants_second, world, workers)  # before hours of listing
    splits = {
        name: open_split(data, name, view.kind, second=wants_second and name == "train")
        for name in names
    }
    for split in splits.values():
        check_split(split, data.cache)
    for name in names[1:]:
        splits[name] = require_pictures(splits[name], data.cache)
    check_same_width(list(splits.values()))
    check_leaks(splits)
    second = splits["train"].second_texts() if wants_second else []
    init = config.model.get("init")
    tokenizer = stored_tokenizer(init) or open_tokenizer(
        view, itertools.chain(splits["train"].texts, second)
    )
    facts = Facts(
        tokenizer.vocabulary_size, mask_id=tokenizer.mask_id, **_region_shape(splits["train"])
    )
    node, facts = without_hub(config.model, facts)
    model = build_model(node, values["loss"], facts).to(device)
    told = [] if init is None else start_from(model, config.model["name"], init)
    told += prepare_model(config, model)
    model.check_batch(config.batch_size // parallel.world_size())
    view = model.view  # pre-trained weights may have fewer positions than was thought

    def table(name: str, text: TextView) -> TokenTable:
        return build_table(tokenizer, splits[name].texts, text, Path(data.cache))

    broken = broken_pictures(splits["train"], data.cache)
    runtime = config.runtime
    resident = None
    if runtime.resident is not None:
        resident = keep_resident(splits["train"], device, runtime.resident)
    loader = TrainLoader(
        splits["train"],
        view,
        table("train", view.text),
        tokenizer,
        config.batch_size,
        config.seed,
        workers=pick_workers(runtime.workers, splits["train"], device),
        rank=parallel.rank(),
        world=world,
        pin_memory=device.type == "cuda",
        second=open_second(splits["train"], view, tokenizer, data.cache),
        late=device.type == "cuda",
        resident=resident,
        bucket=config.trainer.bucket,
        broken=broken,
    )
    evaluators = {
        name: Evaluator(
            splits[name],
            view,
            table(name, view.text_eval),
            protocols=data.protocols,
            batch_size=config.runtime.eval_batch_size,
            ties=config.ties,
            device=device,
            precision=precision,
            workers=pick_workers(runtime.workers, splits[name], device),
            rerank=config.rerank,
        )
        for name in names[1:]
    }
    held = {name: manifest.describe(split) for name, split in splits.items()}
    faults = left_out(splits["train"], broken)
    return Parts(
        splits, tokenizer, model, loader, evaluators, device, precision, told, held, faults
    )


def _run(
    config: TrainConfig,
    values: dict[str, Any],
    folder: Path,
    parts: Parts,
    console: Console,
    stop: StopRequest,
) -> dict[str, Any]:
    meta = {
        **model_meta(parts.model),
        "model_name": config.model["name"],
        "config": values,
        "loss": values["loss"],
        "tokenizer": parts.tokenizer.to_json(),
        "precision": parts.precision,
        "versions": rundir.environment(),
    }
    last: Path | None = None
    if config.resume == "auto":
        last = parallel.decided(lambda: state.find_last(folder / "checkpoints"))
    with _open_trackers(config, folder, values, last is not None) as tracker:
        trainer = Trainer(
            config,
            parts.model,
            parts.loader,
            parts.splits["train"],
            parts.evaluators[config.select_on],
            tracker,
            folder,
            meta,
            parts.device,
            parts.precision,
            stop,
        )
        if last is not None:
            trainer.resume(last)
            log.info("going on from update %d", trainer.clock.updates)
        started, first = time.perf_counter(), trainer.clock.updates
        with Display(console, trainer.clock.total_updates, first) as display:
            try:
                trainer.fit(display)
                seconds = time.perf_counter() - started
                best = _load_best(folder, parts.model)
                evaluator = parts.evaluators["test"]
                with trainer.explained(evaluating=True):
                    progress = stop.watching(display.evaluation)
                    test = evaluator.run(parts.model, progress, keep_queries=True)
            except Stopped as stopped:
                log.warning("%s", stopped.message)
                if stopped.preempted:
                    tracker.preempt()
                raise
        results = {
            **_identity(config, values, folder, parts.precision),
            **{f"data_hash_{name}": held["hash"] for name, held in parts.manifest.items()},
            "best_epoch": best["epoch"],
            "best_updates": best["updates"],
            "checkpoint_sha256": file_hash(folder / "checkpoints" / state.BEST),
            "updates": trainer.clock.updates,
            "train_seconds": round(seconds, 1),
            "resumed_at": first or None,
            "broken_pictures": trainer.broken.count(),
            **{f"{config.select_on}/{key}": value for key, value in best["results"].items()},
            **{f"test/{key}": value for key, value in test.items()},
        }
        numbers = {f"test/{k}": v for k, v in test.items() if isinstance(v, int | float)}
        tracker.log(numbers, step=trainer.clock.updates)
        data = prepare_data(config.data)
        if tracker.takes_tables and evaluator.queries is not None and evaluator.queries.ranks:
            pictures = Pictures(evaluator.data, data, "test")
            rows = hard_queries(evaluator.queries, evaluator.data, pictures)
            tracker.table("test/hard_queries", COLUMNS, rows)
        tracker.summary(results)
        if parallel.rank() == 0:
            keep_queries(evaluator, folder, "test", results, data)
            write_results(folder, results)
    return results


def _open_trackers(
    config: TrainConfig, folder: Path, values: dict[str, Any], resume: bool
) -> Tracker:
    """The run's trackers; only rank 0 has any."""
    if parallel.rank() > 0:
        return SilentTracker()
    return open_trackers(config.tracker, folder, values, resume=resume)


def _load_best(folder: Path, model: RetrievalModel) -> dict[str, Any]:
    """Put the chosen weights into ``model``; what validation said of them."""
    path = folder / "checkpoints" / state.BEST
    checkpoint.load_weights(model, checkpoint.read_tensors(path, "model/"), str(path))
    return checkpoint.read_meta(path)["best"]


def _region_shape(split: Split) -> dict[str, int]:
    if split.regions is None:
        return {}
    _, regions, width = split.regions.shape
    shape = {"region_width": int(width), "regions": int(regions)}
    return shape if split.guides is None else {**shape, "guide_width": split.guides.shape[1]}


def _identity(
    config: TrainConfig, values: Mapping[str, Any], folder: Path, precision: str
) -> dict[str, Any]:
    return {
        "run": folder.name,
        "model": config.model["name"],
        "data": config.data.name,
        "trained_on": config.data.name,
        "loss": config.loss.name,
        "task": config.task.name,
        "recipe": config.recipe.name,
        "seed": config.seed,
        "precision": precision,
        "select_on": config.select_on,
        "config_hash": rundir.config_hash(values),
        "seedless_hash": rundir.config_hash({**values, "seed": None}),  # shared by its seeds
    }


def _announce(config: TrainConfig, folder: Path, parts: Parts, sizes: tuple[int, int]) -> None:
    log.info("run directory: %s", folder)
    if config.recipe.name:
        log.info("recipe: %s (%s)", config.recipe.name, config.recipe.source)
    else:
        log.info("recipe: none published for this combination; the model's own defaults")
    for name, split in parts.splits.items():
        log.info(
            "%s: %d images, %d captions, %s layout, %s, content %s",
            name,
            split.n_images,
            split.n_captions,
            split.layout,
            split.source,
            parts.manifest[name]["hash"],
        )
        for note in split.notes:
            log.info("%s: %s", name, note)
    log.info("%s", precision_line(config.recipe, parts.precision))
    log.info(
        "%s with loss %s: %.1f M parameters, on %s, checkpoints: best %.0f MB, last %.0f MB",
        config.model["name"],
        config.loss.name,
        sum(p.numel() for p in parts.model.parameters()) / 1e6,
        parts.device,
        sizes[0] / 1e6,
        sizes[1] / 1e6,
    )
    for line in parts.told:
        log.info("%s", line)
    for line in [*pairs.notes(parts.model), *departures(config), *parts.warnings]:
        log.warning("%s", line)
    if config.select_on == "test":
        log.warning(
            "select_on=test: the checkpoint is chosen on the TEST split, as the authors did; "
            "these results are optimistic and marked so"
        )
