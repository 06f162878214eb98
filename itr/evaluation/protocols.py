"""Which images and captions of a split are ranked against each other. N images, C captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from itr.data.ids import ANNOTATIONS
from itr.data.records import Split
from itr.errors import ConfigError
from itr.evaluation.metrics import rank_metrics, retrieval_metrics, sums
from itr.evaluation.precision import precision_metrics
from itr.evaluation.ranks import Matches, count_ranks, rank_table
from itr.evaluation.score_tables import EmbeddingTable, MatrixTable, Rows, ScoreTable
from itr.evaluation.truth import Asked, Truth, asked, coco_truth
from itr.instantiate import nearest


class Part(NamedTuple):
    """Images and captions (both as an index) that are ranked against each other."""

    images: slice | np.ndarray
    captions: slice | np.ndarray
    owner: np.ndarray  # the captions' images, counted from 0


@dataclass(frozen=True)
class Protocol:
    """``images`` a split must have (None: any), ranked whole or, with ``fold``, in contiguous
    blocks of so many images whose metrics are averaged. ``captions``: the first so many of each
    image (None: all). ``truth``: matches are those of CxC or ECCV Caption."""

    name: str
    images: int | None = None
    fold: int | None = None
    captions: int | None = None
    truth: str | None = None

    @property
    def caption_policy(self) -> str:
        """Which captions of an image take part."""
        if self.truth is not None:
            return f"those of {self.truth}"
        return "all" if self.captions is None else f"first {self.captions}"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("full"),
        Protocol("f30k_1k", images=1000),
        Protocol("coco_5k", images=5000),
        Protocol("coco_5k_first5", images=5000, captions=5),
        Protocol("coco_1k_5fold", images=5000, fold=1000),
        Protocol("coco_1k_5fold_first5", images=5000, fold=1000, captions=5),
        Protocol("cxc", truth="cxc"),
        Protocol("eccv", truth="eccv"),
    )
}


@dataclass(frozen=True)
class Gallery:
    """What is ranked: the image of each caption, and the data set's own ids where there are any.

    ``annotations``: a folder with CxC's ratings within images and within captions.
    """

    text_to_image: np.ndarray  # [C] int64
    n_images: int
    image_ids: np.ndarray | None = None  # [N]
    caption_ids: np.ndarray | None = None  # [C]
    annotations: Path | None = None

    @classmethod
    def of(cls, split: Split) -> Gallery:
        """That of a split."""
        images = np.array([record.image_id for record in split.records], dtype=np.int64)
        captions = [i for record in split.records for i in record.caption_ids]
        beside = Path(split.source).parent / ANNOTATIONS
        return cls(
            split.text_to_image,
            split.n_images,
            images,
            np.array(captions, dtype=np.int64),
            beside if beside.is_dir() else None,
        )

    def misfit(self, protocol: Protocol) -> str | None:
        """Why it cannot be evaluated as ``protocol``; None: it can."""
        if protocol.images not in (None, self.n_images) or self.n_images % (protocol.fold or 1):
            return f"needs {protocol.images or f'a multiple of {protocol.fold}'} images"
        if protocol.truth is not None:
            return self.truth(protocol.truth).lacks(self.image_ids, self.caption_ids)
        return None

    def truth(self, name: str) -> Truth:
        """The ground truth ``cxc`` or ``eccv``."""
        return coco_truth(name, self.annotations)

    def parts(self, protocol: Protocol) -> Iterator[Part]:
        """What is ranked: one part, or one a fold."""
        owner = np.asarray(self.text_to_image, dtype=np.int64)
        captions: slice | np.ndarray = slice(None)
        if protocol.captions is not None:
            captions = first_captions(owner, protocol.captions)
        elif protocol.truth is not None and self.caption_ids is not None:
            known = np.array(sorted(self.truth(protocol.truth).captions))
            if not (inside := np.isin(self.caption_ids, known)).all():
                captions = np.flatnonzero(inside)
        owner = owner[captions]
        if protocol.fold is None:
            yield Part(slice(None), captions, owner)
            return
        numbers = np.arange(len(self.text_to_image))[captions]
        for start in range(0, self.n_images, protocol.fold):
            here = (start <= owner) & (owner < start + protocol.fold)
            images = slice(start, start + protocol.fold)
            yield Part(images, numbers[here], owner[here] - start)


def first_captions(owner: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the first ``count`` captions of each image, rising; ``owner`` [C] are images."""
    order = np.argsort(owner, kind="stable")
    by_image = owner[order]
    place = np.arange(len(owner)) - np.searchsorted(by_image, by_image)
    return np.sort(order[place < count])


def find_protocols(names: Sequence[str]) -> list[Protocol]:
    """The protocols called ``names``. Raises ConfigError for an unknown name or an empty list."""
    if not names:
        raise ConfigError(f"protocol: empty; expected some of {', '.join(PROTOCOLS)}")
    for name in names:
        if name not in PROTOCOLS:
            raise ConfigError(
                f"protocol: '{name}' is unknown{nearest(name, PROTOCOLS)} "
                f"(known: {', '.join(PROTOCOLS)})"
            )
    return [PROTOCOLS[name] for name in dict.fromkeys(names)]


