"""Speed of re-ranking against one query at a time: ``python benchmarks/rerank_speed.py``.

A tiny ALBEF with random weights scores the k nearest candidates of 1,000 images and 5,000 captions.
The baseline is the usual loop: one query after the other, its k pairs in one batch, keys and values
of the image computed for each pair, captions padded to 30 ids, every layer computed for every word.
It runs on a share of the queries in both directions (``--share``), scaled up; ours runs in full.
CPU seconds of one thread; prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor, nn

from itr.evaluation.rerank import RerankConfig, rerank
from itr.losses.infonce import InfoNCE
from itr.models.albef import ALBEF, ALBEFConfig
from itr.models.base import Encoded
from itr.nn.bert.fusion import FusionTextConfig
from itr.nn.vit import ImageConfig
from itr.view import Facts

LONGEST, WIDTH = 30, 32


def build() -> ALBEF:
    """A model of two fusion layers, 32 wide."""
    config = ALBEFConfig(
        pretrained=False,
        queue_size=60,
        embed_size=16,
        image=ImageConfig(width=WIDTH, depth=1, heads=2, patch=16, size=64),
        text=FusionTextConfig(
            width=WIDTH,
            mlp_width=4 * WIDTH,
            depth=3,
            heads=2,
            fusion_layer=1,
        ),
    )
    slots = nn.ModuleDict({name: InfoNCE() for name in ALBEF.slot_names})
    weights = dict.fromkeys(ALBEF.term_names, 1.0)
    return ALBEF(config, slots, weights, Facts(vocabulary=60)).eval()


def encoded(images: int, captions: int, tokens: int) -> tuple[Encoded, Encoded]:
    """Random states; captions of 8 to 30 words, most of them short, as in COCO."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    lengths = (8 + normal(captions).abs() * 5).long().clamp(max=LONGEST)
    mask = torch.arange(LONGEST) < lengths[:, None]
    return (
        Encoded(normal(images, 16), normal(images, tokens, WIDTH)),
        Encoded(normal(captions, 16), normal(captions, LONGEST, WIDTH), mask),
    )


def one_query(model: ALBEF, images: Encoded, texts: Encoded, i: Tensor, t: Tensor) -> Tensor:
    """Scores of the pairs (``i``, ``t``) without shared computation."""
    states, mask = texts.tokens[t], texts.mask[t]
    fused = model.fusion(states, mask, model.fusion.keys_values(images.tokens[i]))
    return model.itm_head(fused[:, 0])[:, 1]


def loop(model: ALBEF, images: Encoded, texts: Encoded, lists: Tensor, way: str) -> list[Tensor]:
    """A row of scores for each row of candidates in ``lists``."""
    found = []
    for query, candidates in enumerate(lists):
        own = torch.full_like(candidates, query)
        pair = (own, candidates) if way == "i2t" else (candidates, own)
        found.append(one_query(model, images, texts, *pair))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=145, help="of an image: 192 pixels, patch 16")
    parser.add_argument("--k", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--share", type=float, default=0.02)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build()
    images, texts = encoded(options.images, options.captions, options.tokens)
    config = RerankConfig(k=options.k, batch_size=options.batch_size)
    with torch.inference_mode():
        started = time.process_time()
        lists = rerank(model, images, texts, config)
        ours, theirs, worst = time.process_time() - started, 0.0, 0.0
        for way, (candidates, scores) in zip(("i2t", "t2i"), lists, strict=True):
            part = max(1, round(options.share * len(candidates)))
            started = time.process_time()
            found = torch.stack(loop(model, images, texts, candidates[:part], way))
            theirs += (time.process_time() - started) * len(candidates) / part
            worst = max(worst, float((found - scores[:part]).abs().max()))
    report = {"ours": ours, "loop": theirs, "ratio": theirs / ours, "largest_difference": worst}
    print(json.dumps({key: float(f"{value:.3g}") for key, value in report.items()}))


if __name__ == "__main__":
    main()
