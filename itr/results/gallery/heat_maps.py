"""The heat map section of a gallery page: captions over their own and the top-ranked image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from itr.data.text.tokenizer import Tokenizer
from itr.errors import DataError
from itr.models.base import RetrievalModel
from itr.results.gallery import saliency
from itr.results.gallery.evaluated_run import EvaluatedRun
from itr.results.gallery.overlay import overlay, smooth_map
from itr.results.gallery.query_cases import QueryCase, case_of, choose
from itr.results.gallery.thumbnails import data_uri
from itr.view import PixelView


@dataclass(frozen=True)
class HeatMaps:
    """What the maps show, and one entry per caption."""

    description: str = ""
    cases: tuple[dict[str, Any], ...] = ()


def heat_maps(
    run: EvaluatedRun, model: RetrievalModel, tokenizer: Tokenizer, count: int, seed: int, text: str
) -> HeatMaps:
    """Maps of ``count`` captions: those that hold the words of ``text``, or, if it is empty, near
    misses first, then random ones. Raises DataError if no caption holds them."""
    if text:
        cases = _captions_with(run, text)[:count]
    else:
        cases = [
            *choose(run.log, run.protocol, "t2i", "near", -(-count // 2), seed),
            *choose(run.log, run.protocol, "t2i", "sample", count, seed),
        ][:count]
    pairs = [(image, case.query) for case in cases for image in _images(case)]
    maps = dict(zip(pairs, saliency.saliency_maps(model, tokenizer, run.split, pairs,
                                                  Path(run.data.cache)), strict=True))  # fmt: skip
    view = model.view.pixels_eval
    entries = tuple(
        {
            "caption": run.captions[case.query],
            "rank": run.rank_text(case),
            "is_first": case.rank <= 1,
            "maps": [
                _map(run, image, maps[image, case.query], image in case.matches, view)
                for image in _images(case)
            ],
        }
        for case in cases
    )
    return HeatMaps(saliency.describe_maps(model), entries)


def _captions_with(run: EvaluatedRun, text: str) -> list[QueryCase]:
    words, ranks = text.lower().split(), run.log.ranks[run.protocol].t2i
    found = [
        case_of(run.log, "t2i", query, float(ranks[query]))
        for query, caption in enumerate(run.captions)
        if np.isfinite(ranks[query]) and all(word in caption.lower() for word in words)
    ]
    if not found:
        raise DataError(
            f"--heat-for {text!r}: no caption of the {run.split_name} split holds these words; "
            "expected words of a caption that was a query. Pass others, or leave it out"
        )
    return found


def _images(case: QueryCase) -> list[int]:
    """The caption's own image and, if it is another, the top-ranked one."""
    return list(dict.fromkeys([case.matches[0], case.candidates[0].index]))


def _map(
    run: EvaluatedRun,
    image: int,
    saliency_map: saliency.SaliencyMap,
    is_match: bool,
    view: PixelView | None,
) -> dict[str, Any]:
    entry = {
        "is_match": is_match,
        "score": saliency_map.score,
        "label": run.image_label(image),
    }
    thumbnail = run.thumbnails.get(image)
    values = saliency_map.values
    if values.ndim == 1 or thumbnail is None:
        top = float(values.max()) or 1.0
        bars = [round(100 * float(value) / top) for value in values.ravel()]
        return {**entry, "bars": bars, "plain": run.image_uri(image), "overlay": ""}
    visible = saliency.visible_area(thumbnail, view)
    pixels = np.asarray(visible.convert("RGB"), dtype=np.float64) / 255
    painted = overlay(pixels, smooth_map(values, *pixels.shape[:2]))
    hot = Image.fromarray((255 * painted.clip(0, 1)).round().astype(np.uint8))
    return {**entry, "bars": [], "plain": data_uri(visible), "overlay": data_uri(hot)}
