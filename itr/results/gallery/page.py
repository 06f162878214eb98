"""Builds the gallery page of an evaluated run as one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np

from itr.data.text.tokenizer import Tokenizer
from itr.evaluation.query_log import DIRECTIONS, QueryLog
from itr.evaluation.statistics import recall_intervals
from itr.models.base import RetrievalModel
from itr.results.gallery.charts import Curve, chart, density
from itr.results.gallery.evaluated_run import EvaluatedRun
from itr.results.gallery.heat_maps import HeatMaps, heat_maps
from itr.results.gallery.query_cases import QueryCase, choose, hubs
from itr.results.gallery.thumbnails import SIDE

TEMPLATE = "page.html.j2"
COUNT = 8  # queries per section and direction
LARGEST = 5_000_000  # characters of a page with so many; a larger one gets smaller thumbnails
SIDES = (SIDE, 160, 112)  # pixels
SECTIONS = (
    ("worst", "Worst failures", "The queries whose match is ranked lowest."),
    (
        "near",
        "Near misses",
        "Random queries whose match is ranked second or third.",
    ),
    ("sample", "Random sample", "Queries drawn at random from the whole split."),
)
DIRECTION_NAMES = {"i2t": "image → text", "t2i": "text → image"}
STYLES = {"i2t": "first", "t2i": "second"}
# Checkpoint and the user's model options -> the model in eval mode and its tokenizer.
Load = Callable[[Path, Mapping[str, Any]], tuple[RetrievalModel, Tokenizer]]


def build_page(
    run: EvaluatedRun,
    load: Load | None = None,
    count: int = COUNT,
    heat: int = 6,
    seed: int = 0,
    heat_for: str = "",
) -> str:
    """The page as an HTML string.

    ``count``: queries per section and direction. ``heat``: captions with heat maps of the model
    that ``load`` returns; 0, or no ``load``: no heat maps. ``heat_for``: words that their captions
    must hold; empty: near misses and random captions.
    """
    path, no_maps = run.checkpoint()
    maps = HeatMaps()
    if load is not None and heat and path is not None:
        model, tokenizer = load(path, run.log.metadata.get("model_options") or {})
        maps = heat_maps(run, model, tokenizer, heat, seed, heat_for)
    page = ""
    for side in SIDES if count <= COUNT else SIDES[:1]:
        run.resize_thumbnails(side)
        page = (
            templates()
            .get_template(TEMPLATE)
            .render(
                name=run.folder.resolve().name,
                facts=facts_of(run),
                recalls=_recalls(run),
                charts=_charts(run.log, run.protocol),
                hubs=[_hubs(run, direction) for direction in DIRECTIONS],
                sections=_sections(run, count, seed),
                heat_maps=maps,
                no_maps=no_maps if load is not None and heat else "",
                missing=run.thumbnails.missing,
            )
        )
        if len(page) < LARGEST:
            break
    return page


def templates() -> jinja2.Environment:
    """The templates of the gallery's pages; what they show is escaped.

    Their one script is a file of this package. Its hash is in the page's policy, so that a browser
    runs no other, whatever the data holds.
    """
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("itr.results.gallery", "."), autoescape=True, trim_blocks=True
    )
    script = resources.files(__package__).joinpath("gallery.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made.globals["script"] = markupsafe.Markup(script)  # noqa: S704
    made.globals["policy"] = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    return made


def facts_of(run: EvaluatedRun) -> list[tuple[str, str]]:
    """What was evaluated, as (name, value)."""
    log = run.log
    facts = [
        ("data", f"{run.data.name}, {run.split_name} split"),
        ("protocol", run.protocol),
        ("queries", f"{len(log.image_ids):,} images, {len(log.caption_ids):,} captions"),
    ]
    if log.metadata.get("rerank_k"):
        facts.append(("scores", f"re-ranked, top {log.metadata['rerank_k']} of each query"))
    if log.metadata.get("rerank_checkpoint"):
        facts.append(("re-ranked by", log.metadata["rerank_checkpoint"]))
    return facts


def _recalls(run: EvaluatedRun) -> dict[str, Any]:
    log, protocol = run.log, run.protocol
    intervals = recall_intervals(log.ranks[protocol], log.text_to_image, log.folds.get(protocol))
    rows = [
        {
            "name": DIRECTION_NAMES[direction],
            "cells": [intervals[f"{direction}_r{k}"] for k in (1, 5, 10)],
        }
        for direction in DIRECTIONS
    ]
    return {"rows": rows, "rsum": intervals["rsum"]}


# Charts


def _charts(log: QueryLog, protocol: str) -> list[tuple[str, str]]:
    return [
        ("Scores of matching and non-matching pairs", _score_chart(log)),
        ("Mean score by rank", _mean_score_chart(log)),
        ("Recall at K", _recall_chart(log, protocol)),
    ]


def _score_chart(log: QueryLog) -> str:
    used = np.flatnonzero(log.match_counts + log.nonmatch_counts)
    first, last = used[0], used[-1] + 1
    edges = log.bin_edges[first : last + 1]
    bins = int(np.clip(2 * np.sqrt(log.match_counts.sum()), 12, 60))
    histograms = {"matches": log.match_counts, "non-matches": log.nonmatch_counts}
    curves = [
        Curve(name, *density(counts[first:last], edges, bins), style, filled=True)
        for (name, counts), style in zip(histograms.items(), STYLES.values(), strict=True)
    ]
    return chart(curves, "score", "% of pairs")


def _mean_score_chart(log: QueryLog) -> str:
    curves = [
        Curve(DIRECTION_NAMES[direction], np.arange(1, len(scores) + 1), scores, STYLES[direction])
        for direction in DIRECTIONS
        if len(scores := log.top_candidates[direction].mean_score_by_rank)
    ]
    return chart(curves, "rank of the candidate", "mean score", True)


def _recall_chart(log: QueryLog, protocol: str) -> str:
    deepest = min(100, log.metadata.get("rerank_k") or 100)  # ranks beyond it are unknown
    ks = np.unique(np.geomspace(1, deepest, 40).astype(int))
    curves = []
    for direction in DIRECTIONS:
        ranks = getattr(log.ranks[protocol], direction)
        ranks = ranks[np.isfinite(ranks)]
        recall = np.array([100 * (ranks <= k).mean() for k in ks])
        curves.append(Curve(DIRECTION_NAMES[direction], ks, recall, STYLES[direction]))
    return chart(curves, "K", "% of queries", True)


# Queries and candidates


def _sections(run: EvaluatedRun, count: int, seed: int) -> list[dict[str, Any]]:
    sections = []
    for selection, title, text in SECTIONS:
        for direction in DIRECTIONS:
            cases = choose(run.log, run.protocol, direction, selection, count, seed)
            sections.append(
                {
                    "id": f"{selection}-{direction}",
                    "title": f"{title}, {DIRECTION_NAMES[direction]}",
                    "text": text,
                    "cases": [card(run, case) for case in cases],
                    "direction": direction,
                }
            )
    return sections


def card(run: EvaluatedRun, case: QueryCase, log: QueryLog | None = None) -> dict[str, Any]:
    """A query with its candidates, and its best match if that is not among them.

    ``log``: of another run on the same data, whose answers the case holds.
    """
    from_image = case.direction == "i2t"
    candidates = [
        {
            "rank": candidate.rank,
            "score": candidate.score,
            "is_match": candidate.is_match,
            **_candidate(run, case.direction, candidate.index),
        }
        for candidate in case.candidates
    ]
    missed = None
    if not any(candidate.is_match for candidate in case.candidates):
        missed = {
            "rank": run.rank_text(case, log),
            "score": case.match_score,
            "is_match": True,
            **_candidate(run, case.direction, case.best_match),
        }
    return {
        "rank": run.rank_text(case, log),
        "is_first": case.rank <= 1,
        "query_text": "" if from_image else run.captions[case.query],
        "query_image": run.image_uri(case.query) if from_image else "",
        "label": run.image_label(case.query) if from_image else "",
        "captions": [run.captions[match] for match in case.matches] if from_image else [],
        "candidates": candidates,
        "missed": missed,
    }


def _candidate(run: EvaluatedRun, direction: str, index: int) -> dict[str, Any]:
    if direction == "i2t":
        return {"text": run.captions[index], "image": "", "label": ""}
    return {"text": "", "image": run.image_uri(index), "label": run.image_label(index)}


def _hubs(run: EvaluatedRun, direction: str) -> dict[str, Any]:
    skewness, top = hubs(run.log, direction)
    candidates = [{"times": times, **_candidate(run, direction, index)} for index, times in top]
    return {
        "name": DIRECTION_NAMES[direction],
        "skewness": skewness,
        "candidates": candidates,
        "direction": direction,
    }
