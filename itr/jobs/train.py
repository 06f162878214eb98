"""What `train.py` does with a composed configuration: one run, from files to results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from itr import checkpoint, parallel
from itr.errors import Stopped
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.stored_embeddings import file_hash
from itr.jobs import run_dir
from itr.jobs.assemble import RunComponents, assemble_run
from itr.jobs.launch.workers import launch
from itr.jobs.recipe_notes import departures, precision_line
from itr.models import compatibility
from itr.models.base import RetrievalModel
from itr.models.build import model_meta
from itr.plugins import trusts_configuration
from itr.results.gallery.thumbnails import Thumbnails
from itr.results.hard_queries import COLUMNS, hard_queries
from itr.results.results_file import write_results
from itr.results.terminal_tables import results_table
from itr.results.trackers.tracker import NullTracker, Tracker, open_trackers
from itr.training import checkpointing
from itr.training.config import TrainConfig, check_config
from itr.training.console import Display, close_log, log, open_log
from itr.training.device import keep_queries, prepare_data, resolve_device
from itr.training.process_setup import configure_torch
from itr.training.signals import StopRequest
from itr.training.trainer import Trainer


@trusts_configuration
def train(values: dict[str, Any]) -> dict[str, Any]:
    """Train one run to its end and return its results (at once if it is finished already).

    Raises a UserError for whatever the user can mend: before training wherever it can be known.
    """
    config = check_config(values)
    cuda = resolve_device(config.device).type == "cuda"
    if config.devices * config.nodes > 1 and not parallel.is_launched():
        return launch(train, values, config.devices, config.nodes, cuda)
    with StopRequest() as stop:
        parallel.init(cuda, config.runtime.collective_timeout)
        results = _train(config, values, stop)
        stop.check("stopped by a signal when the run was finished")  # a multirun goes no farther
    return results


def _train(config: TrainConfig, values: dict[str, Any], stop: StopRequest) -> dict[str, Any]:
    console = Console(quiet=parallel.rank() > 0)
    folder, finished = parallel.broadcast_from_rank0(lambda: run_dir.open_run(values))
    if finished is not None:
        console.print(f"{folder} is finished already; overwrite=true trains it again")
        console.print(results_table(finished, str(folder)))
        return finished
    configure_torch(config)
    open_log(None, console)
    try:
        parts = assemble_run(config, values)
        sizes = parallel.broadcast_from_rank0(
            lambda: checkpointing.check_space(folder, parts.model)
        )
        with run_dir.taken(folder):
            if parallel.rank() == 0:
                run_dir.write_manifest(folder, parts.manifest)
                run_dir.write_config(folder, values)
                open_log(folder / run_dir.LOG, console)
            _announce(config, folder, parts, sizes)
            results = _run(config, values, folder, parts, console, stop)
        console.print(results_table(results, str(folder)))
        log.info("results and checkpoints are in %s", folder)
        return results
    finally:
        close_log()


def _run(
    config: TrainConfig,
    values: dict[str, Any],
    folder: Path,
    parts: RunComponents,
    console: Console,
    stop: StopRequest,
) -> dict[str, Any]:
    """Train, test the chosen checkpoint, keep what came of it."""
    last: Path | None = None
    if config.resume == "auto":
        last = parallel.broadcast_from_rank0(
            lambda: checkpointing.find_last(folder / "checkpoints")
        )
    with _open_trackers(config, folder, values, last is not None) as tracker:
        trainer = Trainer(
            config,
            parts.model,
            parts.loader,
            parts.splits["train"],
            parts.evaluators[config.select_on],
            tracker,
            folder,
            _meta(config, values, parts),
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
                with trainer.explained(evaluating=True):
                    progress = stop.watching(display.evaluation)
                    test = parts.evaluators["test"].run(parts.model, progress, with_query_log=True)
            except Stopped as stopped:
                log.warning("%s", stopped.message)
                if stopped.preempted:
                    tracker.preempt()
                raise
        results = {
            **_identity(config, values, folder, parts),
            "best_epoch": best["epoch"],
            "best_updates": best["updates"],
            "checkpoint_sha256": file_hash(folder / "checkpoints" / checkpointing.BEST),
            "updates": trainer.clock.updates,
            "train_seconds": round(seconds, 1),
            "resumed_at": first or None,
            "broken_pictures": trainer.broken.synchronize(),
            **{f"{config.select_on}/{key}": value for key, value in best["results"].items()},
            **{f"test/{key}": value for key, value in test.items()},
        }
        _keep(config, folder, parts.evaluators["test"], tracker, results)
    return results


def _meta(config: TrainConfig, values: dict[str, Any], parts: RunComponents) -> dict[str, Any]:
    """What a checkpoint says of itself, so that nothing else is needed to use it."""
    return {
        **model_meta(parts.model),
        "model_name": config.model["name"],
        "config": values,
        "loss": values["loss"],
        "tokenizer": parts.tokenizer.to_json(),
        "precision": parts.precision,
        "versions": run_dir.environment(),
    }


def _keep(
    config: TrainConfig,
    folder: Path,
    evaluator: Evaluator,
    tracker: Tracker,
    results: dict[str, Any],
) -> None:
    """Track and write the results of the test split; results.json, which says that the run is
    finished, comes last."""
    test = {key: value for key, value in results.items() if key.startswith("test/")}
    numbers = {key: value for key, value in test.items() if isinstance(value, int | float)}
    tracker.log(numbers, step=results["updates"])
    data, queries = prepare_data(config.data), evaluator.query_log
    if tracker.has_backends and queries is not None and queries.ranks:
        pictures = Thumbnails(evaluator.data, data, "test")
        rows = hard_queries(queries, evaluator.data, pictures)
        tracker.table("test/hard_queries", COLUMNS, rows)
    tracker.summary(results)
    if parallel.rank() == 0:
        keep_queries(evaluator, folder, "test", results, data)
        write_results(folder, results)


def _open_trackers(
    config: TrainConfig, folder: Path, values: dict[str, Any], resume: bool
) -> Tracker:
    """The run's trackers; only rank 0 has any."""
    if parallel.rank() > 0:
        return NullTracker()
    return open_trackers(config.tracker, folder, values, resume=resume)


def _load_best(folder: Path, model: RetrievalModel) -> dict[str, Any]:
    """Put the chosen weights into ``model``; what validation said of them."""
    path = folder / "checkpoints" / checkpointing.BEST
    checkpoint.load_weights(model, checkpoint.read_tensors(path, "model/"), str(path))
    return checkpoint.read_meta(path)["best"]


def _identity(
    config: TrainConfig, values: Mapping[str, Any], folder: Path, parts: RunComponents
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
        "precision": parts.precision,
        "select_on": config.select_on,
        "config_hash": run_dir.config_hash(values),
        "seedless_hash": run_dir.config_hash({**values, "seed": None}),  # shared by its seeds
        **{f"data_hash_{name}": held["hash"] for name, held in parts.manifest.items()},
    }


def _announce(
    config: TrainConfig, folder: Path, parts: RunComponents, sizes: tuple[int, int]
) -> None:
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
    for line in [*compatibility.notes(parts.model), *departures(config), *parts.warnings]:
        log.warning("%s", line)
    if config.select_on == "test":
        log.warning(
            "select_on=test: the checkpoint is chosen on the TEST split, as the authors did; "
            "these results are optimistic and marked so"
        )
