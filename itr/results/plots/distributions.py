"""Histograms of scores, and where images and texts lie in the embedding space."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from itr import checkpoint
from itr.errors import UserError
from itr.evaluation.query_log import QueryLog, query_log_path, read_queries
from itr.evaluation.stored_embeddings import KIND, SIDES
from itr.results.gallery.charts import density
from itr.results.plots.groups import Group, best_rows, facts
from itr.results.plots.style import COLORS, COLUMN, PAGE, Plot, pyplot_free, shown

BINS, MOST_PANELS, MOST_POINTS = 60, 6, 400
EMBEDDINGS = "embeddings*.safetensors"  # in a run directory


def score_histograms(group: Group) -> Plot | None:
    """Scores of matching and other pairs, a panel for each configuration's first seed."""
    kept, omitted = best_rows(group, MOST_PANELS)
    logs = [(row, log) for row in kept if (log := _log_of(row.runs[0].folder, group.split))]
    if not logs:
        return None
    across = min(3, len(logs))
    down = -(-len(logs) // across)
    size = (COLUMN if across == 1 else PAGE, 1.9 * down)
    figure = pyplot_free()(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    rows: list[list[Any]] = []
    for number, axes in enumerate(panels.flat):
        if number >= len(logs):
            axes.set_visible(False)
            continue
        row, log = logs[number]
        for counts, name, color in (
            (log.nonmatch_counts, "other pairs", COLORS[5]),
            (log.match_counts, "matches", COLORS[1]),
        ):
            centers, share = density(counts, log.bin_edges, BINS)
            axes.fill_between(centers, share, color=color, alpha=0.5, linewidth=0, label=name)
            rows += [[row.name, name, *point] for point in zip(centers, share, strict=True)]
        axes.set_title(shown(row.name, 30))
        axes.set_xlabel("score")
    panels[0][0].set_ylabel("% of pairs")
    panels[0][0].legend()
    caption = (
        f"Scores of matching pairs and of all other pairs, {group.title}; the first seed of each "
        f"configuration. {facts([row for row, _ in logs])}{omitted}"
    )
    header = ("configuration", "pairs", "score", "percent")
    return Plot(f"scores_{group.slug}", figure, caption, header, rows)


def _log_of(folder: Path | None, split: str) -> QueryLog | None:
    if folder is None or not query_log_path(folder, split).is_file():
        return None
    try:
        return read_queries(folder, split)
    except UserError:  # `collect` has named it
        return None


def modality_gap(folder: Path) -> list[Plot]:
    """A plot for each file of embeddings in ``folder``: both modalities on two principal axes.

    The gap is the distance of the mean image from the mean text, of unit vectors (Liang et al.,
    2022). Raises CheckpointError for a damaged file.
    """
    plots = []
    for path in sorted(folder.glob(EMBEDDINGS)):
        meta = checkpoint.read_meta(path)
        if meta.get("kind") != KIND:
            continue
        tensors = checkpoint.read_tensors(path)
        sides = [_unit(tensors[side].float().numpy()) for side in SIDES if side in tensors]
        if len(sides) == 2:
            plots.append(_gap_plot(folder, path, str(meta.get("split", "?")), sides))
    return plots


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _gap_plot(folder: Path, path: Path, split: str, sides: list[np.ndarray]) -> Plot:
    gap = float(np.linalg.norm(sides[0].mean(0) - sides[1].mean(0)))
    every = np.concatenate(sides)
    _, _, axes_of = np.linalg.svd(every - every.mean(0), full_matrices=False)
    figure = pyplot_free()(figsize=(COLUMN, 2.8), layout="constrained")
    axes = figure.add_subplot()
    rows: list[list[Any]] = []
    for name, vectors, color, marker in zip(SIDES, sides, COLORS, "os", strict=False):
        step = max(1, len(vectors) // MOST_POINTS)
        points = (vectors[::step] - every.mean(0)) @ axes_of[:2].T
        axes.scatter(*points.T, s=6, color=color, marker=marker, alpha=0.6, label=name, linewidth=0)
        rows += [[name, *map(float, point)] for point in points]
    axes.set_xlabel("first principal axis")
    axes.set_ylabel("second principal axis")
    axes.legend()
    caption = (
        f"Embeddings of {folder.name}, {split} split: {len(sides[0]):,} images, {len(sides[1]):,} "
        f"texts, at most {MOST_POINTS} of each drawn. Modality gap (distance of the means of unit "
        f"vectors): {gap:.3f}."
    )
    name = re.sub(r"[^\w-]+", "_", f"gap_{folder.name}_{path.stem}")
    return Plot(name, figure, caption, ("modality", "first", "second"), rows)
