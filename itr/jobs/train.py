"""The training job: one run, from a composed configuration to its results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr import checkpoint, parallel
from itr.errors import Stopped
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.split_evaluator import SplitEvaluator
from itr.jobs import run_dir
from itr.jobs.assemble import RunComponents, assemble_run, prepare_data
from itr.jobs.launch.workers import launch
from itr.jobs.query_files import save_predictions, save_queries
from itr.jobs.recipe_notes import departures, precision_line
from itr.jobs.similar_runs import similar_run
from itr.jobs.training_results import RunIdentity, SelectedCheckpoint, TrainingResults
from itr.models import compatibility
from itr.models.build import model_meta, with_task_loss
from itr.plugins import trusts_configuration
from itr.results.accuracy_tables import results_tables
from itr.results.gallery.thumbnails import Thumbnails
from itr.results.hard_queries import COLUMNS, hard_queries
from itr.results.results_file import write_results
from itr.results.run_folder import LOG, PLANNED, STARTED, STOPPED
from itr.results.trackers.tracker import NullTracker, Tracker, open_tracker
from itr.terminal import OutputConsole
from itr.training import checkpointing
from itr.training.config import TrainConfig, check_config
from itr.training.console import ProgressDisplay, close_log, log, log_failure, open_log
from itr.training.cost import RunCost
from itr.training.device import resolve_device
from itr.training.inputs import RunOutput, TrainingInputs
from itr.training.parameters.freezing import Freezing
from itr.training.parameters.layer_decay import layer_scales
from itr.training.process_setup import configure_torch
from itr.training.signals import StopRequest
from itr.training.trainer import Trainer


@trusts_configuration
def train(values: dict[str, Any]) -> dict[str, Any]:
    """Train one run to its end and return its flat results; immediately if it is finished already.

    Raises a UserError for whatever the user can fix, before training where it can be known.
    """
    values = with_task_loss(values)
    config = check_config(values)
    cuda = resolve_device(config.device).type == "cuda"
    if config.devices * config.nodes > 1 and not parallel.is_launched():
        return launch(train, values, config.devices, config.nodes, cuda)
    with StopRequest() as stop:
        parallel.init(cuda, config.runtime.collective_timeout)
        results = _train(config, values, stop)
        stop.check(f"{STOPPED} after the run was finished")  # ends a multirun, too
    return results


def _train(config: TrainConfig, values: dict[str, Any], stop: StopRequest) -> dict[str, Any]:
    console = OutputConsole(quiet=parallel.rank() > 0)
    folder, finished = parallel.broadcast_from_rank0(lambda: run_dir.open_run(values))
    if finished is not None:
        console.print(f"{folder} is already finished; pass overwrite=true to train it again")
        _print_results(console, finished, folder)
        return finished
    configure_torch(config)
    open_log(None, console)
    if config.resume == "auto" and not folder.exists() and parallel.rank() == 0:
        if (line := similar_run(folder, values)) is not None:
            log.warning("%s", line)
    try:
        components = assemble_run(config, values)
        Freezing(components.model, config.trainer)  # refuses before a folder is written, as do
        layer_scales(components.model, config.optim.layer_decay)  # layers without numbers
        sizes = parallel.broadcast_from_rank0(
            lambda: checkpointing.check_space(
                folder, components.model, config.trainer.ema is not None
            )
        )
        with run_dir.lock_run(folder):
            if parallel.rank() == 0:
                run_dir.write_config(folder, values)  # first: it makes the folder a run
                run_dir.write_manifest(folder, components.manifest)
                open_log(folder / LOG, console)
            job = TrainingJob(config, values, folder, components, stop)
            job.announce(sizes)
            results = job.run(console)
        _print_results(console, results, folder)
        log.info("results and checkpoints: %s", folder)
        return results
    except Exception as error:
        if not isinstance(error, Stopped):  # which says so itself
            log_failure(error)
        raise
    finally:
        close_log()


def _print_results(console: OutputConsole, results: dict[str, Any], folder: Path) -> None:
    for table in results_tables(results, str(folder)):
        console.print(table)


@dataclass
class TrainingJob:
    """One run with everything it needs, in a locked run directory."""

    config: TrainConfig
    values: dict[str, Any]  # the composed configuration
    folder: Path
    components: RunComponents
    stop: StopRequest

    def run(self, console: OutputConsole) -> dict[str, Any]:
        """Train, evaluate the selected checkpoint on the test split, write the results."""
        last: Path | None = None
        if self.config.resume == "auto":
            checkpoints = self.folder / "checkpoints"
            last = parallel.broadcast_from_rank0(
                lambda: checkpointing.find_resumable(
                    checkpoints, self.config.runtime.verify_checkpoints
                )
            )
        with self._open_trackers(resume=last is not None) as tracker:
            trainer = self._build_trainer(tracker)
            if last is not None:
                trainer.resume(last)
                log.info("resuming at update %d", trainer.clock.updates)
            resumed_at = trainer.clock.updates or None
            total = trainer.clock.total_updates
            log.info("%s%d", PLANNED, total)
            with ProgressDisplay(console, total, trainer.clock.updates) as display:
                try:
                    trainer.fit(display)
                    selected, test_metrics = self._test(trainer, display)
                except Stopped as stopped:
                    log.warning("%s", stopped.message)
                    if stopped.preempted:
                        tracker.preempt()
                    raise
            parts = self.components
            results = TrainingResults(
                RunIdentity.of(
                    self.config, self.values, self.folder, parts.precision, parts.manifest
                ),
                selected,
                test_metrics,
                trainer.clock.updates,
                trainer.seconds,
                RunCost.of(parts.model, parts.device, parallel.world_size(), trainer.seconds),
                resumed_at,
                trainer.broken.synchronize(),
            ).flat()
            self._write(parts.evaluators["test"], tracker, results)
        return results

    def _build_trainer(self, tracker: Tracker) -> Trainer:
        parts = self.components
        inputs = TrainingInputs(
            model=parts.model,
            loader=parts.loader,
            split=parts.splits["train"],
            evaluator=parts.evaluators[self.config.select_on],
            task=parts.task,
            device=parts.device,
            precision=parts.precision,
        )
        output = RunOutput(self.folder, tracker, self._checkpoint_meta())
        return Trainer(self.config, inputs, output, self.stop)

    def _checkpoint_meta(self) -> dict[str, Any]:
        """Metadata of a checkpoint; with it, an evaluation needs no other file."""
        return {
            **model_meta(self.components.model),
            "model_name": self.config.model["name"],
            "config": self.values,
            "manifest": self.components.manifest,
            "loss": self.values["loss"],
            "tokenizer": self.components.tokenizer.to_json(),
            "task_state": self.components.task.state(),
            "precision": self.components.precision,
            "versions": run_dir.environment(),
        }

    def _open_trackers(self, resume: bool) -> Tracker:
        """The trackers of the run; a silent one on every rank but the first."""
        if parallel.rank() > 0:
            return NullTracker()
        return open_tracker(self.config.tracker, self.folder, self.values, resume=resume)

    def _test(
        self, trainer: Trainer, display: ProgressDisplay
    ) -> tuple[SelectedCheckpoint, dict[str, Any]]:
        """Load the selected weights into the model and evaluate the test split."""
        path, model = trainer.validator.best_path, self.components.model
        checkpoint.load_weights(
            model,
            checkpoint.read_tensors(path, "model/", self.config.runtime.verify_checkpoints),
            str(path),
        )
        best = checkpoint.read_meta(path)["best"]
        with trainer.explain_errors(evaluating=True):
            progress = self.stop.interrupting(display.evaluation)
            evaluator = self.components.evaluators["test"]
            metrics = evaluator.run(model, progress, with_query_log=True)
        return SelectedCheckpoint.of(path, best), metrics

    def _write(self, evaluator: SplitEvaluator, tracker: Tracker, results: dict[str, Any]) -> None:
        """Track and write the results. results.json marks the run as finished and comes last."""
        test = {key: value for key, value in results.items() if key.startswith("test/")}
        numbers = {key: value for key, value in test.items() if isinstance(value, int | float)}
        tracker.log(numbers, step=results["updates"])
        data, queries = prepare_data(self.config.data), evaluator.query_log
        if tracker and queries is not None and queries.ranks:
            images = Thumbnails(evaluator.data, data, "test")
            rows = hard_queries(queries, evaluator.data, images)
            tracker.table("test/hard_queries", COLUMNS, rows)
        tracker.summary(results)
        if parallel.rank() == 0:
            if isinstance(evaluator, Evaluator):
                save_queries(evaluator, self.folder, "test", results, data)
            if evaluator.predictions is not None:
                task, predictions = self.components.task, evaluator.predictions
                for line in save_predictions(task, predictions, self.folder, "test", data):
                    log.info("%s", line)
            write_results(self.folder, results)

    def announce(self, sizes: tuple[int, int]) -> None:
        """Log what will be trained; ``sizes`` are the bytes of the best and the last checkpoint."""
        config, parts = self.config, self.components
        log.info("%s%s", STARTED, self.folder)
        if config.recipe.name:
            log.info("recipe: %s (%s)", config.recipe.name, config.recipe.source)
        else:
            log.info("recipe: none is published for this combination; using the model's defaults")
        self._announce_data()
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
        for line in parts.messages:
            log.info("%s", line)
        for line in [*compatibility.notes(parts.model), *departures(config), *parts.warnings]:
            log.warning("%s", line)
        if config.trainer.ema is not None:
            log.info(
                "trainer.ema=%g: a moving average of the weights is validated, selected and tested",
                config.trainer.ema,
            )
        if config.select_on == "test":
            log.warning(
                "select_on=test: the checkpoint is selected on the TEST split, as the authors did; "
                "these results are optimistic and marked as such"
            )

    def _announce_data(self) -> None:
        for name, split in self.components.splits.items():
            log.info(
                "%s: %d images, %d captions, %s layout, %s, content %s",
                name,
                split.n_images,
                split.n_captions,
                split.layout,
                split.source,
                self.components.manifest[name]["hash"],
            )
            for note in split.notes:
                log.info("%s: %s", name, note)
