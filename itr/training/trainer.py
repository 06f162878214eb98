"""The one training loop. It knows no method: terms are weighed and summed, the clock advances."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from itr import parallel
from itr.batch import Batch
from itr.clock import Clock
from itr.data.loading.loader import TrainLoader
from itr.data.records import Split
from itr.draws import Draws
from itr.errors import Stopped
from itr.evaluation.encode import AUTOCAST
from itr.evaluation.evaluator import Evaluator
from itr.models.base import RetrievalModel
from itr.nn.batch_norm import statistics
from itr.results.trackers.tracker import Tracker
from itr.training import checkpointing
from itr.training.config import TrainConfig
from itr.training.console import Display, log
from itr.training.cost import describe, step_cost
from itr.training.faults.broken_images import BrokenImages
from itr.training.faults.explain import explain_errors
from itr.training.faults.heartbeat import Heartbeat
from itr.training.faults.nonfinite import (
    NonFiniteGuard,
    append_batch_ids,
    batch_ids,
    nonfinite_error,
)
from itr.training.grad_cache import GradCacheStep
from itr.training.log_window import LogWindow
from itr.training.optim import apply_schedule, build_optimizer, clip_gradients
from itr.training.process_setup import SEED_STRIDE
from itr.training.signals import PREEMPTION, StopRequest
from itr.training.step import Step

NOT_FINITE = "not_finite.json"
SAVE = 1  # among numbers of signals (of those that are watched, SIGINT's 2 is the lowest)


class Trainer:
    """Trains ``model`` on ``loader``, validates with ``evaluator``, keeps ``best`` and ``last``."""

    def __init__(
        self,
        config: TrainConfig,
        model: RetrievalModel,
        loader: TrainLoader,
        split: Split,
        evaluator: Evaluator,
        tracker: Tracker,
        folder: Path,
        meta: dict[str, Any],
        device: torch.device,
        precision: str,
        stop: StopRequest,
    ):
        self.config, self.model, self.loader, self.split = config, model, loader, split
        self.evaluator, self.tracker, self.folder, self.meta = evaluator, tracker, folder, meta
        self.device = device
        self.optimizer = build_optimizer(model, config.optim)
        self.scaler = torch.amp.GradScaler(
            device.type,
            enabled=precision == "fp16",
            growth_interval=config.trainer.growth_interval,
        )
        parts = (model, device, AUTOCAST[precision], self.scaler)
        chunk = config.grad_cache
        self.step = Step(*parts) if chunk is None else GradCacheStep(chunk, *parts)
        # Where ranks have losses of their own, they have draws of their own.
        own = 0 if model.one_loss else parallel.rank()
        self.draws = Draws(config.seed + own * SEED_STRIDE, device)
        self.accumulate = min(config.accumulate, loader.batches_per_epoch)
        updates_per_epoch = -(-loader.batches_per_epoch // self.accumulate)
        planned = config.trainer.max_steps or config.trainer.epochs * updates_per_epoch
        self.clock = Clock(
            batches_per_epoch=loader.batches_per_epoch,
            total_updates=planned,
            total_epochs=-(-planned // updates_per_epoch),
            accumulate=self.accumulate,
        )
        self.best: dict[str, Any] = {}
        self.window = LogWindow()
        self.guard = NonFiniteGuard(model) if config.trainer.skip_nonfinite else None
        self.broken = BrokenImages(split, loader.broken)
        self.stop, self.agree = stop, parallel.DelayedMax()
        self.heartbeat = Heartbeat(folder)
        self.saved_at, self.saved_time = -1, time.monotonic()
        self.unvalidated = False  # a signal came in the middle of the validation that is due

    @property
    def finished(self) -> bool:
        """Whether the planned updates are done."""
        return self.clock.updates >= self.clock.total_updates

    def resume(self, path: Path) -> None:
        """Go on from a ``last`` checkpoint, as if nothing had happened."""
        self.clock, meta, sums = checkpointing.load_last(
            path, self.model, self.optimizer, self.scaler, self.draws
        )
        self.best = meta["best"]
        self.window.restore(sums, meta.get("window", {"counts": {}, "pairs": 0}))
        if self.guard is not None:
            self.guard.skipped = meta.get("skipped", 0)
        self.broken.indices.update(meta.get("broken", []))
        self.loader.broken.update(self.broken.indices)
        self.unvalidated = meta.get("unvalidated", False)
        self.tracker.rewind(meta["metrics_offset"])

    def fit(self, display: Display) -> None:
        """Train to the end; the checkpoints and the tracker hold what comes of it.

        Raises Stopped, after saving, where a signal asks for it; TrainingError for a loss that is
        not finite, memory that runs out and ranks that do not answer.
        """
        self.stop.wait()
        self.heartbeat.write(self.clock.updates)
        with self.explained():
            self._fit(display)
        self.heartbeat.remove()

    def explained(self, evaluating: bool = False) -> AbstractContextManager[None]:
        """A context in which errors of memory and of other ranks say what to do."""
        return explain_errors(self.clock, self.config, self.heartbeat, evaluating)

    def _fit(self, display: Display) -> None:
        if self.unvalidated:
            self._validate(display)
            self._save_last()
        self._estimate()
        self.window.started = time.perf_counter()
        while not self.finished:
            for batch in self._batches():
                last = (self.clock.batch + 1) % self.accumulate == 0 or (
                    self.clock.batch + 1 >= self.clock.batches_per_epoch
                )
                if self._micro_batch(batch, last):
                    if last:
                        self._update()
                    self.model.after_step(self.clock)
                elif last:
                    self._leave_out_update()
                if last:
                    self._after_update(display)
                    self._save_or_stop()
                if self.finished:
                    break
            if self._epoch_ends and not self.finished:
                self.clock.epoch, self.clock.batch = self.clock.epoch + 1, 0

    def _estimate(self) -> None:
        """Log what a step will cost; a model that runs in pieces or compiled is counted whole."""
        self.step.set_requires_grad(self.clock)
        if parallel.rank() > 0 or self.finished or not self.config.runtime.estimate:
            return
        batch = next(iter(self.loader.epoch(0))).to(self.device)
        self.model.train()
        chunk = self.config.grad_cache
        cost = step_cost(self.model, batch, self.clock, self.step.dtype, chunk)
        log.info("%s", describe(self.model, cost, len(batch)))

    def _batches(self) -> Iterator[Batch]:
        return self.loader.epoch(self.clock.epoch, self.clock.batch)

    @property
    def _epoch_ends(self) -> bool:
        return self.clock.batch >= self.clock.batches_per_epoch

    def _micro_batch(self, batch: Batch, last: bool) -> bool:
        """Gradients of one batch; False if it was left out because its loss is not finite."""
        assert batch.image_id is not None and batch.caption_id is not None
        self.window.batches.append((batch.image_id, batch.caption_id))
        self.window.pairs += len(batch) * parallel.world_size()
        self.broken.add(batch.replaced)
        self.step.set_requires_grad(self.clock)
        batch = batch.to(self.device)
        self.model.train()
        self.model.before_step(self.clock)
        if self.guard is not None:
            self.guard.snapshot()
        with self.step.no_sync(last):
            total, terms = self.step.forward(batch, self.clock, self.draws)
            taken = self.guard is None or self.guard.accepts(total)
            if taken:
                self.step.backward(total, self.accumulate)
        self.clock.forwards += 1
        self.clock.batch += 1
        if taken:
            self.window.totals.append(total.detach())
            self.window.add({"loss": total, **terms.losses, **terms.report})
        else:
            self._left_out(len(self.window.batches) - 1)
            del self.window.batches[-1]
        return taken

    def _update(self) -> None:
        apply_schedule(self.optimizer, self.clock, self.config.optim.schedule)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), self.config.optim.max_norm)
        scaled = self.scaler.is_enabled()  # then it skips such an update, and scales less, itself
        if self.guard is not None and not scaled and not self.guard.accepts(norm):
            self._left_out(len(self.window.batches) - 1)
            self.window.totals.clear()
            self.window.batches.clear()
            self._leave_out_update()
            return
        if not scaled:
            self.window.totals[-1] = self.window.totals[-1] + 0.0 * norm  # nan if not finite
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.updates += 1
        self.window.add({"grad_norm": norm})

    def _leave_out_update(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.updates += 1

    def _left_out(self, place: int) -> None:
        """Names batch ``place`` of the window; raises TrainingError if it is one too many."""
        assert self.guard is not None and self.config.trainer.skip_nonfinite is not None
        if self.guard.skipped > self.config.trainer.skip_nonfinite:
            self._stop_at(place)
        ids = batch_ids(self.split, *self.window.batches[place])
        append_batch_ids(self.folder / NOT_FINITE, self.clock.updates, ids)
        log.warning(
            "update %d: a batch whose loss or gradient is not finite is left out (%d of at most "
            "%d); its ids are in %s",
            self.clock.updates,
            self.guard.skipped,
            self.config.trainer.skip_nonfinite,
            self.folder / NOT_FINITE,
        )

    def _save_or_stop(self) -> None:
        """Save where it is time to; save and raise Stopped if a rank got a signal. Both happen on
        all ranks after the same update."""
        self.heartbeat.write(self.clock.updates)
        number = self.agree(self.stop.number or SAVE * self._time_to_save())
        if number and self.saved_at != self.clock.updates:
            self._save_last()
        if number > SAVE:
            raise self._stopped(number in PREEMPTION)

    def _time_to_save(self) -> bool:
        """Rank 0's watch counts for all; it starts anew when it is asked, since the others may
        answer an update later."""
        minutes, now = self.config.trainer.checkpoint_minutes, time.monotonic()
        if minutes is None or parallel.rank() > 0 or now - self.saved_time < 60 * minutes:
            return False
        self.saved_time = now
        return True

    def _stopped(self, preempted: bool) -> Stopped:
        return Stopped(
            f"stopped by a signal after update {self.clock.updates}; the run is saved: go on with "
            "resume=auto",
            preempted,
        )

    def _after_update(self, display: Display) -> None:
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

    def _log(self, display: Display) -> None:
        if not self.window.sums:  # every batch was left out
            return
        means, bad = self.window.read()
        if bad is not None:
            self._stop_at(bad)
        seconds = time.perf_counter() - self.window.started
        values = {f"train/{key}": value for key, value in means.items()}
        values["train/lr"] = self.optimizer.param_groups[0]["lr"]
        values["train/pairs_per_second"] = self.window.pairs / seconds
        if broken := self.broken.synchronize():
            values["train/broken_pictures"] = broken
        self.tracker.log({"epoch": self.clock.epoch, **values}, step=self.clock.updates)
        display.numbers(self.clock.epoch, self.clock.updates, values)
        self.window = LogWindow()

    def _stop_at(self, place: int) -> NoReturn:
        path, updates = self.folder / NOT_FINITE, self.clock.updates
        ids = batch_ids(self.split, *self.window.batches[place])
        append_batch_ids(path, updates, ids)
        raise nonfinite_error(updates, len(self.window.batches), ids, path)

    def _validate(self, display: Display) -> None:
        started = time.perf_counter()
        if not self.config.runtime.sync_batchnorm:
            parallel.broadcast_tensors(statistics(self.model))
        try:
            with self.explained(evaluating=True):
                progress = self.stop.watching(display.evaluation)
                results = self.evaluator.run(self.model, progress=progress)
        except Stopped as stopped:  # it takes longer than a scheduler waits
            self.unvalidated = True
            self._save_last()
            raise self._stopped(stopped.preempted) from stopped
        self.unvalidated = False
        name = self.config.select_on
        values = {f"{name}/{k}": v for k, v in results.items() if isinstance(v, int | float)}
        values[f"{name}/seconds"] = time.perf_counter() - started
        self.tracker.log({"epoch": self.clock.epoch, **values}, step=self.clock.updates)
        log.info(
            "epoch %d, update %d, %s: i2t R@1/5/10 %.1f %.1f %.1f (median rank %s), "
            "t2i %.1f %.1f %.1f (%s), rSum %.1f",
            self.clock.epoch + 1,
            self.clock.updates,
            name,
            *(results[f"i2t_{key}"] for key in ("r1", "r5", "r10")),
            _median(results, "i2t"),
            *(results[f"t2i_{key}"] for key in ("r1", "r5", "r10")),
            _median(results, "t2i"),
            results["rsum"],
        )
        if not self.best or results["rsum"] > self.best["results"]["rsum"]:
            self.best = {
                "results": results,
                "updates": self.clock.updates,
                "epoch": self.clock.epoch,
            }
            if parallel.rank() == 0:
                meta = {**self.meta, "best": self.best}
                checkpointing.save_best(
                    self.folder / "checkpoints" / checkpointing.BEST, self.model, meta
                )

    def _save_last(self) -> None:
        self.saved_at, self.saved_time = self.clock.updates, time.monotonic()
        sums, window = self._checked_window()
        self.broken.synchronize()
        meta = {
            **self.meta,
            "best": self.best,
            "metrics_offset": self.tracker.offset(),
            "window": window,
            "skipped": self.guard.skipped if self.guard is not None else 0,
            "broken": sorted(self.broken.indices),
            "unvalidated": self.unvalidated,
        }
        path = self.folder / "checkpoints" / checkpointing.LAST
        parts = (self.model, self.optimizer, self.scaler, self.clock, self.draws)
        checkpointing.save_last(path, *parts, meta, sums)

    def _checked_window(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was not logged yet; a checkpoint never holds what a broken batch has done."""
        if self.window.totals:
            bad = self.window.read()[1]
            if bad is not None:
                self._stop_at(bad)
        return self.window.state()


def _median(results: dict[str, Any], direction: str) -> str:
    """The median rank, where a second stage left one."""
    value = results.get(f"{direction}_medr")
    return "not given" if value is None else f"{value:g}"
