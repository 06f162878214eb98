"""What an evaluation leaves of every query: ranks by protocol, best candidates, score statistics.

It lies beside ``results.json``, so that intervals, comparisons and galleries need no second
evaluation. N images, C captions, Q queries and M candidates of a direction, k kept of them, T
queries a tile.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from itr import files
from itr.errors import DataError
from itr.evaluation.protocols import Gallery, Protocol
from itr.evaluation.ranks import Ranks
from itr.evaluation.score_tables import ScoreTable

KEPT = 10  # candidates a query
CURVE = 50  # ranks of the mean-score curve
BINS = 400
DIRECTIONS = ("i2t", "t2i")
JSONS = ("facts", "folds", "depths")


class Answers(NamedTuple):
    """One direction's best candidates, and the scores of matches."""

    candidates: np.ndarray  # [Q, k] int32, best first
    scores: np.ndarray  # [Q, k] float32
    match: np.ndarray  # [Q] float32 of the best match; NaN: it was not among those scored
    truth: np.ndarray  # [Q] int32: which candidate that is (or the first match)
    by_rank: np.ndarray  # [R] float32: mean score of the candidate at rank 1, 2, ...


@dataclass
class QueryLog:
    """Every query of one evaluated split."""

    text_to_image: np.ndarray  # [C] int64
    image_ids: np.ndarray  # [N] int64, the data set's own
    caption_ids: np.ndarray  # [C] int64
    ranks: dict[str, Ranks]  # by protocol; float64, NaN: no query of it
    folds: dict[str, int]  # protocols that rank blocks of so many images
    # Ranks that no gallery shows: of protocols with a ground truth of their own (``cxc``,
    # ``cxc/within``: images among images and captions among captions, ``eccv``) and of rows beside
    # the result (``first_stage/full``, ``member_1/full``, ``hubness_csls/full``).
    more: dict[str, Ranks]
    answers: dict[str, Answers]  # i2t, t2i, over the whole split
    edges: np.ndarray  # [BINS + 1] float32
    matches: np.ndarray  # [BINS] int64: how many scores of matching pairs
    others: np.ndarray  # [BINS] int64: of all other scored pairs
    facts: dict[str, Any] = field(default_factory=dict)  # where it is from, see `save`

    def save(self, folder: Path, split: str, facts: Mapping[str, Any]) -> Path:
        """Write ``queries-<split>.npz`` below ``folder``, all or nothing.

        ``facts`` (JSON) say what a gallery needs beside: ``checkpoints``, ``told`` of their model,
        ``kind`` of the view, ``data`` (its resolved options). Raises TrainingError if it cannot be
        written.
        """
        path = query_file(folder, split)
        arrays: dict[str, Any] = {
            "facts": np.array(json.dumps({**facts, "split": split})),
            "folds": np.array(json.dumps(self.folds)),
            "depths": np.array(json.dumps({n: r.depth for n, r in self.everything.items()})),
        }
        for name in ("text_to_image", "image_ids", "caption_ids", "edges", "matches", "others"):
            arrays[name] = getattr(self, name)
        for kind, named in (("ranks", self.ranks), ("more", self.more)):
            for name, ranks in named.items():
                arrays |= {f"{kind}/{name}/{way}": getattr(ranks, way) for way in DIRECTIONS}
        for way, answers in self.answers.items():
            arrays |= {f"answers/{way}/{key}": v for key, v in answers._asdict().items()}
        with files.replacing(path, "the queries") as handle:
            np.savez_compressed(handle, **arrays)
        return path

    @property
    def everything(self) -> dict[str, Ranks]:
        """All ranks, by protocol or by what `more` calls them."""
        return self.ranks | self.more


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
        facts, folds, depths = (json.loads(str(arrays.pop(name))) for name in JSONS)

        def named(kind: str) -> dict[str, Ranks]:
            names = [n.removesuffix("/i2t") for n in arrays if n.startswith(f"{kind}/")]
            names = [n.removeprefix(f"{kind}/") for n in names if not n.endswith("/t2i")]
            own = {n: [arrays.pop(f"{kind}/{n}/{way}") for way in DIRECTIONS] for n in names}
            return {n: Ranks(i2t, t2i, depths[n]) for n, (i2t, t2i) in own.items()}

        return QueryLog(
            ranks=named("ranks"),
            more=named("more"),
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


def log_queries(
    table: ScoreTable, gallery: Gallery, protocols: Sequence[Protocol], ranks: dict[str, Ranks]
) -> QueryLog:
    """The log of a ``table`` of the whole split with the ``ranks`` that `evaluate_gallery` kept (by
    protocol, and any that `QueryLog.more` may hold).

    Where there are no ids of a data set, images and captions are numbered.
    """
    ids = gallery.image_ids, gallery.caption_ids
    counts = table.n_images, table.n_captions
    numbers = [np.arange(n) if own is None else own for own, n in zip(ids, counts, strict=True)]
    shown = [p.name for p in protocols if p.truth is None]
    return QueryLog(
        text_to_image=np.asarray(gallery.text_to_image, dtype=np.int64),
        image_ids=numbers[0],
        caption_ids=numbers[1],
        ranks={name: own for name, own in ranks.items() if name in shown},
        more={name: own for name, own in ranks.items() if name not in shown},
        folds={p.name: p.fold for p in protocols if p.fold},
        **vars(score_statistics(table, gallery.text_to_image)),
    )


@dataclass
class Scored:
    """What the scores of a split say beyond ranks."""

    answers: dict[str, Answers]
    edges: np.ndarray
    matches: np.ndarray
    others: np.ndarray


def score_statistics(table: ScoreTable, text_to_image: Any) -> Scored:
    """Best answers of both directions, and histograms of all scores (of captions with images)."""
    owner = torch.as_tensor(np.asarray(text_to_image), dtype=torch.int64).to(table.device)
    with torch.inference_mode():
        limits = _limits(table)
        histogram = _Histogram(limits)
        everyone = torch.arange(table.n_images, device=table.device)
        answers = {
            "i2t": _answers(table, "i2t", lambda rows: everyone[rows, None] == owner[None]),
            "t2i": _answers(
                table, "t2i", lambda rows: owner[rows, None] == everyone[None], histogram
            ),
        }
    edges = np.linspace(*limits, BINS + 1, dtype=np.float32)
    return Scored(answers, edges, histogram.own, histogram.everything - histogram.own)


def _tiles(table: ScoreTable, direction: str) -> Iterator[tuple[slice, Tensor]]:
    scores, queries, candidates = table.way(direction)
    height = table.height(candidates)
    for start in range(0, queries, height):
        rows = slice(start, min(start + height, queries))
        yield rows, scores(rows).float()


def _limits(table: ScoreTable) -> tuple[float, float]:
    """Least and greatest score, with some room."""
    low, high = torch.inf, -torch.inf
    for _, values in _tiles(table, "t2i"):
        high = max(high, float(values.max()))
        low = min(low, float(values.masked_fill(values == -torch.inf, torch.inf).min()))
    room = 1e-5 * max(1.0, abs(low), abs(high))
    return low - room, high + room


class _Histogram:
    """Counts of scores, and of those of matches; -inf (not scored) counts nowhere."""

    def __init__(self, limits: tuple[float, float]):
        self.limits = limits
        self.everything, self.own = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)

    def add(self, values: Tensor, match: Tensor) -> None:
        """Count ``values`` [T, M] of which ``match`` says which belong together."""
        self.everything += self._count(values)
        self.own += self._count(values[match])

    def _count(self, values: Tensor) -> np.ndarray:
        return torch.histc(values[values > -torch.inf].cpu(), BINS, *self.limits).long().numpy()


