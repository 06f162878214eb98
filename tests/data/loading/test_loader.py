"""Batches against literal ones: order, padding, augmentation, resuming, workers and ranks."""

import numpy as np
import pytest
import torch

from itr.data import counter_rng
from itr.data.layouts.precomp import read_split
from itr.data.loading.eval_batches import caption_batches, image_batches
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.text.tokenizer import Tokenizer
from itr.errors import ConfigError, DataError
from itr.view import CaptionAugment, RegionView, TextView, View

WORDS = "a man woman dog ball skateboarding red blue-green on in the street".split()
IMAGES, REGIONS, WIDTH = 13, 7, 5


def write(folder, images=IMAGES, captions=5, dtype=np.float32):
    rng = np.random.default_rng(1)
    array = rng.standard_normal((images, REGIONS, WIDTH)).astype(dtype)
    np.save(folder / "train_ims.npy", array)
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(images * captions)]
    (folder / "train_caps.txt").write_text("\n".join(lines) + "\n")
    return array, lines


def make_view(drop=0.2, augment=True, unit="caption", **options):
    text = TextView(augment=CaptionAugment() if augment else None)
    view = {"text": text, "regions": RegionView(drop=drop), **options}
    return View(kind="regions", tokenizer="wordpiece", unit=unit, **view)


@pytest.fixture
def world(tmp_path):
    """Makes a loader of a small split on disk; keeps the split, the table and the tokenizer."""

    class World:
        array, lines = write(tmp_path)
        split = read_split(tmp_path, "train")
        tokenizer = Tokenizer.from_captions(lines, 60)  # small: long words become several pieces
        table = tokenizer.tokenize(lines, TextView())

        def loader(self, view=None, batch_size=8, seed=3, **options):
            view = view or make_view()
            cached = options.pop("cached_regions", None)
            data = TrainData(self.split, view, self.table, self.tokenizer, cached_regions=cached)
            return TrainLoader(data, LoaderOptions(batch_size, seed, **options))

    return World()


def equal(a, b):
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype and torch.equal(value, other), name
        else:
            assert value == other, name


def all_equal(a, b):
    a, b = list(a), list(b)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        equal(x, y)


# Chance


