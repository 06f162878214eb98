"""Batches of items: labels, weighted answers, pairs of pictures, broken pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from itr.data.checks.fingerprint import content_hash
from itr.data.config import DataConfig
from itr.data.downstream.fields import AnswerFields, LabelFields, item_fields, weighted_answers
from itr.data.downstream.open import open_items
from itr.data.images.pixels import Pixels
from itr.data.items import Question
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.text.known_tokenizers import open_tokenizer
from itr.data.text.tokenizer import Tokenizer
from itr.errors import DataError
from itr.view import PixelView, TextView, View
from tests.data.downstream.test_readers import edit
from tests.data.item_files import write_nlvr2, write_vqa_lists

RANDOM = PixelView(size=16, resize="random_crop", flip=True, randaugment=True)


def test_weights_are_the_shares_of_the_annotators() -> None:
    assert weighted_answers(Question(0, ("red", "a", "red", "Red"))) == {
        "red": 0.5,
        "a": 0.25,
        "Red": 0.25,
    }
    assert weighted_answers(Question(0, ("man",), source="vg")) == {"man": 0.5}
    assert sum(weighted_answers(Question(0, tuple("abcabcabca"))).values()) == pytest.approx(1)


def test_answers_of_a_batch_against_a_literal_one(tmp_path: Path) -> None:
    write_vqa_lists(tmp_path)
    split = open_items(DataConfig("vqa2", str(tmp_path)), "vqa", "train")
    tokenizer = Tokenizer.from_captions(["red dark red yes man"], 60)
    fields = item_fields(split, tokenizer)
    assert isinstance(fields, AnswerFields)
    captions = np.array([3, 0, 3, 5])
    batch = fields.fields(captions)
    weighted = [weighted_answers(split.items[caption]) for caption in captions]
    assert batch["answer_counts"] == tuple(len(answers) for answers in weighted)
    expected = torch.tensor([weight for answers in weighted for weight in answers.values()])
    assert torch.equal(batch["answer_weights"], expected)
    texts = [text for answers in weighted for text in answers]
    literal = tokenizer.tokenize(texts, TextView())
    for row, (ids, mask) in enumerate(
        zip(batch["answer_tokens"], batch["answer_mask"], strict=True)
    ):
        assert ids[mask].tolist() == literal.ids(row).tolist()
        assert not ids[~mask].any()


def loader_of(root: Path, **options: object) -> TrainLoader:
    """A loader over the pairs of pictures of NLVR2."""
    split = open_items(DataConfig("nlvr2", str(root), max_broken=0.5), "nlvr2", "train")
    view = View("pixels", "wordpiece", pixels=RANDOM, vocabulary_size=99)
    tokenizer = open_tokenizer(view, split.captions())
    table = tokenizer.tokenize(split.captions(), view.text)
    return TrainLoader(TrainData(split, view, table, tokenizer), LoaderOptions(2, 3, **options))


def test_the_second_picture_is_drawn_for_itself(tmp_path: Path) -> None:
    write_nlvr2(tmp_path)
    loader = loader_of(tmp_path)
    split, plain = loader.split, loader_of(tmp_path, finish_on_device=True)
    pixels = Pixels(split, RANDOM)
    for batch, raw in zip(loader.epoch(1), plain.epoch(1), strict=True):
        captions = batch.caption_id.numpy()
        second = np.array([split.items[caption].second for caption in captions])
        draws = pixels.draw_uniforms(3, 1, captions)
        assert torch.equal(batch.pixels, pixels.fetch(split.text_to_image[captions], draws))
        assert not torch.equal(batch.second_pixels, pixels.fetch(second, draws))
        finished = raw.to("cpu")
        assert raw.second_pixels.dtype == torch.uint8
        assert torch.equal(finished.second_pixels, batch.second_pixels)
        assert torch.equal(finished.pixels, batch.pixels)
        labels = LabelFields(split.items).fields(captions)["labels"]
        assert labels.tolist() == [split.items[caption].label for caption in captions]
    squash = dataclasses.replace(RANDOM, resize="squash", flip=False, randaugment=False)
    both = Pixels(split, squash).pair_fields(np.array([0]), np.array([1]))
    assert torch.equal(both["second_pixels"], Pixels(split, squash).fetch(np.array([1])))


@pytest.mark.parametrize("side", [0, 1])
def test_pairs_with_a_broken_picture_are_replaced(tmp_path: Path, side: int) -> None:
    write_nlvr2(tmp_path)
    broken = tmp_path / f"images/train/0/train-9-1-img{side}.png"
    broken.write_bytes(b"no picture")
    loader = loader_of(tmp_path)
    left = next(n for n, record in enumerate(loader.split.records) if "9-0-img0" in record.image)
    batches = list(loader.epoch(0))
    assert all((batch.image_id == left).all() for batch in batches)
    assert any(batch.replaced for batch in batches) and len(loader.broken) == 1
    with pytest.raises(DataError, match=broken.name):
        loader.split.broken_limit = 0
        loader.broken.clear()
        list(loader.epoch(0))


def test_the_content_hash_covers_the_answers(tmp_path: Path) -> None:
    write_vqa_lists(tmp_path)
    data = DataConfig("vqa2", str(tmp_path))
    before = content_hash(open_items(data, "vqa", "train"))
    assert content_hash(open_items(data, "vqa", "train")) == before
    edit(tmp_path / "vqa_train.json", lambda rows: rows[0].update(answer=["no"] * 10))
    assert content_hash(open_items(data, "vqa", "train")) != before