def _answers(
    table: ScoreTable,
    direction: str,
    matching: Callable[[slice], Tensor],
    histogram: _Histogram | None = None,
) -> Answers:
    kept, scores, match, truth, curves = [], [], [], [], []
    for rows, values in _tiles(table, direction):
        best = values.topk(min(CURVE, table.depth or CURVE, values.shape[1]), dim=1)
        kept.append(best.indices[:, :KEPT].int().cpu().numpy())
        scores.append(best.values[:, :KEPT].cpu().numpy())
        curves.append(best.values.double().sum(dim=0).cpu())
        mine = matching(rows)
        own = values.masked_fill(~mine, -torch.inf)
        top = own.amax(dim=1)
        unscored = (top == -torch.inf)[:, None]
        truth.append(torch.where(unscored, mine.float(), own).argmax(dim=1).int().cpu().numpy())
        match.append(top.masked_fill(top == -torch.inf, torch.nan).cpu().numpy())
        if histogram is not None:
            histogram.add(values, mine)
    curve = torch.stack(curves).sum(dim=0) / sum(len(part) for part in kept)
    return Answers(
        np.concatenate(kept),
        np.concatenate(scores),
        np.concatenate(match).astype(np.float32),
        np.concatenate(truth),
        curve[curve > -torch.inf].float().numpy(),
    )
