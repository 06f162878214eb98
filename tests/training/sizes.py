"""Every model in a size that trains in seconds, on the tiny world of ``tests/conftest.py``."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import TINY

COMMON = (
    "data.prepare.train=60",
    "data.prepare.val=20",
    "data.prepare.test=20",
    "tracker=none",
    "device=cpu",
    "runtime.estimate=false",
    "runtime.eval_batch_size=8",
    "rerank.k=12",
)
TEXT = (
    "model.text.width=32",
    "model.text.mlp_width=32",
    "model.text.heads=2",
)
REGIONS = ("model.embed_size=32", "model.text.depth=1", *TEXT)
SIZES: dict[str, tuple[str, ...]] = {
    "hrem": tuple(o for o in TINY if o.startswith("model.")),
    "user": (*REGIONS, "model.queue_size=40"),
    "vse": REGIONS,
    "alip": (
        "model.image.size=32",
        "model.embed_size=16",
        "model.image.depth=2",
        "model.image.width=64",
        "model.image.patch=16",
        "model.text.width=64",
        "model.text.heads=1",
        "model.text.depth=1",
    ),
    "albef": (
        *TEXT,
        "model.queue_size=40",
        "model.image.size=32",
        "model.image.patch=16",
        "model.image.width=32",
        "model.image.depth=1",
        "model.text.depth=2",
        "model.text.fusion_layer=1",
    ),
    "multisea": (
        *TEXT,
        "model.embed_size=16",
        "model.queue_size=30",
        "model.text_padding=16",
        "model.image.size=32",
        "model.image.patch=16",
        "model.image.width=16",
        "model.image.head_width=8",
        "model.image.depth=2",
        "model.text.depth=1",
        "model.aformer.depth=2",
        "model.aformer.heads=2",
    ),
}
# What is random inside a model, off: ranks cannot share one model's dropout.
CALM: dict[str, tuple[str, ...]] = {
    "hrem": ("model.dropout=0", "model.text.dropout=0"),
    "user": ("model.enhance_dropout=0", "model.text.dropout=0"),
    "vse": ("model.text.dropout=0",),
    "alip": (),
    "albef": ("model.text.dropout=0",),
    "multisea": (
        "model.aformer.dropout=0",
        "model.aformer.attention_dropout=0",
        "model.text.dropout=0",
    ),
}


def overrides(model: str, world: Path, *more: str) -> list[str]:
    """What to type for a tiny run of ``model``."""
    places = (f"data.root={world / 'data'}", f"data.cache={world / 'cache'}")
    return [f"model={model}", *COMMON, *SIZES[model], *places, *more]
