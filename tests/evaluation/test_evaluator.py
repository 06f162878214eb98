"""The evaluator on precomp files and a small linear model, against a computation by hand."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch
from torch import nn

from itr.batch import Batch
from itr.data.checks.fingerprint import content_hash
from itr.data.layouts.precomp import read_split
from itr.data.text.token_cache import tokenize_cached
from itr.data.text.tokenizer import Tokenizer
from itr.errors import ConfigError, DataError
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.metrics import retrieval_metrics
from itr.evaluation.ranks import rank_scores
from itr.models.base import Encoded, ParameterGroup, RetrievalModel, Terms
from itr.view import Facts, RegionView, TextView, View

IMAGES, CAPTIONS, REGIONS, WIDTH = 12, 5, 4, 6
WORDS = "red blue green circle square star above below left big small".split()


class Linear(RetrievalModel):
    """A linear layer on the mean region and on the mean word vector; records the encoded rows."""

    slot_names, term_names = (), ()

    def __init__(self, facts: Facts):
        super().__init__(None, nn.ModuleDict(), {}, facts)
        self.words = nn.Embedding(facts.vocabulary, 8)
        self.image, self.text = nn.Linear(WIDTH, 8), nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        self.seen: dict[str, list[int]] = {"images": [], "captions": []}
        self.modes: set[bool] = set()

    @classmethod
    def view_for(cls, config: object) -> View:
        return View("regions", "wordpiece", text_eval=TextView(), regions_eval=RegionView())

    def forward(self, batch: Batch, clock: object, draws: object) -> Terms:
        return Terms({})

    def parameter_groups(self, lr: float, weight_decay: float) -> list[ParameterGroup]:
        return []

    def encode_images(self, batch: Batch) -> Encoded:
        self.seen["images"] += batch.image_id.tolist()
        self.modes.add(self.drop.training)
        assert torch.is_inference_mode_enabled()
        mask = batch.region_mask[..., None]
        mean = (batch.regions * mask).sum(dim=1) / mask.sum(dim=1)
        return Encoded(nn.functional.normalize(self.image(self.drop(mean)), dim=-1))

    def encode_texts(self, batch: Batch) -> Encoded:
        self.seen["captions"] += batch.caption_id.tolist()
        mask = batch.token_mask[..., None]
        mean = (self.words(batch.tokens) * mask).sum(dim=1) / mask.sum(dim=1)
        return Encoded(nn.functional.normalize(self.text(self.drop(mean)), dim=-1))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Split, view, tokens and model."""
    folder = tmp_path_factory.mktemp("precomp")
    draw = np.random.default_rng(0)
    regions = draw.standard_normal((IMAGES, REGIONS, WIDTH)).astype(np.float32)
    np.save(folder / "test_ims.npy", regions)
    lines = [" ".join(draw.choice(WORDS, draw.integers(2, 8))) for _ in range(IMAGES * CAPTIONS)]
    (folder / "test_caps.txt").write_text("\n".join(lines) + "\n")
    split, tokenizer = read_split(folder, "test"), Tokenizer.from_captions(lines, 100)
    torch.manual_seed(0)
    model = Linear(Facts(tokenizer.vocabulary_size, WIDTH))
    return split, model.view, tokenize_cached(tokenizer, lines, TextView()), model


def by_hand(world: tuple) -> np.ndarray:
    """Scores [N, C], one image and one caption at a time."""
    split, _, tokens, model = world
    model.eval()
    rows = []
    with torch.no_grad():
        images = torch.from_numpy(np.array(split.regions)).mean(dim=1)
        images = nn.functional.normalize(model.image(images), dim=-1)
        for caption in range(len(tokens)):
            flat = tokens.flat[tokens.offsets[caption] : tokens.offsets[caption + 1]]
            word = model.words(torch.from_numpy(flat.astype(np.int64))).mean(dim=0)
            rows.append(images @ nn.functional.normalize(model.text(word), dim=-1))
    return torch.stack(rows, dim=1).numpy()


