"""The hardest queries of an evaluation as table rows, with images if available."""

from __future__ import annotations

from typing import Any

from itr.data.records import Split
from itr.evaluation.query_log import DIRECTIONS, QueryLog
from itr.results.gallery.query_cases import choose
from itr.results.gallery.thumbnails import Thumbnails, image_label

COUNT = 16  # queries per direction
SIDE = 160  # pixels
COLUMNS = ("direction", "rank", "query", "image", "top candidate", "its image", "match", "score")


def hard_queries(log: QueryLog, split: Split, thumbnails: Thumbnails) -> list[list[Any]]:
    """Rows under `COLUMNS`: the lowest-ranked queries of both directions under the first protocol.

    ``match`` is the best-ranked match. A missing image is None. After re-ranking, ranks are strings
    (a column has one type): "> 128" if the match is not among the re-ranked candidates.
    """
    captions, rows = split.captions(), []
    protocol = next(iter(log.ranks))
    depth = log.ranks[protocol].depth
    for direction in DIRECTIONS:
        from_image = direction == "i2t"
        for case in choose(log, protocol, direction, "worst", COUNT):
            top = case.candidates[0]
            image = case.query if from_image else case.best_match
            name = image_label(split.records[image])
            rows.append(
                [
                    direction,
                    case.rank if depth is None else _rank_text(case.rank, depth),
                    name if from_image else captions[case.query],
                    thumbnails.get(image, SIDE),
                    captions[top.index] if from_image else image_label(split.records[top.index]),
                    None if from_image else thumbnails.get(top.index, SIDE),
                    captions[case.best_match] if from_image else name,
                    top.score,
                ]
            )
    return rows


def _rank_text(rank: float, depth: int) -> str:
    return f"> {depth}" if rank > depth else f"{rank:g}"
