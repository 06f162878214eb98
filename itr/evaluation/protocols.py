"""Which images and captions of a split are ranked against each other. N images, C captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from itr.data.layouts.precomp_ids import ANNOTATIONS
from itr.data.records import Split
from itr.errors import ConfigError
from itr.evaluation.ground_truths import Asked, Truth, asked, coco_truth
from itr.evaluation.metrics import rank_metrics, retrieval_metrics, sums
from itr.evaluation.precision import positive_ranks, precision_metrics
from itr.evaluation.ranks import Matches, Ranks, check_owner, count_ranks, rank_table
from itr.evaluation.score_tables import EmbeddingTable, MatrixTable, ScoreTable
from itr.instantiate import nearest

WITHIN = ("i2i", "t2t")  # directions of a query among its like


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
    table_of: TableOf,
    gallery: Gallery,
    protocols: Sequence[Protocol],
    ties: str = "pessimistic",
    kept: dict[str, Ranks] | None = None,
) -> dict[str, Any]:
    """Metrics of every protocol, and what they are of, from the scores of each part.

    The first protocol's have plain names (``rsum``), every other one's start with its name
    (``coco_1k_5fold/rsum``). Beside them stand ``n_images``, ``n_captions`` (of all folds
    together), ``captions`` (the policy), averaged over, ``folds``, and what a ground truth left out
    or took from a first stage. Into ``kept`` go the ranks of every image and caption by protocol
    (NaN: not asked), those within images and within captions under ``<protocol>/within``. Raises as
    `check_owner` and `rank_table`; the protocols must fit.
    """
    check_owner(gallery.text_to_image, gallery.n_images, len(gallery.text_to_image))
    results: dict[str, Any] = {}
    kept = {} if kept is None else kept
    for place, protocol in enumerate(protocols):
        parts = list(gallery.parts(protocol))
        measure = _by_captions if protocol.truth is None else _by_truth
        found = measure(table_of, parts, gallery, protocol, ties, kept)
        found |= {
            "n_images": sum(len(np.arange(gallery.n_images)[part.images]) for part in parts),
            "n_captions": sum(len(part.owner) for part in parts),
            "captions": protocol.caption_policy,
        }
        if protocol.fold is not None:
            found["folds"] = len(parts)
        prefix = f"{protocol.name}/" if place else ""
        results |= {f"{prefix}{key}": value for key, value in found.items()}
    return results


def _by_captions(
    table_of: TableOf,
    parts: Sequence[Part],
    gallery: Gallery,
    protocol: Protocol,
    ties: str,
    kept: dict[str, Ranks],
) -> dict[str, Any]:
    """The mean over ``parts``; a caption's match is its own image."""
    ranks = [rank_table(table_of(part), part.owner, ties) for part in parts]
    found = [retrieval_metrics(each) for each in ranks]
    i2t, t2i = _nowhere(gallery)
    for part, own in zip(parts, ranks, strict=True):
        i2t[part.images], t2i[part.captions] = own.i2t, own.t2i
    kept[protocol.name] = Ranks(i2t, t2i, ranks[0].depth)
    return {key: float(np.mean([each[key] for each in found])) for key in found[0]}


