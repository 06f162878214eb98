"""Batches of pixels against literal ones: what is random, what is not, resuming, workers."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from itr.batch import Batch
from itr.data import counter_rng
from itr.data.images.pixels import Pixels
from itr.data.images.transforms import DRAWS, draw_choices, normalize, transform
from itr.data.layouts.precomp import read_split
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.loading.eval_batches import caption_batches, image_batches
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.loading.sided import find_sided
from itr.data.records import Record, Split
from itr.data.text.known_tokenizers import open_tokenizer
from itr.errors import ConfigError, DataError
from itr.view import PixelView, TextView, View
from tests.data.image_files import entry, photo, write_karpathy

IMAGES = 7
RANDOM = PixelView(size=16, resize="random_crop", flip=True, randaugment=True)


@pytest.fixture
def world(tmp_path):
    """Makes loaders over seven pictures with two captions each."""

    class World:
        root = tmp_path
        annotations = write_karpathy(tmp_path, [entry(n, "train") for n in range(IMAGES)])

        def split(self, **options):
            return open_split(DataConfig("tiny", str(tmp_path), **options), "train", "pixels")

        def loader(self, pixels=RANDOM, unit="caption", seed=3, batch_size=4, **options):
            view = View(
                kind="pixels",
                tokenizer="wordpiece",
                unit=unit,
                pixels=pixels,
                pixels_eval=PixelView(size=16),
                vocabulary_size=99,
            )
            split = self.split()
            tokenizer = open_tokenizer(view, split.captions())
            table = tokenizer.tokenize(split.captions(), view.text)
            return TrainLoader(
                TrainData(split, view, table, tokenizer),
                LoaderOptions(batch_size, seed, **options),
            )

    return World()


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.pixels, y.pixels) and torch.equal(x.caption_id, y.caption_id)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("unit", ["caption", "image", "pair"])
def test_a_batch_equals_one_made_picture_by_picture(world, unit):
    loader = world.loader(unit=unit)
    split = loader.split
    for batch in loader.epoch(5):
        assert batch.pixels.shape == (4, 3, 16, 16) and batch.pixels.dtype == torch.float32
        assert batch.regions is None and batch.second_tokens is None
        for row, caption in enumerate(batch.caption_id.tolist()):
            path = split.records[split.text_to_image[caption]].image
            image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
            uniforms = counter_rng.uniform(3, 5, counter_rng.IMAGE, caption, np.arange(DRAWS))
            choices = draw_choices(RANDOM, uniforms, *image.shape[-2:])
            expected = normalize(transform(image, RANDOM, choices, "torchvision"), RANDOM)
            assert torch.equal(batch.pixels[row], expected)


def test_an_epoch_is_a_function_of_seed_and_number(world):
    first = list(world.loader().epoch(0))
    assert same(first, list(world.loader().epoch(0)))
    assert same(first, list(world.loader(num_workers=2).epoch(0)))
    assert same(first[1:], list(world.loader().epoch(0, start_batch=1)))
    assert not same(first, list(world.loader().epoch(1)))
    assert not same(first, list(world.loader(seed=4).epoch(0)))
    halves = [list(world.loader(rank=r, world_size=2).epoch(0)) for r in range(2)]
    for whole, a, b in zip(first, *halves, strict=True):
        assert torch.equal(whole.pixels, torch.cat([a.pixels, b.pixels]))


def test_captions_of_one_image_are_shown_with_pictures_of_their_own(world):
    pixels = Pixels(world.split(), RANDOM)
    uniforms = pixels.draw_uniforms(0, 0, np.array([0, 1]))
    a, b = pixels.fetch(np.array([0, 0]), uniforms)
    assert not torch.equal(a, b)
    assert Pixels(world.split(), PixelView(size=16)).draw_uniforms(0, 0, np.array([0])) is None


def test_evaluation_gives_each_picture_once_and_draws_nothing(world):
    loader = world.loader()
    batches = list(image_batches(loader.split, loader.view, 3, num_workers=2))
    assert torch.cat([b.image_id for b in batches]).tolist() == list(range(IMAGES))
    expected = Pixels(loader.split, PixelView(size=16)).fetch(np.arange(IMAGES))
    assert torch.equal(torch.cat([b.pixels for b in batches]), expected)
    captions = list(caption_batches(loader.split, loader.view, loader.captions.table, 5))
    assert sum(len(b) for b in captions) == 2 * IMAGES


def test_the_decoder_is_chosen_by_the_data(world):
    view = PixelView(size=9)
    fast, slow = (
        Pixels(world.split(decoder=d), view).fetch(np.arange(IMAGES))
        for d in ("torchvision", "pillow")
    )
    assert not torch.equal(fast, slow) and (fast - slow).abs().max() < 2.01 / 255 / min(view.std)


def test_text_is_padded_with_the_tokenizers_own_id(world):
    view = View(
        kind="pixels",
        tokenizer="roberta-from-captions",
        text=TextView(max_length=8, pad_to=8),
        pixels=PixelView(size=4),
        vocabulary_size=300,
    )
    split = world.split()
    tokenizer = open_tokenizer(view, split.captions())
    table = tokenizer.tokenize(split.captions(), view.text)
    (batch,) = list(
        TrainLoader(TrainData(split, view, table, tokenizer), LoaderOptions(14)).epoch(0)
    )
    assert batch.tokens.shape == (14, 8) and batch.tokens[0, -1] == tokenizer.pad_id == 1
    assert torch.equal(batch.tokens == 1, ~batch.token_mask)


def test_a_broken_picture_is_named(world):
    path = world.root / "images" / "0002.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="0002.jpg: cannot be decoded"):
        list(world.loader(num_workers=2).epoch(0))
    loader = world.loader()
    with pytest.raises(DataError, match="0002.jpg"):
        list(image_batches(loader.split, loader.view, 2))


def test_splits_and_views_that_do_not_fit(world, tmp_path):
    with pytest.raises(ConfigError, match="resize='crop'"):
        world.loader(pixels=PixelView(resize="crop"))
    np.save(tmp_path / "train_ims.npy", np.ones((4, 2, 3), np.float32))
    (tmp_path / "train_caps.txt").write_text("a\nb\nc\nd\n" * 5)
    with pytest.raises(ConfigError, match="region features"):
        Pixels(read_split(tmp_path, "train"), PixelView())


@pytest.mark.parametrize("shape", [(1, 1), (2000, 4), (3, 500)])
def test_odd_pictures_can_be_trained_on(world, shape):
    photo(*shape).save(world.root / "images" / "0000.jpg")
    for resize in ("random_crop", "squash", "shortest"):
        view = PixelView(size=16, resize=resize, flip=True, randaugment=True)
        for batch in world.loader(pixels=view).epoch(0):
            assert torch.isfinite(batch.pixels).all()


def test_no_flip_where_the_text_names_a_side(world):
    """The other random choices of such an image, and all of the others', stay the same."""
    flips = {}
    for sided in (True, False):
        loader = world.loader(pixels=dataclasses.replace(RANDOM, flip_sided=sided), batch_size=7)
        texts = loader.split.captions()
        loader.images.sided = loader.images.sided if sided else np.arange(len(texts)) % 2 == 0
        flips[sided] = {
            int(caption): pixels
            for epoch in range(3)
            for batch in loader.epoch(epoch)
            for caption, pixels in zip(batch.caption_id + 100 * epoch, batch.pixels, strict=True)
        }
    changed = {n for n, pixels in flips[True].items() if not torch.equal(pixels, flips[False][n])}
    assert changed and all(n % 2 == 0 for n in changed)
    assert len(changed) < sum(n % 2 == 0 for n in flips[True])


def test_a_side_is_a_word_of_the_text_or_of_an_answer():
    texts = ("left of a dog", "what is Right?", "bright leftovers", "where?", "the leftmost cat")
    split = Split("train", "vqa", [Record(0, "a.jpg", texts, tuple(range(5)))])
    assert find_sided(split).tolist() == [True, True, False, False, True]
