"""What an evaluation leaves of every query: ranks by protocol, best candidates, score statistics.

It lies beside ``results.json``, so that intervals, comparisons and galleries need no second
evaluation. N images, C captions, Q queries and M candidates of a direction, k kept of them, T
queries a tile.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from itr.errors import DataError, TrainingError
from itr.evaluation.ranks import Ranks
from itr.evaluation.rerank import Shortlist
from itr.evaluation.score_tables import TILE_CPU, TILE_GPU

KEPT = 10  # candidates a query
CURVE = 50  # ranks of the mean-score curve
BINS = 400
DIRECTIONS = ("i2t", "t2i")
Tiles = Iterator[tuple[int, Tensor, Tensor | None]]


class Answers(NamedTuple):
    """One direction's best candidates, and the scores of matches."""

    candidates: np.ndarray  # [Q, k] int32, best first
    scores: np.ndarray  # [Q, k] float32
    match: np.ndarray  # [Q] float32 of the best match; NaN: it was not among those scored
    by_rank: np.ndarray  # [R] float32: mean score of the candidate at rank 1, 2, ...


@dataclass
class QueryLog:
    """Every query of one evaluated split."""

    text_to_image: np.ndarray  # [C] int64
    image_ids: np.ndarray  # [N] int64, the data set's own
    caption_ids: np.ndarray  # [C] int64
    ranks: dict[str, Ranks]  # by protocol; float64, NaN: no query of it
    folds: dict[str, int]  # protocols that rank blocks of so many images
    answers: dict[str, Answers]  # i2t, t2i, over the whole split
    edges: np.ndarray  # [BINS + 1] float32
    matches: np.ndarray  # [BINS] int64: how many scores of matching pairs
    others: np.ndarray  # [BINS] int64: of all other scored pairs
    facts: dict[str, Any] = field(default_factory=dict)  # where it is from, see `save`

    def save(self, folder: Path, split: str, facts: Mapping[str, Any]) -> Path:
        """Write ``queries-<split>.npz`` below ``folder``, all or nothing.

        ``facts`` (JSON) say what a gallery needs beside: ``checkpoint``, ``model``, ``kind`` of the
        view, ``data`` (its resolved options). Raises TrainingError if it cannot be written.
        """
        path = query_file(folder, split)
        arrays: dict[str, Any] = {
            "facts": np.array(json.dumps({**facts, "split": split})),
            "folds": np.array(json.dumps(self.folds)),
        }
        for name in ("text_to_image", "image_ids", "caption_ids", "edges", "matches", "others"):
            arrays[name] = getattr(self, name)
        for protocol, ranks in self.ranks.items():
            arrays |= {f"ranks/{protocol}/{way}": getattr(ranks, way) for way in DIRECTIONS}
        for way, answers in self.answers.items():
            arrays |= {f"answers/{way}/{key}": v for key, v in answers._asdict().items()}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as handle:
                np.savez_compressed(handle, **arrays)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise TrainingError(
                f"{path}: the queries could not be saved ({error}); free some space"
            ) from error
        return path


def query_file(folder: Path, split: str) -> Path:
    """Where the queries of ``split`` lie below ``folder``."""
    return Path(folder) / f"queries-{split}.npz"


def read_queries(folder: Path, split: str = "test") -> QueryLog:
    """What `QueryLog.save` wrote. Raises DataError, naming the file, if it is not there or not
    readable."""
    path = query_file(folder, split)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts, folds = (json.loads(str(arrays.pop(name))) for name in ("facts", "folds"))
        names = dict.fromkeys(n.split("/")[1] for n in arrays if n.startswith("ranks/"))
        return QueryLog(
            ranks={n: Ranks(*(arrays.pop(f"ranks/{n}/{w}") for w in DIRECTIONS)) for n in names},
            answers={
                way: Answers(*(arrays.pop(f"answers/{way}/{key}") for key in Answers._fields))
                for way in DIRECTIONS
            },
            folds=folds,
            facts=facts,
            **arrays,
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; it holds the ranks of each query and is written by "
            f"python eval.py checkpoint={folder} split={split} out={folder}-{split}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); write it again: python eval.py "
            f"checkpoint={folder} split={split} out={folder}-{split}"
        ) from error


