"""The hardest queries of an evaluation as a table, with pictures where there are any."""

from __future__ import annotations

from typing import Any

from itr.data.records import Split
from itr.evaluation.query_log import DIRECTIONS, QueryLog
from itr.results.gallery.query_cases import choose
from itr.results.gallery.thumbnails import Thumbnails

COUNT = 16  # queries a direction
SIDE = 160  # pixels
COLUMNS = ("direction", "rank", "query", "picture", "best answer", "its picture", "match", "score")


def hard_queries(log: QueryLog, split: Split, pictures: Thumbnails) -> list[list[Any]]:
    """Rows under `COLUMNS`: of both directions the queries whose match is ranked last, under the
    first protocol. ``match`` is the best right answer; a picture that is not there is None. After
    re-ranking ranks are texts (a column has one type): "> 128" where the match lies behind."""
    captions, rows = split.captions(), []
    protocol = next(iter(log.ranks))
    depth = log.ranks[protocol].depth
    for way in DIRECTIONS:
        for case in choose(log, protocol, way, "worst", COUNT):
            first = case.candidates[0].number
            image = case.query if way == "i2t" else case.best
            answer = captions[first] if way == "i2t" else f"image {log.image_ids[first]}"
            query = f"image {log.image_ids[image]}" if way == "i2t" else captions[case.query]
            match = captions[case.best] if way == "i2t" else f"image {log.image_ids[image]}"
            rows.append(
                [
                    way,
                    case.rank if depth is None else _told(case.rank, depth),
                    query,
                    pictures.get(image, SIDE),
                    answer,
                    pictures.get(first, SIDE) if way == "t2i" else None,
                    match,
                    case.candidates[0].score,
                ]
            )
    return rows


def _told(rank: float, depth: int) -> str:
    return f"> {depth}" if rank > depth else f"{rank:g}"
