"""One self-contained page: what a run finds, what it misses, and where it looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from itr.data.layouts.registry import DataConfig
from itr.data.records import Split
from itr.data.text.open import Tokenizer
from itr.errors import DataError
from itr.evaluation.query_log import DIRECTIONS, QueryLog, read_queries
from itr.evaluation.statistics import recall_intervals
from itr.instantiate import check
from itr.models.base import RetrievalModel
from itr.results.gallery import saliency
from itr.results.gallery.charts import Curve, chart, density
from itr.results.gallery.overlay import overlay, smooth_map
from itr.results.gallery.query_cases import Case, choose, hubs
from itr.results.gallery.thumbnails import Thumbnails, data_uri, open_thumbnails
from itr.view import PixelView

TEMPLATE = "page.html.j2"
SECTIONS = (
    ("worst", "Worst failures", "The queries whose match is ranked last."),
    ("near", "Near misses", "The match came second or third. Drawn at random."),
    ("sample", "A fair sample", "Queries drawn at random: what to expect."),
)
WAYS = {"i2t": "image → text", "t2i": "text → image"}
BEST = Path("checkpoints") / "best.safetensors"
# A checkpoint and what the user said of its model -> the model in eval mode and its tokenizer.
Load = Callable[[Path, Mapping[str, Any]], tuple[RetrievalModel, Tokenizer]]


@dataclass
class Gallery:
    """All that the page shows of one run."""

    folder: Path
    split_name: str
    log: QueryLog
    split: Split
    data: DataConfig
    pictures: Thumbnails
    protocol: str
    captions: list[str] = field(init=False)
    drawn: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.captions = self.split.captions()
        found = len(self.split.records), len(self.captions)
        expected = len(self.log.image_ids), len(self.log.caption_ids)
        ids = [record.image_id for record in self.split.records]
        if found != expected or ids != self.log.image_ids.tolist():
            raise DataError(
                f"{self.split.source}: holds {found[0]} images and {found[1]} captions, the "
                f"evaluation in {self.folder} saw {expected[0]} and {expected[1]} (or others); the "
                f"data changed since: evaluate again, python eval.py checkpoint={self.folder} "
                f"out={self.folder}-{self.split_name}"
            )

    def picture(self, image: int) -> str:
        """The picture as a URL that holds it; empty if there is none."""
        if image not in self.drawn:
            found = self.pictures.get(image)
            self.drawn[image] = "" if found is None else data_uri(found)
        return self.drawn[image]


def open_gallery(folder: Path, split: str = "test", protocol: str | None = None) -> Gallery:
    """What the evaluation in ``folder`` left, and the data it was of. Raises DataError where one is
    missing, where the data changed, or for a protocol that was not evaluated."""
    log = read_queries(folder, split)
    if not log.ranks:
        raise DataError(
            f"{folder}: was evaluated as {', '.join(log.extra_ranks)} alone, by a ground truth "
            "that the page does not show; evaluate again with another protocol, e.g. protocol=full"
        )
    protocol = protocol or next(iter(log.ranks))
    if protocol not in log.ranks:
        known = ", ".join(log.ranks)
        raise DataError(f"{folder}: was not evaluated as {protocol}; --protocol is one of {known}")
    if "data" not in log.metadata:
        raise DataError(
            f"{folder}: its scores came without a data set, so there are no pictures to show"
        )
    data: DataConfig = check(log.metadata["data"], DataConfig, "data")
    opened, pictures = open_thumbnails(data, split, log.metadata["kind"])
    return Gallery(folder, split, log, opened, data, pictures, protocol)


def build_page(
    gallery: Gallery, load: Load | None = None, count: int = 8, heat: int = 6, seed: int = 0
) -> str:
    """The page as one HTML string: ``count`` queries a section and direction, ``heat`` captions
    with maps of the model that ``load`` gives (0, or no ``load``: without)."""
    log = gallery.log
    sections = []
    for choice, title, text in SECTIONS:
        for way in DIRECTIONS:
            cases = choose(log, gallery.protocol, way, choice, count, seed)
            shown = [_shown(gallery, case) for case in cases]
            sections.append(
                {"id": f"{choice}-{way}", "title": f"{title}, {WAYS[way]}", "text": text,
                 "cases": shown, "way": way}
            )  # fmt: skip
    path, no_maps = _checkpoint(gallery)
    kind, seen = "", list[dict[str, Any]]()
    if load is not None and heat and path is not None:
        kind, seen = _maps(
            gallery, *load(path, log.metadata.get("model_options") or {}), heat, seed
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("itr.results", "."), autoescape=True, trim_blocks=True
    )
    return environment.get_template(TEMPLATE).render(
        name=gallery.folder.resolve().name,
        facts=_facts(gallery),
        numbers=_numbers(gallery),
        charts=_charts(log, gallery.protocol),
        hubs=[_hub(gallery, way) for way in DIRECTIONS],
        sections=sections,
        heat_kind=kind,
        heat=seen,
        no_maps=no_maps if load is not None and heat else "",
        missing=gallery.pictures.missing,
    )


def _facts(gallery: Gallery) -> list[tuple[str, str]]:
    log = gallery.log
    facts = [
        ("data", f"{gallery.data.name}, {gallery.split_name} split"),
        ("protocol", gallery.protocol),
        ("queries", f"{len(log.image_ids):,} images, {len(log.caption_ids):,} captions"),
    ]
    if log.metadata.get("rerank_k"):
        facts.append(("scores", f"re-ranked: the best {log.metadata['rerank_k']} of each query"))
    return facts


def _numbers(gallery: Gallery) -> list[dict[str, Any]]:
    log, protocol = gallery.log, gallery.protocol
    ranks, fold = log.ranks[protocol], log.folds.get(protocol)
    found = recall_intervals(ranks, log.text_to_image, fold)
    rows = []
    for way in DIRECTIONS:
        cells = [found[f"{way}_r{k}"] for k in (1, 5, 10)]
        rows.append({"name": WAYS[way], "cells": cells})
    return [{"rows": rows, "rsum": found["rsum"]}]


def _charts(log: QueryLog, protocol: str) -> list[tuple[str, str]]:
    made = []
    both = log.match_counts + log.nonmatch_counts
    there = np.flatnonzero(both)
    cut = slice(there[0], there[-1] + 1)
    edges = log.bin_edges[there[0] : there[-1] + 2]
    bins = int(np.clip(2 * np.sqrt(log.match_counts.sum()), 12, 60))
    curves = [
        Curve("matches", *density(log.match_counts[cut], edges, bins), "first", filled=True),
        Curve(
            "non-matches", *density(log.nonmatch_counts[cut], edges, bins), "second", filled=True
        ),
    ]
    made.append(("Scores of matching and other pairs", chart(curves, "score", "% of pairs")))
    curves = [
        Curve(WAYS[way], np.arange(1, len(y) + 1), y, style)
        for way, style in (("i2t", "first"), ("t2i", "second"))
        if len(y := log.top_candidates[way].mean_score_by_rank)
    ]
    made.append(("Mean score by rank", chart(curves, "rank of the candidate", "mean score", True)))
    deepest = min(100, log.metadata.get("rerank_k") or 100)  # beyond it no rank is known
    ks, ranks = np.unique(np.geomspace(1, deepest, 40).astype(int)), log.ranks[protocol]
    curves = []
    for way, style in (("i2t", "first"), ("t2i", "second")):
        asked = getattr(ranks, way)[np.isfinite(getattr(ranks, way))]
        share = np.array([100 * (asked <= k).mean() for k in ks])
        curves.append(Curve(WAYS[way], ks, share, style))
    made.append(("Recall at K", chart(curves, "K", "% of queries", True)))
    return made


def _hub(gallery: Gallery, way: str) -> dict[str, Any]:
    skewness, top = hubs(gallery.log, way)
    items = [
        {"times": times, **_answer(gallery, way, number)} for number, times in top
    ]  # the most frequent answers
    return {"name": WAYS[way], "skewness": skewness, "items": items, "way": way}


def _answer(gallery: Gallery, way: str, number: int) -> dict[str, Any]:
    if way == "i2t":
        return {"text": gallery.captions[number], "picture": "", "label": ""}
    image_id = gallery.log.image_ids[number]
    return {"text": "", "picture": gallery.picture(number), "label": f"image {image_id}"}


def _shown(gallery: Gallery, case: Case) -> dict[str, Any]:
    """A card: the query, its candidates, and its match where that is not among them."""
    way = case.way
    owner = case.query if way == "i2t" else int(gallery.log.text_to_image[case.query])
    candidates = [
        {
            "rank": candidate.rank,
            "score": candidate.score,
            "right": candidate.right,
            **_answer(gallery, way, candidate.number),
        }
        for candidate in case.candidates
    ]
    place, missed = _place(gallery, case), None
    if not any(candidate.right for candidate in case.candidates):
        missed = {
            "rank": place,
            "score": case.match,
            "right": True,
            **_answer(gallery, way, case.best),
        }
    return {
        "rank": place,
        "found": case.rank <= 1,
        "query_text": "" if way == "i2t" else gallery.captions[case.query],
        "query_picture": gallery.picture(owner) if way == "i2t" else "",
        "label": f"image {gallery.log.image_ids[owner]}" if way == "i2t" else "",
        "truths": [gallery.captions[t] for t in case.truths] if way == "i2t" else [],
        "candidates": candidates,
        "missed": missed,
    }


def _place(gallery: Gallery, case: Case) -> str:
    """The rank; of a match behind the candidates that were re-ranked, only what it exceeds."""
    depth = gallery.log.metadata.get("rerank_k")
    return f"> {depth}" if depth and case.match is None else f"{case.rank:g}"


# Heat maps


def _checkpoint(gallery: Gallery) -> tuple[Path | None, str]:
    """The file whose model was evaluated; or None, and why there are no maps."""
    named = [Path(name) for name in gallery.log.metadata.get("checkpoints", [])]
    if len(named) > 1:
        return None, (
            f"the scores are the mean of {len(named)} models. Each has maps of its own: python "
            f"eval.py checkpoint={named[0]} out=DIR, then itr gallery DIR"
        )
    path = named[0] if named else gallery.folder / BEST
    return (path, "") if path.is_file() else (None, f"{path} is not there (any more)")


def _maps(
    gallery: Gallery, model: RetrievalModel, tokenizer: Tokenizer, count: int, seed: int
) -> tuple[str, list[dict[str, Any]]]:
    """What the maps show, and for each caption its own image and the one that was preferred."""
    half = -(-count // 2)
    cases = [
        *choose(gallery.log, gallery.protocol, "t2i", "near", half, seed),
        *choose(gallery.log, gallery.protocol, "t2i", "sample", count, seed),
    ][:count]
    pairs: list[tuple[int, int]] = []
    for case in cases:
        best = case.candidates[0].number
        pairs += [(case.truths[0], case.query)] + (
            [] if best in case.truths else [(best, case.query)]
        )
    seen = dict(zip(pairs, saliency.look(model, tokenizer, gallery.split, pairs,
                                     Path(gallery.data.cache)), strict=True))  # fmt: skip
    shown, view = [], model.view.pixels_eval
    for case in cases:
        images = dict.fromkeys([case.truths[0], case.candidates[0].number])
        shown.append(
            {
                "caption": gallery.captions[case.query],
                "rank": _place(gallery, case),
                "found": case.rank <= 1,
                "maps": [
                    _map(gallery, image, seen[image, case.query], image in case.truths, view)
                    for image in images
                ],
            }
        )
    return saliency.kind_of(model), shown


def _map(
    gallery: Gallery, image: int, seen: saliency.Seen, right: bool, view: PixelView | None
) -> dict[str, Any]:
    picture = gallery.pictures.get(image)
    told = {"right": right, "score": seen.score, "label": f"image {gallery.log.image_ids[image]}"}
    if seen.values.ndim == 1 or picture is None:
        top = float(seen.values.max()) or 1.0
        bars = [round(100 * float(v) / top) for v in seen.values.ravel()]
        return {**told, "bars": bars, "plain": gallery.picture(image), "picture": ""}
    picture = saliency.visible_area(picture, view)
    values = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    painted = overlay(values, smooth_map(seen.values, *values.shape[:2]))
    hot = Image.fromarray((255 * painted.clip(0, 1)).round().astype(np.uint8))
    return {**told, "bars": [], "plain": data_uri(picture), "picture": data_uri(hot)}