def _nowhere(gallery: Gallery) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the whole gallery that nothing has asked for yet."""
    return np.full(gallery.n_images, np.nan), np.full(len(gallery.text_to_image), np.nan)


def _by_truth(
    table_of: TableOf,
    parts: Sequence[Part],
    gallery: Gallery,
    protocol: Protocol,
    ties: str,
    kept: dict[str, Ranks],
) -> dict[str, Any]:
    """Of the one part, by the protocol's ground truth."""
    assert gallery.image_ids is not None and gallery.caption_ids is not None
    assert protocol.truth is not None
    (part,) = parts
    table, truth = table_of(part), gallery.truth(protocol.truth)
    numbers = {
        "i": np.arange(gallery.n_images)[part.images],
        "t": np.arange(len(gallery.text_to_image))[part.captions],
    }
    ids = {"i": gallery.image_ids[numbers["i"]], "t": gallery.caption_ids[numbers["t"]]}
    among, within = _nowhere(gallery), _nowhere(gallery)
    places = {"i2t": among[0], "t2i": among[1], "i2i": within[0], "t2t": within[1]}
    results: dict[str, Any] = {}
    measured = [way for way in truth.positives if table.within or way not in WITHIN]
    for way in measured:
        found = asked(truth.positives[way], ids[way[0]], ids[way[-1]])
        measure = precisions if protocol.truth == "eccv" else recalls
        metrics, best = measure(table, way, found, ties)
        results |= {f"{way}_{key}": value for key, value in metrics.items()}
        places[way][numbers[way[0]][found.queries]] = best
    kept[protocol.name] = Ranks(*among, table.depth)
    inner = [way for way in WITHIN if way in measured]
    if inner:
        kept[f"{protocol.name}/within"] = Ranks(*within)
        if table.depth is not None:
            results["within"] = "first stage"
    if protocol.truth == "cxc" and (lacking := [way for way in WITHIN if way not in measured]):
        files = ", ".join(f"{ANNOTATIONS}/cxc_{way}.json" for way in lacking)
        why = f"no {files}" if table.within else "scores of images with captions alone"
        results["directions_left_out"] = f"{', '.join(lacking)} ({why})"
    return results | sums(results)


def recalls(
    table: ScoreTable, direction: str, found: Asked, ties: str, own: float = -torch.inf
) -> tuple[dict[str, float], np.ndarray]:
    """`rank_metrics` over the queries of ``found``, and the rank [Q] of each one's best positive.

    A query among its like (``i2i``, ``t2t``) scores ``own`` with itself.
    """
    scores, _, candidates = table.way(direction)
    queries = torch.from_numpy(found.queries).to(table.device)
    matches = Matches.of(found.rows, found.columns, len(queries), table.device)

    def tile(start: int, stop: int) -> Tensor:
        values = scores(queries[start:stop])
        if direction in WITHIN:
            values[torch.arange(len(values), device=table.device), queries[start:stop]] = own
        return values

    with torch.inference_mode():
        ranks = count_ranks(tile, candidates, matches, ties, table.tile)
    return rank_metrics(ranks, _ordered(table, direction)), ranks


def precisions(
    table: ScoreTable, direction: str, found: Asked, ties: str
) -> tuple[dict[str, float], np.ndarray]:
    """`precision_metrics` over the queries of ``found``, and the rank [Q] of each one's best
    positive."""
    scores, _, candidates = table.way(direction)
    ranks, place = positive_ranks(
        lambda rows: scores(rows.to(table.device)), found, table.height(candidates), ties
    )
    return precision_metrics(ranks, place, found, _ordered(table, direction)), ranks[place == 1]


def _ordered(table: ScoreTable, direction: str) -> int | None:
    """How many candidates of a query were ordered; None: all."""
    candidates = table.way(direction)[2]
    partial = table.depth is not None and direction not in WITHIN and table.depth < candidates
    return table.depth if partial else None


def evaluate_embeddings(
    images: Tensor,
    texts: Tensor,
    text_to_image: Any,
    protocols: Sequence[Protocol],
    ties: str = "pessimistic",
    kept: dict[str, Ranks] | None = None,
) -> dict[str, Any]:
    """`evaluate_gallery` of the dot products of ``images`` [N, D] and ``texts`` [C, D]."""
    return evaluate_table(EmbeddingTable(images, texts), text_to_image, protocols, ties, kept)


def evaluate_scores(
    scores: np.ndarray | Tensor,
    text_to_image: Any,
    protocols: Sequence[Protocol],
    ties: str = "pessimistic",
) -> dict[str, Any]:
    """`evaluate_gallery` of given scores [N, C]."""
    return evaluate_table(MatrixTable(scores), text_to_image, protocols, ties)


def evaluate_table(
    table: ScoreTable,
    text_to_image: Any,
    protocols: Sequence[Protocol],
    ties: str = "pessimistic",
    kept: dict[str, Ranks] | None = None,
) -> dict[str, Any]:
    """`evaluate_gallery` of a whole table, by caption numbers alone."""
    owner = check_owner(text_to_image, table.n_images, table.n_captions)
    gallery = Gallery(owner, table.n_images)
    return evaluate_gallery(
        lambda part: table.part(part.images, part.captions), gallery, protocols, ties, kept
    )
