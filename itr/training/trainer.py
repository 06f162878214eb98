"""The training loop. It knows no method and no task: it sums terms and advances the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itr import parallel
from itr.batch import Batch
from itr.draws import Draws
from itr.errors import Stopped
from itr.evaluation.encode import AUTOCAST
from itr.results.run_folder import STOPPED
from itr.training import checkpointing
from itr.training.config import TrainConfig
from itr.training.console import ProgressDisplay, log
from itr.training.cost import StepCost, describe_memory
from itr.training.faults.broken_images import BrokenImages
from itr.training.faults.explain import explain_errors
from itr.training.faults.heartbeat import Heartbeat
from itr.training.faults.nonfinite import NonFiniteGuard, NonFiniteReport
from itr.training.grad_cache import GradCacheStep
from itr.training.inputs import RunOutput, TrainingInputs, plan_clock
from itr.training.log_window import LogWindow
from itr.training.optim import apply_schedule, build_optimizer, clip_gradients
from itr.training.parameters.freezing import Freezing
from itr.training.parameters.layer_decay import describe_rates
from itr.training.parameters.weight_average import WeightAverage
from itr.training.process_setup import SEED_STRIDE
from itr.training.signals import PREEMPTION, StopRequest
from itr.training.step import Step
from itr.training.validation import Validator

SAVE = 1  # requests a checkpoint; all other requests are signal numbers, at least SIGINT's 2


class Trainer:
    """Trains a model, validates it, and writes the ``best`` and ``last`` checkpoints."""

    def __init__(
        self, config: TrainConfig, inputs: TrainingInputs, output: RunOutput, stop: StopRequest
    ):
        self.config, self.inputs, self.output, self.stop = config, inputs, output, stop
        self.model, self.device = inputs.model, inputs.device
        self.optimizer = build_optimizer(self.model, config.optim)
        self.scaler = torch.amp.GradScaler(
            self.device.type,
            enabled=inputs.precision == "fp16",
            growth_interval=config.trainer.growth_interval,
        )
        parts = (self.model, self.device, AUTOCAST[inputs.precision], self.scaler)
        chunk = config.grad_cache
        self.step = Step(*parts) if chunk is None else GradCacheStep(chunk, *parts)
        self.freezing = Freezing(self.model, config.trainer)
        self.step.frozen = self.freezing.asleep
        # Ranks that each have a loss of their own also draw different random numbers.
        stream = 0 if self.model.shares_batch_loss else parallel.rank()
        self.draws = Draws(config.seed + stream * SEED_STRIDE, self.device)
        self.clock = plan_clock(config, inputs.loader.batches_per_epoch)
        decay = config.trainer.ema
        self.average = None if decay is None else WeightAverage(self.model, decay)
        self.validator = Validator(config, inputs, output, self.average)
        self.window = LogWindow()
        limit = config.trainer.skip_nonfinite
        self.guard = NonFiniteGuard(self.model) if limit else None
        self.nonfinite = NonFiniteReport(output.folder, inputs.split, limit or 0)
        self.broken = BrokenImages(inputs.split, inputs.loader.broken)
        self.cost = StepCost(self.device, config.runtime.estimate and not config.runtime.compile)
        self.agree = parallel.DelayedMax()
        self.heartbeat = Heartbeat(output.folder)
        self.saved_at, self.saved_time = -1, time.monotonic()
        self.validation_due = False  # a signal interrupted the last validation
        self.earlier_seconds = 0.0  # trained before this run was resumed
        self.fit_started: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the planned updates are done."""
        return self.clock.updates >= self.clock.total_updates

    @property
    def seconds(self) -> float:
        """Time spent in `fit`, validations included, over all parts of a resumed run."""
        if self.fit_started is None:
            return self.earlier_seconds
        return self.earlier_seconds + time.perf_counter() - self.fit_started

    @property
    def _epoch_ends(self) -> bool:
        return self.clock.batch >= self.clock.batches_per_epoch

    def resume(self, path: Path) -> None:
        """Restore the state of a ``last`` checkpoint; training then continues exactly."""
        self.clock, meta, sums = checkpointing.load_last(
            path, self.model, self.optimizer, self.scaler, self.draws, self.average
        )
        self.validator.best = meta["best"]
        self.window.restore(sums, meta["window"])
        if self.guard is not None:
            self.guard.skipped = meta["skipped"]
        self.broken.indices.update(meta["broken"])
        self.inputs.loader.broken.update(self.broken.indices)
        self.validation_due = meta["unvalidated"]
        self.earlier_seconds = meta["train_seconds"]
        self.output.tracker.rewind(meta["metrics_offset"])

    def fit(self, display: ProgressDisplay) -> None:
        """Train until the planned updates are done.

        Raises Stopped, after saving, if a signal asks for it; TrainingError for a loss that is not
        finite, exhausted memory, and ranks that do not respond.
        """
        self.fit_started = time.perf_counter()
        self.stop.wait()
        self.heartbeat.write(self.clock.updates)
        with self.explain_errors():
            self._fit(display)
        self.earlier_seconds, self.fit_started = self.seconds, None
        self.heartbeat.remove()

    def explain_errors(self, evaluating: bool = False) -> AbstractContextManager[None]:
        """A context in which memory and communication errors say what to do."""
        return explain_errors(self.clock, self.config, self.heartbeat, evaluating)

    def _fit(self, display: ProgressDisplay) -> None:
        if self.validation_due:
            self._validate(display)
            self._save_last()
        self.step.set_requires_grad(self.clock)
        decay = describe_rates(self.optimizer, self.config.optim.layer_decay)
        for line in filter(None, (self.freezing.describe(), decay)):
            log.info("%s", line)
        if self.config.runtime.estimate and not self.finished:
            log.info("%s", describe_memory(self.model))
        self.window.started = time.perf_counter()
        while not self.finished:
            for batch in self._batches():
                last = (self.clock.batch + 1) % self.clock.accumulate == 0 or (
                    self.clock.batch + 1 >= self.clock.batches_per_epoch
                )
                if self._micro_batch(batch, last):
                    if last:
                        self._update()
                    self.model.after_step(self.clock)
                elif last:
                    self._skip_update()
                if last:
                    self._after_update(display)
                    self._save_or_stop()
                if self.finished:
                    break
            if self._epoch_ends and not self.finished:
                self.clock.epoch, self.clock.batch = self.clock.epoch + 1, 0

    def _batches(self) -> Iterator[Batch]:
        batches = iter(self.inputs.loader.epoch(self.clock.epoch, self.clock.batch))
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.window.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def _micro_batch(self, batch: Batch, last: bool) -> bool:
        """Gradients of one batch; False if it was skipped because its loss is not finite."""
        assert batch.image_id is not None and batch.caption_id is not None
        self.window.batches.append((batch.image_id, batch.caption_id))
        self.window.pairs += len(batch) * parallel.world_size()
        self.broken.add(batch.replaced)
        self.step.set_requires_grad(self.clock)
        batch = batch.to(self.device)
        self.model.train()
        self.freezing.hold(self.clock)
        self.model.before_step(self.clock)
        if self.guard is not None:
            self.guard.snapshot()
        with self.step.no_sync(last), self.cost.measure(len(batch)):
            total, terms = self.step.forward(batch, self.clock, self.draws)
            accepted = self.guard is None or self.guard.accepts(total)
            if accepted:
                mean = self.config.accumulate_rest == "mean"
                batches = self.clock.batches_of_update if mean else self.clock.accumulate
                self.step.backward(total, batches)
        self.clock.forwards += 1
        self.clock.batch += 1
        if accepted:
            self.window.totals.append(total.detach())
            self.window.add({"loss": total, **terms.losses, **terms.report})
        else:
            self.nonfinite.skipped(self.clock.updates, self.window.batches, self.guard)
            del self.window.batches[-1]
        return accepted

    def _update(self) -> None:
        apply_schedule(self.optimizer, self.clock, self.config.optim.schedule)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), self.config.optim.max_norm)
        scaled = self.scaler.is_enabled()  # the scaler itself skips an update that overflows
        if self.guard is not None and not scaled and not self.guard.accepts(norm):
            self.nonfinite.skipped(self.clock.updates, self.window.batches, self.guard)
            self.window.totals.clear()
            self.window.batches.clear()
            self._skip_update()
            return
        if not scaled:
            self.window.totals[-1] = self.window.totals[-1] + 0.0 * norm  # nan if not finite
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.updates += 1
        if self.average is not None:
            self.average.update(self.clock.updates)
        self.window.add({"grad_norm": norm})

    def _skip_update(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.updates += 1

    def _after_update(self, display: ProgressDisplay) -> None:
        settings, updates = self.config.trainer, self.clock.updates
        display.step(updates)

        def due(every: int | None) -> bool:
            return every is not None and updates % every == 0

        validate = self.finished or (
            due(settings.validate_every) if settings.validate_every else self._epoch_ends
        )
        save = validate if settings.checkpoint_every is None else due(settings.checkpoint_every)
        if validate or save or due(settings.log_every):
            self._log(display)
        if validate:
            self._validate(display)
        if save or self.finished:
            self._save_last()

    def _log(self, display: ProgressDisplay) -> None:
        if not self.window.sums:  # every batch was skipped
            return
        means, bad = self.window.read()
        if bad is not None:
            self.nonfinite.fail(self.clock.updates, self.window.batches, bad)
        seconds = time.perf_counter() - self.window.started
        values = {f"train/{key}": value for key, value in means.items()}
        values["train/lr"] = self.optimizer.param_groups[0]["lr"]
        values["train/pairs_per_second"] = self.window.pairs / seconds
        values["train/data_wait"] = self.window.waited / seconds
        world, precision = parallel.world_size(), self.inputs.precision
        values |= self.cost.rates(values["train/pairs_per_second"], world, precision)
        if broken := self.broken.synchronize():
            values["train/broken_images"] = broken
        epoch = self.clock.epoch + 1
        self.output.tracker.log({"epoch": epoch, **values}, step=self.clock.updates)
        display.numbers(epoch, self.clock.updates, values)
        if line := self.cost.describe_once():
            log.info("%s", line)
        self.window = LogWindow()

    def _validate(self, display: ProgressDisplay) -> None:
        try:
            with self.explain_errors(evaluating=True):
                self.validator.run(self.clock, self.stop.interrupting(display.evaluation))
        except Stopped as stopped:  # an evaluation takes longer than a scheduler waits
            self.validation_due = True
            self._save_last()
            raise self._stopped(stopped.preempted) from stopped
        self.validation_due = False

    def _save_or_stop(self) -> None:
        """Save if a checkpoint is due; save and raise Stopped if any rank received a signal.

        All ranks do both after the same update.
        """
        self.heartbeat.write(self.clock.updates)
        request = self.agree(self.stop.number or SAVE * self._time_to_save())
        if request and self.saved_at != self.clock.updates:
            self._save_last()
        if request > SAVE:
            raise self._stopped(request in PREEMPTION)

    def _time_to_save(self) -> bool:
        """Whether ``checkpoint_minutes`` have passed on rank 0, which decides for all ranks.

        The timer restarts here, since the other ranks may learn of it one update later.
        """
        minutes, now = self.config.trainer.checkpoint_minutes, time.monotonic()
        if minutes is None or parallel.rank() > 0 or now - self.saved_time < 60 * minutes:
            return False
        self.saved_time = now
        return True

    def _stopped(self, preempted: bool) -> Stopped:
        return Stopped(
            f"{STOPPED} after update {self.clock.updates}; a checkpoint was saved: pass "
            "resume=auto to continue",
            preempted,
        )

    def _save_last(self) -> None:
        self.saved_at, self.saved_time = self.clock.updates, time.monotonic()
        sums, window = self._checked_window()
        self.broken.synchronize()
        meta = {
            **self.output.meta,
            "best": self.validator.best,
            "metrics_offset": self.output.tracker.offset(),
            "window": window,
            "skipped": self.guard.skipped if self.guard is not None else 0,
            "broken": sorted(self.broken.indices),
            "unvalidated": self.validation_due,
            "train_seconds": self.seconds,
        }
        path = self.output.folder / "checkpoints" / checkpointing.LAST
        parts = (self.model, self.optimizer, self.scaler, self.clock, self.draws)
        checkpointing.save_last(path, *parts, meta, sums, self.average)

    def _checked_window(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Sums that were not logged yet; a checkpoint never contains an update by a bad batch."""
        if self.window.totals:
            bad = self.window.read()[1]
            if bad is not None:
                self.nonfinite.fail(self.clock.updates, self.window.batches, bad)
        return self.window.state()