def test_philox_known_answers():
    """The test vectors that the authors of Philox publish."""
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    cases = [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for counter, key, expected in cases:
        assert tuple(int(word) for word in counter_rng.philox(counter, key)) == expected


def test_uniform_depends_on_each_of_its_arguments_and_on_nothing_else():
    base = (7, 1, counter_rng.WORD, 5, 2)
    values = {float(counter_rng.uniform(*base))}
    for place in range(5):
        values.add(float(counter_rng.uniform(*(v + (i == place) for i, v in enumerate(base)))))
    values.add(float(counter_rng.uniform(7 + 2**32, *base[1:])))
    assert len(values) == 7
    grid = counter_rng.uniform(7, 1, counter_rng.WORD, np.arange(8)[:, None], np.arange(4))
    assert grid.shape == (8, 4) and grid[5, 2] == float(counter_rng.uniform(*base))
    many = counter_rng.uniform(0, 0, 0, np.arange(100_000))
    assert 0 <= many.min() and many.max() < 1
    assert np.abs(np.histogram(many, 20, (0, 1))[0] / 5000 - 1).max() < 0.07  # 5 sigma


# What is in a batch


def literal_caption(world, epoch, caption, seed):
    """Ids of one augmented caption, one token at a time."""
    ids, out = world.table.ids(caption).tolist(), []
    words = world.table.words[world.table.offsets[caption] :][: len(ids)].tolist()
    for place, (number, word) in enumerate(zip(ids, words, strict=True)):
        p = (
            1.0
            if word < 0
            else float(counter_rng.uniform(seed, epoch, counter_rng.WORD, caption, word))
        )
        if p >= 0.2:
            out.append(number)
        elif p / 0.2 < 0.5:
            out.append(world.tokenizer.mask_id)
        elif p / 0.2 < 0.6:
            u = float(counter_rng.uniform(seed, epoch, counter_rng.PIECE, caption, place))
            out.append(int(u * world.tokenizer.vocabulary_size))
    return out


def literal_regions(world, epoch, caption, seed, drop):
    draws = [
        float(counter_rng.uniform(seed, epoch, counter_rng.REGION, caption, region))
        for region in range(REGIONS)
    ]
    keep = [region for region in range(REGIONS) if draws[region] > drop]
    return world.array[caption // 5][keep or [int(np.argmax(draws))]]


@pytest.mark.parametrize("drop", [0.2, 0.95])
def test_batches_equal_literal_ones(world, drop):
    loader = world.loader(make_view(drop=drop))
    shortest = REGIONS
    for epoch in (0, 4):
        seen = []
        for batch in loader.epoch(epoch):
            captions = batch.caption_id.tolist()
            seen += captions
            regions = [literal_regions(world, epoch, c, 3, drop) for c in captions]
            texts = [literal_caption(world, epoch, c, 3) for c in captions]
            assert batch.image_id.tolist() == [c // 5 for c in captions]
            assert batch.regions.shape == (8, max(map(len, regions)), WIDTH)
            assert batch.tokens.shape == (8, max(map(len, texts)))
            assert batch.regions.dtype == torch.float32 and batch.tokens.dtype == torch.int64
            for row in range(8):
                n, m = len(regions[row]), len(texts[row])
                np.testing.assert_array_equal(batch.regions[row, :n], regions[row])
                assert not batch.regions[row, n:].any() and not batch.tokens[row, m:].any()
                assert batch.region_mask[row].nonzero().flatten().tolist() == list(range(n))
                assert batch.token_mask[row].nonzero().flatten().tolist() == list(range(m))
                assert batch.tokens[row, :m].tolist() == texts[row]
            assert batch.min_region_length == min(map(len, regions))
            assert batch.min_token_length == min(map(len, texts))
            ids = batch.image_id
            assert batch.positive_pairs == int((ids[:, None] == ids[None, :]).sum())
            shortest = min(shortest, batch.min_region_length)
        assert len(seen) == len(set(seen)) == loader.batches_per_epoch * 8 == 64
    assert shortest == 1 or drop < 0.9  # so the region that always stays was tested


def test_rates_of_augmentation(world):
    """10 % masked, 2 % random, 8 % deleted; one region in five dropped."""
    loader = world.loader()
    captions = np.tile(np.arange(65), 1)
    total = masked = left = regions = 0
    words = (world.table.words >= 0).sum()
    for epoch in range(200):
        ids, lengths = loader.captions.draw(epoch, captions)
        total, left = total + words, left + lengths.sum() - 2 * 65
        masked += (ids == world.tokenizer.mask_id).sum()
        regions += loader.images.kept_regions(epoch, captions).mean() / 200
    assert masked / total == pytest.approx(0.10, abs=0.005)
    assert 1 - left / total == pytest.approx(0.08, abs=0.005)
    assert regions == pytest.approx(0.8, abs=0.005)


def test_nothing_is_random_without_augmentation(world):
    loader = world.loader(make_view(drop=0.0, augment=False))
    for batch in loader.epoch(0):
        assert batch.regions.shape == (8, REGIONS, WIDTH) and batch.region_mask.all()
        np.testing.assert_array_equal(batch.regions, world.array[batch.image_id])
        for row, caption in enumerate(batch.caption_id.tolist()):
            assert batch.tokens[row][batch.token_mask[row]].tolist() == (
                world.table.ids(caption).tolist()
            )


def test_padding_as_the_view_asks(world):
    text = TextView(augment=CaptionAugment(), min_pad=50)
    loader = world.loader(make_view(text=text, regions=RegionView(drop=0.2, min_pad=10)))
    batch = next(loader.epoch(0))
    assert batch.tokens.shape == (8, 50) and batch.regions.shape == (8, 10, WIDTH)
    assert not batch.regions[:, REGIONS:].any() and not batch.region_mask[:, REGIONS:].any()
    longest = int(world.table.lengths.max())
    batch = next(world.loader(make_view(text=TextView(pad_to=longest))).epoch(0))
    assert batch.tokens.shape == (8, longest)
    with pytest.raises(ConfigError, match=f"longest caption has {longest} ids"):
        world.loader(make_view(text=TextView(pad_to=longest - 1)))


@pytest.mark.parametrize("unit", ["image", "pair"])
def test_an_epoch_over_images(world, unit):
    loader = world.loader(make_view(unit=unit), batch_size=4)
    assert loader.batches_per_epoch == IMAGES // 4
    drawn = set()
    for epoch in range(60):
        images = torch.cat([batch.image_id for batch in loader.epoch(epoch)]).tolist()
        assert len(set(images)) == len(images) == 12
        captions = loader.plan.order(epoch)
        assert (captions // 5).tolist()[:12] == images
        drawn |= set(captions.tolist())
    assert drawn == set(range(IMAGES * 5))  # each caption has its turn


def test_half_precision_arrays_become_float32(tmp_path, world):
    (tmp_path / "half").mkdir()
    array, _ = write(tmp_path / "half", dtype=np.float16)
    split = read_split(tmp_path / "half", "train")
    for batch in image_batches(split, make_view(), 5):
        assert batch.regions.dtype == torch.float32
        np.testing.assert_array_equal(batch.regions, array[batch.image_id].astype(np.float32))


# Order, resuming, workers, ranks


def test_order_is_a_function_of_seed_and_epoch(world):
    first = world.loader().plan.order(0)
    assert sorted(first) == list(range(65))
    np.testing.assert_array_equal(first, world.loader(batch_size=4).plan.order(0))
    assert (first != world.loader().plan.order(1)).any()
    assert (first != world.loader(seed=4).plan.order(0)).any()


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("start", [0, 3])
def test_workers_and_resuming_give_the_same_batches(world, workers, start):
    loader = world.loader()
    list(loader.epoch(1))  # what came before must not matter
    expected = list(world.loader().epoch(2))
    all_equal(world.loader(num_workers=workers).epoch(2, start_batch=start), expected[start:])
    all_equal(loader.epoch(2, start_batch=start), expected[start:])
    assert list(loader.epoch(2, start_batch=loader.batches_per_epoch)) == []


def test_global_generators_are_left_alone(world):
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for workers in (0, 2):
        list(world.loader(num_workers=workers).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_an_epoch_may_be_left_early(world):
    batches = world.loader(num_workers=2).epoch(0)
    equal(next(batches), next(world.loader().epoch(0)))
    batches.close()


def test_ranks_share_each_batch(world):
    parts = [world.loader(rank=rank, world_size=2).epoch(1) for rank in range(2)]
    for whole, first, second in zip(world.loader().epoch(1), *parts, strict=True):
        for name in ("image_id", "caption_id"):
            shares = torch.cat([getattr(first, name), getattr(second, name)])
            assert torch.equal(shares, getattr(whole, name))
        for part, rows in ((first, slice(0, 4)), (second, slice(4, 8))):
            tokens = whole.tokens[rows][whole.token_mask[rows]]
            assert torch.equal(part.tokens[part.token_mask], tokens)
            regions = whole.regions[rows][whole.region_mask[rows]]
            assert torch.equal(part.regions[part.region_mask], regions)


# Evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_and_each_caption_once(world, workers):
    images = list(image_batches(world.split, make_view(), 5, workers))
    assert [len(batch) for batch in images] == [5, 5, 3]
    assert torch.cat([b.image_id for b in images]).tolist() == list(range(IMAGES))
    np.testing.assert_array_equal(torch.cat([b.regions for b in images]), world.array)
    assert all(b.tokens is None and b.min_region_length == REGIONS for b in images)
    captions = list(caption_batches(world.split, make_view(), world.table, 7))
    order = torch.cat([b.caption_id for b in captions]).tolist()
    assert sorted(order) == list(range(65)) and len(captions) == 10
    for batch in captions:
        assert batch.regions is None
        for row, caption in enumerate(batch.caption_id.tolist()):
            tokens = batch.tokens[row][batch.token_mask[row]]
            assert tokens.tolist() == world.table.ids(caption).tolist()
            assert batch.image_id[row] == caption // 5
    widths = [batch.tokens.shape[1] for batch in captions]
    assert widths == sorted(widths, reverse=True)


def test_captions_stay_in_order_where_padding_counts(world):
    view = make_view(padding_is_arithmetic=True)
    batches = caption_batches(world.split, view, world.table, 7)
    assert torch.cat([b.caption_id for b in batches]).tolist() == list(range(65))


# Bad input


def test_invalid_batch_sizes(world):
    with pytest.raises(DataError, match="batch_size=66, but .* only 65 captions"):
        world.loader(batch_size=66)
    with pytest.raises(DataError, match="only 13 images"):
        world.loader(make_view(unit="image"), batch_size=14)
    with pytest.raises(ConfigError, match="batch_size=0"):
        world.loader(batch_size=0)
    with pytest.raises(ConfigError, match=r"batch_size=8.*\(3\).*batch_size=9"):
        world.loader(batch_size=8, world_size=3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_region_that_is_not_finite_names_its_row(tmp_path, world, workers, value):
    world.array[6, 2, 1] = value
    np.save(tmp_path / "train_ims.npy", world.array)  # after the split was opened
    world.split.regions = np.load(tmp_path / "train_ims.npy", mmap_mode="r")
    loader = world.loader(make_view(drop=0.0), num_workers=workers)
    with pytest.raises(DataError, match=r"train_ims.npy: row 6, region 2, column 1 is (nan|inf)"):
        list(loader.epoch(0))


def test_large_but_finite_features_pass(world):
    world.split.regions = np.full((IMAGES, REGIONS, WIDTH), 3e38, np.float32)  # their sum is inf
    assert len(list(world.loader().epoch(0))) == 8