@pytest.mark.parametrize("batch_size", [1, 5, 128])
def test_results_equal_a_computation_by_hand(world, batch_size):
    split, view, tokens, model = world
    results = Evaluator(split, view, tokens, batch_size=batch_size).run(model)
    expected = retrieval_metrics(rank_scores(by_hand(world), split.text_to_image))
    assert {key: results.pop(key) for key in expected} == pytest.approx(expected)
    assert results == {
        "protocol": "full",
        "tie_break": "pessimistic",
        "split": "test",
        "n_images": 12,
        "n_captions": 60,
        "captions": "all",
        "rerank_k": None,
        "precision": "fp32",
        "data_hash": content_hash(split),
    }


def test_everything_is_encoded_exactly_once_in_eval_mode(world):
    split, view, tokens, model = world
    model.seen, model.modes = {"images": [], "captions": []}, set()
    model.train()
    model.image.eval()  # some modules of a model are always in eval mode
    calls: list[tuple[str, int, int]] = []
    Evaluator(split, view, tokens, batch_size=7).run(model, lambda *call: calls.append(call))
    assert sorted(model.seen["images"]) == list(range(12))
    assert sorted(model.seen["captions"]) == list(range(60))
    assert model.modes == {False}
    assert model.training and model.drop.training and not model.image.training
    assert calls[:2] == [("images", 7, 12), ("images", 12, 12)]
    assert calls[-1] == ("captions", 60, 60) and len(calls) == 2 + 9


def test_modes_are_restored_after_an_error(world):
    split, view, tokens, model = world
    model.train()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Evaluator(split, view, tokens).run(model, stop)
    assert model.training and model.drop.training


def test_provenance_depends_on_the_tokens(world):
    split, view, tokens, _ = world
    other = dataclasses.replace(tokens, flat=tokens.flat + 1)
    first, second = (
        Evaluator(split, view, table).provenance({"checkpoint_sha256": "x"})
        for table in (tokens, other)
    )
    assert first.pop("tokens") != second.pop("tokens") and first == second


def test_half_precision_encodes_and_scores_in_float32(world):
    split, view, tokens, model = world
    exact = Evaluator(split, view, tokens).encode(model)
    rounded = Evaluator(split, view, tokens, precision="bf16").encode(model)
    for a, b in zip(exact, rounded, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert 0 < (a - b).abs().max() < 0.05


def test_tie_break_is_used_and_reported(world):
    split, view, tokens, model = world
    blind = Linear(model.facts)
    for parameter in (blind.image.weight, blind.text.weight):
        nn.init.zeros_(parameter)
    best = Evaluator(split, view, tokens, tie_break="optimistic").run(blind)
    worst = Evaluator(split, view, tokens, tie_break="pessimistic").run(blind)
    assert (best["tie_break"], best["rsum"]) == ("optimistic", 600)
    assert (worst["tie_break"], worst["rsum"], worst["t2i_meanr"]) == ("pessimistic", 0, 12)


def test_embeddings_that_are_not_finite_are_counted_and_refused(world):
    split, view, tokens, model = world
    broken = Linear(model.facts)
    rare = int(tokens.flat[tokens.offsets[7] + 1])
    with torch.no_grad():
        broken.words.weight[rare] = torch.nan
    starts, stops = tokens.offsets[:-1], tokens.offsets[1:]
    bad = sum(rare in tokens.flat[a:b] for a, b in zip(starts, stops, strict=True))
    message = rf"{bad} of 60 embeddings of the captions of split test are not finite"
    with pytest.raises(DataError, match=message):
        Evaluator(split, view, tokens).run(broken)


def test_protocols_that_do_not_fit_are_skipped_or_refused(world, caplog):
    split, view, tokens, model = world
    with caplog.at_level(logging.WARNING, logger="itr"):
        results = Evaluator(split, view, tokens, protocols=["coco_5k", "coco_1k_5fold"]).run(model)
    assert results["protocol"] == "full"
    assert results["protocols_skipped"] == "coco_5k,coco_1k_5fold"
    assert "coco_5k (needs 5000 images)" in caplog.text
    with pytest.raises(ConfigError, match=r"f30k_1k \(needs 1000 images\).*protocol=full"):
        Evaluator(split, view, tokens, protocols=["f30k_1k"], strict=True)


@pytest.mark.parametrize("option", [{"tie_break": "worst"}, {"precision": "fp8"}])
def test_unknown_options_are_refused(world, option):
    split, view, tokens, _ = world
    with pytest.raises(
        ConfigError, match=f"^{next(iter(option))}: .*'{next(iter(option.values()))}'"
    ):
        Evaluator(split, view, tokens, **option)
