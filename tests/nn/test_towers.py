"""Towers by name compute what their libraries' own pipelines compute."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from torch.nn import functional as F

from itr import checkpoint
from itr.batch import Batch
from itr.clock import Clock
from itr.data.loading.eval_batches import image_batches
from itr.data.records import Record, Split
from itr.data.text.token_table import CaptionPadder
from itr.draws import Draws
from itr.jobs.load_checkpoint import LoadedCheckpoint, load_checkpoint
from itr.jobs.load_tower import load_zero_shot
from itr.losses.infonce import InfoNCE
from itr.losses.sigmoid import Sigmoid
from itr.losses.triplet import Triplet
from itr.models.build import model_meta
from tests.nn.tiny_towers import FAMILIES, OPEN_CLIP, POSITIONS, TEXTS, save_open_clip, save_tower

NODE = {"_target_": "itr.models.clip.CLIP", "name": "clip"}


def zero_shot(tower: str) -> LoadedCheckpoint:
    return load_zero_shot({**NODE, "tower": tower}, "cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Gray, with a palette, with alpha, very wide, very tall, and plain."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)

    def noise(height: int, width: int, channels: int) -> np.ndarray:
        coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), np.uint8)
        return coarse.repeat(8, 0).repeat(8, 1)[:height, :width]

    rgb = Image.fromarray(noise(67, 90, 3))
    images = {
        "plain.png": rgb,
        "gray.png": Image.fromarray(noise(50, 71, 1)[..., 0]),
        "palette.png": rgb.quantize(16),
        "black_and_white.png": rgb.convert("1"),
        "alpha.png": Image.fromarray(noise(40, 55, 4)),
        "gray_alpha.png": Image.fromarray(noise(40, 55, 2), "LA"),
        "wide.png": Image.fromarray(noise(20, 313, 3)),
        "tall.png": Image.fromarray(noise(203, 35, 3)),
        "small.png": Image.fromarray(noise(11, 9, 3)),
        "photo.jpg": rgb,
    }
    for name, image in images.items():
        image.save(folder / name)
    return [str(folder / name) for name in images]


def embeddings(
    loaded: LoadedCheckpoint, pictures: list[str], decoder: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of ``pictures`` and `TEXTS`, as the evaluator makes them."""
    records = [Record(n, path, (text,), (n,)) for n, (path, text) in enumerate(_rows(pictures))]
    split = dataclasses.replace(Split("pictures", "files", records), decoder=decoder)
    view, model = loaded.model.view, loaded.retriever
    table = loaded.tokenizer.tokenize(TEXTS, view.text_eval)
    fields = CaptionPadder(table, view.text_eval).fields(table.flat, table.lengths)
    with torch.no_grad():
        (images,) = image_batches(split, view, len(pictures))
        return model.encode_images(images).pooled, model.encode_texts(Batch(**fields)).pooled


def _rows(pictures: list[str]) -> list[tuple[str, str]]:
    return [(path, TEXTS[n % len(TEXTS)]) for n, path in enumerate(pictures)]


def batch_of(loaded: LoadedCheckpoint, pictures: list[str]) -> Batch:
    """The first pictures, each with a text."""
    view = loaded.model.view
    records = [Record(n, path, (TEXTS[n],), (n,)) for n, path in enumerate(pictures[: len(TEXTS)])]
    (images,) = image_batches(Split("pictures", "files", records), view, len(records))
    table = loaded.tokenizer.tokenize(TEXTS, view.text_eval)
    fields = CaptionPadder(table, view.text_eval).fields(table.flat, table.lengths)
    return dataclasses.replace(images, positive_pairs=len(records), **fields)


def _require_gradients(loaded: LoadedCheckpoint, pictures: list[str]) -> None:
    """Whatever does not sleep gets a gradient, for losses with and without a scale."""
    model = loaded.retriever.train()
    given = batch_of(loaded, pictures)
    for loss in (InfoNCE(), Triplet(), Sigmoid()):
        model.slots["itc"] = loss
        asleep = model.sleeping(Clock())
        terms = model(given, Clock(), Draws())
        model.zero_grad()
        terms.losses["itc"].backward()
        for name, parameter in model.named_parameters():
            sleeps = name in asleep or name.startswith(tuple(f"{part}." for part in asleep))
            assert (parameter.grad is None) == sleeps, name
    model.eval()


def _restored(loaded: LoadedCheckpoint, folder: Path) -> LoadedCheckpoint:
    """The same model and tokenizer, from a checkpoint of them."""
    path, tensors = folder / "checkpoint.safetensors", loaded.model.state_dict()
    meta = {**model_meta(loaded.model), "model_name": "clip", "loss": None}
    meta["tokenizer"] = loaded.tokenizer.to_json()
    checkpoint.write(path, {f"model/{key}": value for key, value in tensors.items()}, meta)
    return load_checkpoint(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_of_transformers_equals_its_pipeline(
    family: str, pictures: list[str], tmp_path: Path
) -> None:
    folder = save_tower(family, tmp_path)
    loaded = zero_shot(str(folder))
    images, texts = embeddings(loaded, pictures, "torchvision")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    fixed = "max_length" if family.startswith("siglip") else True
    given = tokenizer(TEXTS, padding=fixed, truncation=True, return_tensors="pt")
    pixels = processor([Image.open(path) for path in pictures], return_tensors="pt")
    with torch.no_grad():
        expected = model.get_image_features(**pixels).pooler_output
        words = model.get_text_features(**given).pooler_output
    assert (images - F.normalize(expected, dim=-1)).abs().max() <= 1e-6
    assert torch.equal(texts, F.normalize(words, dim=-1))
    found = loaded.tokenizer.tokenize(TEXTS, loaded.model.view.text_eval)
    lengths = [len(ids) for ids in tokenizer(TEXTS).input_ids]
    assert found.truncated == sum(length > POSITIONS for length in lengths) > 0
    shutil.rmtree(folder)  # a checkpoint needs it no more
    restored = _restored(loaded, tmp_path)
    again = restored.tokenizer.tokenize(TEXTS, restored.model.view.text_eval)
    assert np.array_equal(found.flat, again.flat) and np.array_equal(found.words, again.words)
    same = embeddings(restored, pictures, "torchvision")
    assert torch.equal(same[0], images) and torch.equal(same[1], texts)
    _require_gradients(loaded, pictures)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_a_tower_of_open_clip_equals_its_pipeline(
    name: str, pictures: list[str], tmp_path: Path
) -> None:
    tower = f"local-dir:{save_open_clip(name, tmp_path)}"
    loaded = zero_shot(tower)
    images, texts = embeddings(loaded, pictures, "pillow")
    model, preprocess = open_clip.create_model_from_pretrained(tower)
    tokens = open_clip.get_tokenizer(tower)(TEXTS)
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(path)) for path in pictures])
        expected = model.eval().encode_image(pixels, normalize=True)
        words = model.encode_text(tokens, normalize=True)
    if OPEN_CLIP[name]["preprocess_cfg"].get("resize_mode") == "longest":
        # open_clip pads an image with a palette with its entry number `fill_color`, whatever color
        # that is; here the padding has the value `fill_color`.
        shown = [
            n for n, path in enumerate(pictures) if "palette" not in path and "_wh" not in path
        ]
        images, expected = images[shown], expected[shown]
    assert (images - expected).abs().max() <= 1e-6
    assert torch.equal(texts, words)
    shutil.rmtree(tower.removeprefix("local-dir:"))
    restored = embeddings(_restored(loaded, tmp_path), pictures, "pillow")
    assert torch.equal(restored[1], texts)
    _require_gradients(loaded, pictures)
