"""The one training loop. It knows no method: terms are weighed and summed, the clock advances."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itr.batch import Batch
from itr.clock import Clock
from itr.data.loader import TrainLoader
from itr.data.records import Split
from itr.draws import Draws
from itr.errors import TrainingError
from itr.evaluation.encode import AUTOCAST
from itr.evaluation.evaluator import Evaluator
from itr.models.base import RetrievalModel
from itr.results.tracker import Tracker
from itr.training import state
from itr.training.config import TrainConfig
from itr.training.optim import apply_schedule, build_optimizer, clip_gradients
from itr.training.progress import Display, log


class Window:
    """What happened since the last logging: kept on the device, read in one transfer."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.totals: list[Tensor] = []
        self.batches: list[tuple[Tensor, Tensor]] = []  # image and caption ids, on the host
        self.pairs = 0
        self.started = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Add detached scalars to the running sums."""
        for key, value in values.items():
            value = value.detach().float()
            self.sums[key] = self.sums[key] + value if key in self.sums else value
            self.counts[key] = self.counts.get(key, 0) + 1

    def read(self) -> tuple[dict[str, float], int | None]:
        """Means of the values, and the first batch whose total was not finite (or None)."""
        keys = list(self.sums)
        flat = torch.stack([self.sums[key] for key in keys] + self.totals).tolist()
        means = {key: flat[i] / self.counts[key] for i, key in enumerate(keys)}
        totals = torch.tensor(flat[len(keys) :])
        bad = (~torch.isfinite(totals)).nonzero()
        return means, int(bad[0]) if len(bad) else None


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
    ):
        self.config, self.model, self.loader, self.split = config, model, loader, split
        self.evaluator, self.tracker, self.folder, self.meta = evaluator, tracker, folder, meta
        self.device, self.dtype = device, AUTOCAST[precision]
        self.optimizer = build_optimizer(model, config.optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.draws = Draws(config.seed, device)
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
        self.window = Window()
        self.asleep: frozenset[str] | None = None

    @property
    def finished(self) -> bool:
        """Whether the planned updates are done."""
        return self.clock.updates >= self.clock.total_updates

    def resume(self, path: Path) -> None:
        """Go on from a ``last`` checkpoint, as if nothing had happened."""
        self.clock, meta = state.load_last(
            path, self.model, self.optimizer, self.scaler, self.draws
        )
        self.best = meta["best"]
        self.tracker.rewind(meta["metrics_offset"])

    def fit(self, display: Display) -> None:
        """Train to the end; the checkpoints and the tracker hold what comes of it."""
        self.window = Window()
        while not self.finished:
            for batch in self._batches():
                self._micro_batch(batch)
                updates = self.clock.batch % self.accumulate == 0 or self._epoch_ends
                if updates:
                    self._update()
                self.model.after_step(self.clock)
                if updates:
                    self._after_update(display)
                if self.finished:
                    break
            if self._epoch_ends and not self.finished:
                self.clock.epoch, self.clock.batch = self.clock.epoch + 1, 0

    def _batches(self) -> Iterator[Batch]:
        return self.loader.epoch(self.clock.epoch, self.clock.batch)

    @property
    def _epoch_ends(self) -> bool:
        return self.clock.batch >= self.clock.batches_per_epoch

    def _micro_batch(self, batch: Batch) -> None:
        assert batch.image_id is not None and batch.caption_id is not None
        self.window.batches.append((batch.image_id, batch.caption_id))
        self.window.pairs += len(batch)
        self._wake_and_sleep()
        batch = batch.to(self.device)
        self.model.train()
        self.model.before_step(self.clock)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            terms = self.model(batch, self.clock, self.draws)
        weighted = [self.model.weights[key] * value for key, value in terms.losses.items()]
        total = torch.stack([value.float() for value in weighted]).sum()
        self.scaler.scale(total / self.accumulate).backward()
        self.clock.forwards += 1
        self.clock.batch += 1
        self.window.totals.append(total.detach())
        self.window.add({"loss": total, **terms.losses, **terms.report})

    def _wake_and_sleep(self) -> None:
        """Parameters of sleeping modules get no gradient, hence no update and no decay."""
        asleep = self.model.sleeping(self.clock)
        if asleep == self.asleep:
            return
        self.asleep = asleep
        prefixes = tuple(f"{name}." for name in asleep)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not (name in asleep or name.startswith(prefixes)))

    def _update(self) -> None:
        apply_schedule(self.optimizer, self.clock, self.config.optim.schedule)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), self.config.optim.clip_norm)
        if not self.scaler.is_enabled():  # else the scaler skips such an update by itself
            self.window.totals[-1] = self.window.totals[-1] + 0.0 * norm  # nan if not finite
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.updates += 1
        self.window.add({"grad_norm": norm})

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
        means, bad = self.window.read()
        if bad is not None:
            self._stop_at(*self.window.batches[bad])
        seconds = time.perf_counter() - self.window.started
        values = {f"train/{key}": value for key, value in means.items()}
        values["train/lr"] = self.optimizer.param_groups[0]["lr"]
        values["train/pairs_per_second"] = self.window.pairs / seconds
        self.tracker.log({"epoch": self.clock.epoch, **values}, step=self.clock.updates)
        display.numbers(self.clock.epoch, self.clock.updates, values)
        self.window = Window()

    def _stop_at(self, images: Tensor, captions: Tensor) -> None:
        records, text_to_image = self.split.records, self.split.text_to_image
        caption_ids = [
            records[int(text_to_image[c])].caption_ids[
                int(c) - int(self.split.first_caption[text_to_image[c]])
            ]
            for c in captions.tolist()
        ]
        ids = {
            "image_ids": [records[i].image_id for i in images.tolist()],
            "caption_ids": caption_ids,
        }
        path = self.folder / "not_finite.json"
        path.write_text(json.dumps({"updates": self.clock.updates, **ids}) + "\n")
        raise TrainingError(
            f"the loss or its gradient is not finite within the {len(self.window.totals)} batches "
            f"before update {self.clock.updates}; the first such batch has image ids "
            f"{ids['image_ids'][:8]}... and caption ids {caption_ids[:8]}... (all in {path}). "
            "The last checkpoint is from before it. Look at these samples, or try a lower "
            "optim.lr, precision=fp32, or optim.clip_norm"
        )

    def _validate(self, display: Display) -> None:
        started = time.perf_counter()
        results = self.evaluator.run(self.model, progress=display.evaluation)
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
            meta = {**self.meta, "best": self.best}
            state.save_best(self.folder / "checkpoints" / state.BEST, self.model, meta)

    def _save_last(self) -> None:
        meta = {**self.meta, "best": self.best, "metrics_offset": self.tracker.offset()}
        path = self.folder / "checkpoints" / state.LAST
        state.save_last(path, self.model, self.optimizer, self.scaler, self.clock, self.draws, meta)


def _median(results: dict[str, Any], direction: str) -> str:
    """The median rank, where a second stage left one."""
    value = results.get(f"{direction}_medr")
    return "not given" if value is None else f"{value:g}"
