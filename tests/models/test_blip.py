"""BLIP by name: transformers' numbers, the paper's first token, self-contained checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from itr import checkpoint
from itr.batch import Batch
from itr.clock import Clock
from itr.data.text.token_table import CaptionPadder
from itr.draws import Draws
from itr.errors import ConfigError
from itr.jobs.load_checkpoint import LoadedCheckpoint, load_checkpoint
from itr.jobs.load_tower import load_zero_shot
from itr.models.base import Encoded
from itr.models.build import model_meta
from itr.training.grad_cache import GradCacheStep
from itr.training.step import Step
from tests.models.tiny import batch_for, build
from tests.nn.tiny_towers import TEXTS, save_blip

NODE = {"_target_": "itr.models.blip.BLIP", "name": "blip", "queue_size": 0}
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("blip") / "tower")


def zero_shot(tower: Path, **options: Any) -> LoadedCheckpoint:
    return load_zero_shot({**NODE, "tower": str(tower), **options}, "cpu")


def encoded(loaded: LoadedCheckpoint) -> tuple[Encoded, Encoded]:
    """`PIXELS` and `TEXTS`, as the evaluator has them."""
    view = loaded.model.view
    table = loaded.tokenizer.tokenize(TEXTS, view.text_eval)
    words = Batch(**CaptionPadder(table, view.text_eval).fields(table.flat, table.lengths))
    with torch.no_grad():
        return (
            loaded.retriever.encode_images(Batch(pixels=PIXELS)),
            loaded.retriever.encode_texts(words),
        )


def match_scores(loaded: LoadedCheckpoint, block: int) -> Tensor:
    """Of all images with all texts: [3, 5]."""
    images, texts = encoded(loaded)
    pairs = torch.cartesian_prod(torch.arange(len(PIXELS)), torch.arange(len(TEXTS)))
    with torch.no_grad():
        found = loaded.retriever.rerank(images, texts, pairs, "both", block)
    return found.view(len(PIXELS), len(TEXTS))


def of_transformers(tower: Path, first: int | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and match logits [3, 5] of transformers' own model; ``first``: id of a fused text's
    first token (None: its own)."""
    model = transformers.BlipForImageTextRetrieval.from_pretrained(tower).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tower)
    given = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    words = {name: given[name] for name in names}
    with torch.no_grad():
        cosines = model(pixel_values=PIXELS, use_itm_head=False, **words).itm_score
        if first is not None:
            words["input_ids"] = words["input_ids"].clone()
            words["input_ids"][:, 0] = first
        match = [
            model(pixel_values=image.expand(len(TEXTS), -1, -1, -1), **words).itm_score[:, 1]
            for image in PIXELS
        ]
    return cosines, torch.stack(match)


@pytest.mark.parametrize("block", [1, 5])
def test_both_stages_equal_transformers(tower: Path, block: int) -> None:
    loaded = zero_shot(tower, fused_token="cls")
    images, texts = encoded(loaded)
    cosines, match = of_transformers(tower)
    torch.testing.assert_close(images.pooled @ texts.pooled.T, cosines, rtol=0, atol=1e-6)
    torch.testing.assert_close(match_scores(loaded, block), match, rtol=0, atol=2e-6)


def test_by_default_a_fused_text_begins_with_enc(tower: Path) -> None:
    """The last id of the tower, behind [DEC]; transformers leaves [CLS] there."""
    cosines, match = of_transformers(tower, first=loaded_ids(tower) - 1)
    loaded = zero_shot(tower)
    images, texts = encoded(loaded)
    torch.testing.assert_close(images.pooled @ texts.pooled.T, cosines, rtol=0, atol=1e-6)
    torch.testing.assert_close(match_scores(loaded, 5), match, rtol=0, atol=2e-6)
    assert not torch.allclose(match, of_transformers(tower)[1], atol=1e-3)


def loaded_ids(tower: Path) -> int:
    config = transformers.AutoConfig.from_pretrained(tower)
    return int(config.text_config.vocab_size)


def test_a_checkpoint_needs_its_tower_no_more(tmp_path: Path) -> None:
    folder = save_blip(tmp_path / "tower")
    loaded = zero_shot(folder)
    expected = match_scores(loaded, 1)
    tensors, meta = loaded.model.state_dict(), {**model_meta(loaded.model), "model_name": "blip"}
    meta |= {"loss": None, "tokenizer": loaded.tokenizer.to_json()}
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write(path, {f"model/{key}": value for key, value in tensors.items()}, meta)
    shutil.rmtree(folder)
    assert torch.equal(match_scores(load_checkpoint(path), 1), expected)


def test_what_is_no_tower_of_this_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fused_token=cls"):
        zero_shot(save_blip(tmp_path / "plain", added=0))
    assert zero_shot(tmp_path / "plain", fused_token="cls").model
    with pytest.raises(ConfigError, match=r"model.tower=.*itm_head"):
        zero_shot(save_blip(tmp_path / "captioner", captioner=True))


def test_matching_keeps_no_copy_of_an_image_for_each_text() -> None:
    """Images are projected once, and `block` pairs share the keys: [I, ...], not [P, ...]."""
    model = build("blip").eval()
    given = batch_for("blip")
    shapes = []
    with torch.no_grad():
        images, texts = model.encode_images(given), model.encode_texts(given)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.in_features == 12:
                module.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
        pairs = torch.stack([torch.arange(2).repeat_interleave(3), torch.arange(6)], dim=1)
        model.rerank(images, texts, pairs, "both", 3)
    assert shapes and {shape[0] for shape in shapes} == {len(given)}


def test_cached_gradients_are_those_of_the_whole_batch() -> None:
    given = batch_for("blip")
    gradients = []
    for size in (None, 2):
        model = build("blip").train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        rest = (model, torch.device("cpu"), None, torch.amp.GradScaler("cpu", enabled=False))
        step = Step(*rest) if size is None else GradCacheStep(size, *rest)
        step.set_requires_grad(Clock())
        total, _ = step.forward(given, Clock(), Draws(0))
        step.backward(total, 1)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    whole, cached = gradients
    assert set(whole) == set(cached)
    for name, value in whole.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-4, atol=1e-6, msg=name)