# Filling one


@dataclass
class Scored:
    """What the scores of a split say beyond ranks."""

    answers: dict[str, Answers]
    edges: np.ndarray
    matches: np.ndarray
    others: np.ndarray


def score_statistics(images: Tensor, texts: Tensor, text_to_image: Any) -> Scored:
    """Of dot products of ``images`` [N, D] and ``texts`` [C, D], in tiles."""
    bound = float(images.norm(dim=1).max() * texts.norm(dim=1).max()) * (1 + 1e-5)
    tile = TILE_GPU if images.is_cuda else TILE_CPU

    def tiles(queries: Tensor, candidates: Tensor) -> Tiles:
        height = max(1, tile // len(candidates))
        for start in range(0, len(queries), height):
            yield start, queries[start : start + height] @ candidates.t(), None

    with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
        return _scored(
            tiles(images, texts), tiles(texts, images), text_to_image, len(images), (-bound, bound)
        )


def shortlist_statistics(i2t: Shortlist, t2i: Shortlist, text_to_image: Any) -> Scored:
    """Of the re-ranked pairs alone; no other pair has a final score."""
    low = min(float(part.scores.min()) for part in (i2t, t2i))
    high = max(float(part.scores.max()) for part in (i2t, t2i))
    room = 1e-5 * max(1.0, abs(low), abs(high))
    with torch.inference_mode():
        return _scored(
            iter([(0, i2t.scores, i2t.candidates)]),
            iter([(0, t2i.scores, t2i.candidates)]),
            text_to_image,
            len(i2t.scores),
            (low - room, high + room),
        )


def _scored(
    i2t: Tiles, t2i: Tiles, text_to_image: Any, n_images: int, limits: tuple[float, float]
) -> Scored:
    owner = torch.as_tensor(np.asarray(text_to_image), dtype=torch.int64)
    number = torch.arange(n_images)
    forward = _answers(i2t, lambda rows, columns: number[rows, None] == owner[columns], limits)
    backward = _answers(t2i, lambda rows, columns: owner[rows, None] == columns, limits)
    # The same pairs both ways unless shortlists were cut: one direction is the histogram.
    (_, everything, own) = backward
    edges = np.linspace(*limits, BINS + 1, dtype=np.float32)
    return Scored({"i2t": forward[0], "t2i": backward[0]}, edges, own, everything - own)


def _answers(
    tiles: Tiles, matching: Callable[[Tensor, Tensor], Tensor], limits: tuple[float, float]
) -> tuple[Answers, np.ndarray, np.ndarray]:
    kept, scores, match, curves = [], [], [], []
    everything, own = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for start, values, columns in tiles:
        rows = torch.arange(start, start + len(values))
        best = values.topk(min(CURVE, values.shape[1]), dim=1)
        places = best.indices if columns is None else columns.gather(1, best.indices)
        kept.append(places[:, :KEPT].int().cpu().numpy())
        scores.append(best.values[:, :KEPT].float().cpu().numpy())
        curves.append(best.values.double().sum(dim=0).cpu())
        values = values.float().cpu()
        where = torch.arange(values.shape[1])[None] if columns is None else columns.cpu()
        mine = matching(rows, where)
        top = values.masked_fill(~mine, -torch.inf).amax(dim=1)
        match.append(top.masked_fill(top == -torch.inf, torch.nan).numpy())
        everything += torch.histc(values, BINS, *limits).long().numpy()
        own += torch.histc(values[mine], BINS, *limits).long().numpy()
    queries = sum(len(part) for part in kept)
    curve = torch.stack(curves).sum(dim=0) / queries
    found = Answers(
        np.concatenate(kept),
        np.concatenate(scores),
        np.concatenate(match).astype(np.float32),
        curve.float().numpy(),
    )
    return found, everything, own