def applicable(
    protocols: Sequence[Protocol], gallery: Gallery
) -> tuple[list[Protocol], dict[str, str]]:
    """Those that fit (``full`` if none does), and why each of the others does not."""
    left_out = {p.name: why for p in protocols if (why := gallery.misfit(p)) is not None}
    fitting = [protocol for protocol in protocols if protocol.name not in left_out]
    return fitting or [PROTOCOLS["full"]], left_out


TableOf = Callable[[Part], ScoreTable]


def evaluate_gallery(
    table_of: TableOf, gallery: Gallery, protocols: Sequence[Protocol], ties: str = "pessimistic"
) -> dict[str, Any]:
    """Metrics of every protocol, and what they are of, from the scores of each part.

    The first protocol's have plain names (``rsum``), every other one's start with its name
    (``coco_1k_5fold/rsum``). Beside them stand ``n_images``, ``n_captions`` and ``captions`` (the
    policy) and, averaged over, ``folds``. Raises as `rank_table`; the protocols must fit.
    """
    results: dict[str, Any] = {}
    for place, protocol in enumerate(protocols):
        found, parts = [], list(gallery.parts(protocol))
        for part in parts:
            table = table_of(part)
            if protocol.truth is None:
                found.append(retrieval_metrics(rank_table(table, part.owner, ties)))
            else:
                found.append(_by_truth(table, part, gallery, protocol.truth, ties))
        metrics: dict[str, Any] = {
            key: float(np.mean([each[key] for each in found])) for key in found[0]
        }
        prefix = f"{protocol.name}/" if place else ""
        facts: dict[str, Any] = {
            "n_images": len(np.arange(gallery.n_images)[parts[0].images]),
            "n_captions": len(parts[0].owner),
            "captions": protocol.caption_policy,
        }
        if protocol.fold is not None:
            facts["folds"] = len(parts)
        results |= {f"{prefix}{key}": value for key, value in (metrics | facts).items()}
    return results


def _by_truth(
    table: ScoreTable, part: Part, gallery: Gallery, name: str, ties: str
) -> dict[str, float]:
    assert gallery.image_ids is not None and gallery.caption_ids is not None
    ids = {"i": gallery.image_ids[part.images], "t": gallery.caption_ids[part.captions]}
    truth = gallery.truth(name)
    metrics: dict[str, float] = {}
    for direction, positives in truth.positives.items():
        if direction in ("i2i", "t2t") and not table.within:
            continue
        found = asked(positives, ids[direction[0]], ids[direction[-1]])
        measure = precisions if name == "eccv" else recalls
        for key, value in measure(table, direction, found, ties).items():
            metrics[f"{direction}_{key}"] = value
    return {**metrics, **sums(metrics)}


def recalls(
    table: ScoreTable, direction: str, found: Asked, ties: str, own: float = -torch.inf
) -> dict[str, float]:
    """`rank_metrics` over the queries of ``found``, by their best positive.

    A query among its like (``i2i``, ``t2t``) scores ``own`` with itself.
    """
    scores, _, candidates = table.way(direction)
    queries = torch.from_numpy(found.queries).to(table.device)
    matches = Matches.of(found.rows, found.columns, len(queries), table.device)

    def tile(start: int, stop: int) -> Tensor:
        values = scores(queries[start:stop])
        if direction in ("i2i", "t2t"):
            values[torch.arange(len(values), device=table.device), queries[start:stop]] = own
        return values

    with torch.inference_mode():
        ranks = count_ranks(tile, candidates, matches, ties, table.tile)
    partial = table.depth is not None and table.depth < candidates
    return rank_metrics(ranks, table.depth if partial else None)


def precisions(table: ScoreTable, direction: str, found: Asked, ties: str) -> dict[str, float]:
    """`precision_metrics` over the queries of ``found``."""
    scores, _, candidates = table.way(direction)
    queries = torch.from_numpy(found.queries).to(table.device)

    def of(rows: Rows) -> Tensor:
        return scores(rows)

    height = table.height(candidates)
    return precision_metrics(of, queries, found.rows, found.columns, height, ties)


def evaluate_embeddings(
    images: Tensor,
    texts: Tensor,
    text_to_image: Any,
    protocols: Sequence[Protocol],
    ties: str = "pessimistic",
) -> dict[str, Any]:
    """`evaluate_gallery` of the dot products of ``images`` [N, D] and ``texts`` [C, D]."""
    return evaluate_table(EmbeddingTable(images, texts), text_to_image, protocols, ties)


def evaluate_scores(
    scores: np.ndarray | Tensor,
    text_to_image: Any,
    protocols: Sequence[Protocol],
    ties: str = "pessimistic",
) -> dict[str, Any]:
    """`evaluate_gallery` of given scores [N, C]."""
    return evaluate_table(MatrixTable(scores), text_to_image, protocols, ties)


def evaluate_table(
    table: ScoreTable, text_to_image: Any, protocols: Sequence[Protocol], ties: str = "pessimistic"
) -> dict[str, Any]:
    """`evaluate_gallery` of a whole table, by caption numbers alone."""
    gallery = Gallery(np.asarray(text_to_image, dtype=np.int64), table.n_images)
    return evaluate_gallery(
        lambda part: table.part(part.images, part.captions), gallery, protocols, ties
    )
