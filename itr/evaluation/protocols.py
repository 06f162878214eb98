"""Which images and captions of a split are ranked against each other. N images, C captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from itr.errors import ConfigError
from itr.evaluation.metrics import retrieval_metrics
from itr.evaluation.ranks import Ranks, rank_embeddings, rank_scores
from itr.instantiate import nearest

# The images to rank, their captions (both as an index), and the captions' images counted from 0.
Part = tuple[slice, slice | np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Protocol:
    """``images`` a split must have (None: any), ranked whole or, with ``fold``, in contiguous
    blocks of so many images whose metrics are averaged."""

    name: str
    images: int | None = None
    fold: int | None = None

    def fits(self, n_images: int) -> bool:
        """Whether a split of ``n_images`` can be evaluated so."""
        return self.images in (None, n_images) and n_images % (self.fold or 1) == 0


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("full"),
        Protocol("f30k_1k", images=1000),
        Protocol("coco_5k", images=5000),
        Protocol("coco_1k_5fold", images=5000, fold=1000),
    )
}


def find_protocols(names: Sequence[str]) -> list[Protocol]:
    """The protocols called ``names``. Raises ConfigError for an unknown name or an empty list."""
    if not names:
        raise ConfigError(f"data.protocols: empty; expected some of {', '.join(PROTOCOLS)}")
    for name in names:
        if name not in PROTOCOLS:
            raise ConfigError(
                f"data.protocols: '{name}' is unknown{nearest(name, PROTOCOLS)} "
                f"(known: {', '.join(PROTOCOLS)})"
            )
    return [PROTOCOLS[name] for name in dict.fromkeys(names)]


def applicable(
    protocols: Sequence[Protocol], n_images: int
) -> tuple[list[Protocol], list[Protocol]]:
    """Those that fit a split of ``n_images`` (``full`` if none does), and those left out."""
    fitting = [protocol for protocol in protocols if protocol.fits(n_images)]
    left_out = [protocol for protocol in protocols if not protocol.fits(n_images)]
    return fitting or [PROTOCOLS["full"]], left_out


def evaluate_embeddings(
    images: Tensor,
    texts: Tensor,
    text_to_image: Any,
    protocols: Sequence[Protocol],
    ties: str = "pessimistic",
    kept: dict[str, Ranks] | None = None,
) -> dict[str, float]:
    """Metrics of ``images`` [N, D] and ``texts`` [C, D] under dot products.

    The first protocol's have plain names (``rsum``), every other one's start with its name
    (``coco_1k_5fold/rsum``). ``kept`` as for `evaluate_parts`. Raises as `rank_embeddings`; the
    protocols must fit.
    """
    return evaluate_parts(
        lambda part: rank_embeddings(images[part[0]], texts[part[1]], part[2], ties),
        text_to_image,
        len(images),
        protocols,
        kept,
    )


def evaluate_scores(
    scores: np.ndarray | Tensor,
    text_to_image: Any,
    protocols: Sequence[Protocol],
    ties: str = "pessimistic",
) -> dict[str, float]:
    """Metrics of a given score matrix [N, C], named as by `evaluate_embeddings`."""
    return evaluate_parts(
        lambda part: rank_scores(scores[part[0]][:, part[1]], part[2], ties),
        text_to_image,
        len(scores),
        protocols,
    )


def evaluate_parts(
    rank: Callable[[Part], Ranks],
    text_to_image: Any,
    n_images: int,
    protocols: Sequence[Protocol],
    kept: dict[str, Ranks] | None = None,
) -> dict[str, float]:
    """Metrics of whatever ranks ``rank`` gives for the parts of each protocol, named as by
    `evaluate_embeddings`. Into ``kept`` go the ranks of every image and caption, by protocol."""
    owner = np.asarray(text_to_image, dtype=np.int64)
    results: dict[str, float] = {}
    for place, protocol in enumerate(protocols):
        prefix = f"{protocol.name}/" if place else ""
        parts = list(_parts(owner, n_images, protocol.fold))
        ranks = [rank(part) for part in parts]
        if kept is not None:
            kept[protocol.name] = _put_together(parts, ranks, n_images, len(owner))
        found = [retrieval_metrics(part) for part in ranks]
        for key in found[0]:
            results[f"{prefix}{key}"] = float(np.mean([metrics[key] for metrics in found]))
    return results


def _put_together(
    parts: Sequence[Part], ranks: Sequence[Ranks], n_images: int, n_captions: int
) -> Ranks:
    """Ranks of the whole split, NaN where a part asks nothing."""
    whole = Ranks(np.full(n_images, np.nan), np.full(n_captions, np.nan))
    for (images, captions, _), found in zip(parts, ranks, strict=True):
        whole.i2t[images], whole.t2i[captions] = found.i2t, found.t2i
    return whole


def _parts(owner: np.ndarray, n_images: int, fold: int | None) -> Iterator[Part]:
    if fold is None:
        yield slice(None), slice(None), owner
        return
    for start in range(0, n_images, fold):
        captions = np.flatnonzero((start <= owner) & (owner < start + fold))
        yield slice(start, start + fold), captions, owner[captions] - start
