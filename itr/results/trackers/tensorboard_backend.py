"""Logs a run to TensorBoard."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from itr.results.escapes import markdown
from itr.results.row_labels import flatten
from itr.results.trackers.config import TensorboardConfig
from itr.results.trackers.description import EVAL
from itr.terminal import printable

log = logging.getLogger("itr")
FOLDER = "tensorboard"  # in the run directory


class TensorboardBackend:
    """Event files of a run: scalars, the configuration, tables as text, their images one by one.

    A resumed run hides what was logged after its checkpoint: the writer opens at the first value.
    """

    def __init__(self, writer_class: Any, folder: Path, values: Mapping[str, Any], resume: bool):
        self.writer_class, self.folder, self.values = writer_class, folder, values
        self.resume, self.step = resume, 0
        self.logged: set[str] = set()
        self._writer: Any = None
        folder.mkdir(parents=True, exist_ok=True)

    def _open(self, step: int) -> Any:
        if self._writer is None:
            purged = step if self.resume else None
            self._writer = self.writer_class(str(self.folder), purge_step=purged)
            self._writer.add_text("configuration", _as_code(self.values), step)
        return self._writer

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` at optimizer update ``step``."""
        writer, self.step = self._open(step), step
        self.logged.update(values)
        for key, value in values.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        """Show ``values`` as text, and under HPARAMS those numbers whose curve ends with them.

        A curve of the validation ends with the last value, the results name the best.
        """
        from torch.utils.tensorboard.summary import hparams

        writer = self._open(self.step)
        numbers = {
            key: value
            for key, value in values.items()
            if isinstance(value, int | float)
            and (key.startswith("test/") or key not in self.logged)
        }
        options = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flatten(self.values).items()
        }
        for part in hparams(options, numbers):
            writer.file_writer.add_summary(part)
        self.log({key: n for key, n in numbers.items() if key not in self.logged}, self.step)
        writer.add_text("results", _as_code(values), self.step)

    def preempt(self) -> None:
        """Say that the run was preempted."""
        self._open(self.step).add_text("state", "preempted", self.step)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log ``rows`` as a Markdown table; an image is found under its column by row number."""
        writer = self._open(self.step)
        lines = [["row", *columns], ["---"] * (len(columns) + 1)]
        for number, row in enumerate(rows):
            lines.append([str(number), *map(_cell, row)])
            for column, value in zip(columns, row, strict=True):
                if isinstance(value, Image):
                    pixels = np.asarray(value.convert("RGB"))
                    writer.add_image(f"{key}/{column}", pixels, number, dataformats="HWC")
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        writer.add_text(key, text, self.step)

    def finish(self, exit_code: int = 0) -> None:
        """Close the files."""
        if exit_code:
            self._open(self.step).add_text("state", f"failed with exit code {exit_code}", self.step)
        if self._writer is not None:
            self._writer.close()


def _cell(value: Any) -> str:
    return "(image)" if isinstance(value, Image) else "" if value is None else markdown(str(value))


def _as_code(values: Mapping[str, Any]) -> str:
    """``values`` as JSON in a block of Markdown, which shows it as it is."""
    text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
    return "\n".join(f"    {printable(line)}" for line in text.split("\n"))


def start_tensorboard(
    config: TensorboardConfig,
    run_dir: Path,
    values: Mapping[str, Any],
    job: str,
    resume: bool = False,
) -> TensorboardBackend | None:
    """Event files for the run in ``run_dir``, or None if the package is missing (with a warning).

    Files of an earlier job in the same folder are deleted unless it is resumed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning(
            "tracker=tensorboard: tensorboard is not installed; run pip install "
            "'itr-suite[tensorboard]', or pass tracker=none. Metrics are written to metrics.jsonl"
        )
        return None
    folder = run_dir / FOLDER
    if config.dir is not None:
        folder = Path(config.dir) / run_dir.absolute().name
    if job == EVAL:
        folder = folder / EVAL
    for old in [] if resume else folder.glob("events.out.tfevents.*"):
        old.unlink()
    log.info("TensorBoard: tensorboard --logdir %s", folder)
    return TensorboardBackend(SummaryWriter, folder, values, resume)
