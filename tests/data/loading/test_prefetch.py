"""What is left to the device, kept there, or put together by length: the same numbers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from itr.data.images.randaugment import (
    ARGUMENTS,
    SIGNED,
    apply_operation,
    apply_operations,
    grouped,
)
from itr.data.images.regions import cache_regions
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.loading.eval_batches import image_batches
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.text.known_tokenizers import open_tokenizer
from itr.errors import ConfigError, DataError
from itr.view import CaptionAugment, PixelView, TextView, View
from tests.data.image_files import entry, write_karpathy
from tests.data.loading.test_loader import IMAGES, REGIONS, WIDTH, all_equal, make_view, world  # noqa: F401

CPU = torch.device("cpu")

# Pixels


@pytest.mark.parametrize("wrapping", [False, True])
def test_many_pictures_at_once_are_augmented_as_one_by_one(wrapping):
    generator = torch.Generator().manual_seed(0)
    operations = [
        (name, sign * value)
        for name, value in ARGUMENTS.items()
        for sign in ((1, -1) if name in SIGNED else (1,))
    ]
    pairs = [(a, b) for a in operations for b in operations[::3]]
    images = torch.randint(0, 256, (len(pairs), 3, 21, 17), generator=generator).byte()
    images[0] = 7  # nothing to stretch
    chosen = [pair[: n % 3] for n, pair in enumerate(pairs)]  # none, one or two
    found = apply_operations(images, grouped(chosen), wrapping)
    for image, own, result in zip(images, chosen, found, strict=True):
        for operation in own:
            image = apply_operation(image, operation, wrapping)
        assert torch.equal(image, result), own


def test_what_is_left_to_the_device_gives_the_same_batches(tmp_path):
    write_karpathy(tmp_path, [entry(n, "train") for n in range(9)])
    split = open_split(DataConfig("tiny", str(tmp_path)), "train", "pixels")
    pixels = PixelView(size=24, resize="random_crop", flip=True, randaugment=True)
    view = View(
        "pixels", "wordpiece", pixels=pixels, pixels_eval=PixelView(size=24), vocabulary_size=99
    )
    tokenizer = open_tokenizer(view, split.captions())
    table = tokenizer.tokenize(split.captions(), view.text)
    early, late = (
        TrainLoader(
            TrainData(split, view, table, tokenizer), LoaderOptions(6, 3, finish_on_device=x)
        )
        for x in (False, True)
    )
    raw = next(late.epoch(0))
    assert raw.pixels.dtype == torch.uint8 and raw.finish is not None
    for epoch in (0, 1):
        all_equal(early.epoch(epoch), (batch.to(CPU) for batch in late.epoch(epoch)))
    pairs = zip(
        image_batches(split, view, 4),
        image_batches(split, view, 4, finish_on_device=True),
        strict=True,
    )
    for a, b in pairs:
        assert torch.equal(a.pixels, b.to(CPU).pixels)


# Epoch after epoch


def test_threads_stay_and_the_next_order_is_begun_early(world):  # noqa: F811
    def own() -> set[int | None]:
        return {t.ident for t in threading.enumerate() if t.name.startswith("batches")}

    loader = world.loader(num_workers=2)
    all_equal(loader.epoch(0), world.loader().epoch(0))
    threads, begun = own(), loader.plan._planned
    assert threads and set(begun) == {1}
    all_equal(loader.epoch(1), world.loader().epoch(1))
    assert not begun and set(loader.plan._planned) == {2} and threads <= own()
    all_equal(loader.epoch(5, 3), list(world.loader().epoch(5))[3:])  # another one than was begun
    left = loader.epoch(6)
    next(left)
    left.close()
    all_equal(loader.epoch(6), world.loader().epoch(6))


# Regions


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_resident_regions_are_those_of_the_file(world, precision):  # noqa: F811
    view = make_view(drop=0.4)
    resident = cache_regions(world.split, CPU, precision)
    assert resident.shape == (IMAGES * REGIONS, WIDTH)
    kept = world.loader(view, cached_regions=resident)
    batches = [batch.to(CPU) for batch in kept.epoch(1)]
    if precision == "fp16":
        world.split.regions = world.split.regions.astype(np.float16)
    all_equal(world.loader(view).epoch(1), batches)


def test_resident_regions_that_cannot_be(world):  # noqa: F811
    with pytest.raises(ConfigError, match="runtime.*=int8"):
        cache_regions(world.split, CPU, "int8")
    world.split.regions = np.array(world.split.regions)
    world.split.regions[4, 1, 0] = 1e6
    with pytest.raises(DataError, match="row 4 .*fp16"):
        cache_regions(world.split, CPU, "fp16")


# Length


def lengths_in(loader, epoch):
    table = loader.captions.table
    return [table.lengths[batch.caption_id.numpy()] for batch in loader.epoch(epoch)]


def test_captions_of_like_length_go_together_and_nothing_is_lost(world):  # noqa: F811
    view = make_view()
    plain, bucketed = world.loader(view), world.loader(view, length_bucket_batches=4)
    for epoch in (0, 1):
        order = plain.plan.order(epoch)[: plain.batches_per_epoch * 8]
        batches = [batch.caption_id.tolist() for batch in bucketed.epoch(epoch)]
        for first in (0, 4):  # a window holds what it held, each batch a slice of its lengths
            window = order[8 * first : 8 * (first + 4)]
            own = batches[first : first + 4]
            assert sorted(sum(own, [])) == sorted(window.tolist())
            spans = sorted(
                (min(found), max(found))
                for found in (bucketed.captions.table.lengths[batch].tolist() for batch in own)
            )
            assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
        for batch in batches:  # inside a batch the shuffled order stays
            places = [order.tolist().index(caption) for caption in batch]
            assert places == sorted(places)
    spread = [np.mean([np.ptp(x) for x in lengths_in(loader, 0)]) for loader in (plain, bucketed)]
    assert spread[1] < spread[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_bucketed_epochs_resume_and_are_shared_by_ranks(world, workers):  # noqa: F811
    make = world.loader
    expected = list(make(length_bucket_batches=3).epoch(2))
    all_equal(
        make(length_bucket_batches=3, num_workers=workers).epoch(2, start_batch=5), expected[5:]
    )
    parts = [
        make(length_bucket_batches=3, num_workers=workers, rank=rank, world_size=2).epoch(2)
        for rank in range(2)
    ]
    for whole, first, second in zip(expected, *parts, strict=True):
        assert torch.equal(torch.cat([first.caption_id, second.caption_id]), whole.caption_id)


def test_no_bucket_where_padding_is_arithmetic(world, caplog):  # noqa: F811
    view = make_view(padding_is_arithmetic=True)
    all_equal(world.loader(view, length_bucket_batches=4).epoch(0), world.loader(view).epoch(0))
    assert "=4: off" in caplog.text


def test_padding_saved_by_buckets(world):  # noqa: F811
    """Batches of like lengths hold less padding: what bucketing is for."""
    view = make_view(text=TextView(augment=CaptionAugment()))

    def padding(loader):
        return sum(int((~batch.token_mask).sum()) for n in range(4) for batch in loader.epoch(n))

    assert padding(world.loader(view, length_bucket_batches=8)) < 0.6 * padding(world.loader(view))
