"""Learning curves: a metric of the validation over epochs, seeds as bands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from itr.files import parse_json
from itr.results.collect import ResultRow
from itr.results.plots.groups import Group, best_rows, facts
from itr.results.plots.style import COLORS, COLUMN, PAGE, Plot, pyplot_free, shown
from itr.results.trackers.metrics_file import METRICS


def curve_of(folder: Path, key: str) -> dict[float, float]:
    """Epoch -> value of ``key`` in a run's metrics. Incomplete lines are skipped."""
    try:
        lines = (folder / METRICS).read_bytes().splitlines()
    except OSError:
        return {}
    points: dict[float, float] = {}
    for line in lines:
        if f'"{key}"'.encode() not in line:
            continue
        try:
            values = parse_json(line)
            points[float(values["epoch"])] = float(values[key])
        except (ValueError, KeyError, TypeError):  # half a line
            continue
    return points


def learning_curves(group: Group) -> Plot | None:
    """The main metric on the split of selection; None if no run has a curve."""
    kept, omitted = best_rows(group)
    curves = {id(row): _curves(row, group.main) for row in kept}
    drawn = [row for row in kept if any(curves[id(row)])]
    if not drawn:
        return None
    size = (COLUMN if len(drawn) == 1 else 0.75 * PAGE, 2.2)
    figure = pyplot_free()(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    rows: list[list[Any]] = []
    for row, color in zip(drawn, COLORS, strict=False):
        epochs, values = _aligned(curves[id(row)])
        mean = np.nanmean(values, axis=0)
        count = len(values)
        deviation = np.nanstd(values, axis=0, ddof=1) if count > 1 else np.zeros_like(mean)
        axes.plot(epochs, mean, color=color, label=shown(row.name, 28))
        if count > 1:
            axes.fill_between(
                epochs, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0
            )
        rows += [
            [row.name, epoch, m, d, count]
            for epoch, m, d in zip(epochs, mean, deviation, strict=True)
        ]
    splits = sorted({str(row.fact("select_on") or "val") for row in drawn})
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{group.heading} on {', '.join(splits)}")
    if len(drawn) == 1:
        axes.set_title(shown(drawn[0].name))
    else:
        figure.legend(loc="outside right center")
    caption = (
        f"{group.heading} over epochs, {group.data}, {', '.join(splits)} split, by which the "
        f"checkpoint is selected; line and band: mean and standard deviation over seeds. "
        f"{facts(drawn)}{omitted}"
    )
    header = ("configuration", "epoch", "mean", "deviation", "seeds")
    return Plot(f"curves_{group.slug}", figure, caption, header, rows)


def _curves(row: ResultRow, metric: str) -> list[dict[float, float]]:
    split = str(row.fact("select_on") or "val")
    found = [curve_of(run.folder, f"{split}/{metric}") for run in row.runs if run.folder]
    return [curve for curve in found if curve]


def _aligned(curves: Sequence[dict[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Epochs [E] of all ``curves`` and their values [S, E]; NaN where a seed has none."""
    epochs = sorted({epoch for curve in curves for epoch in curve})
    values = np.array([[curve.get(epoch, np.nan) for epoch in epochs] for curve in curves])
    return np.array(epochs), values
