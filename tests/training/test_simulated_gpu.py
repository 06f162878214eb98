"""Every model and task on a simulated GPU, and eight simulated ranks.

Not simulated: the backward pass and ``runtime.compile``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from itr import parallel
from itr.batch import Batch
from itr.clock import Clock
from itr.data.images.regions import Regions
from itr.data.images.transforms import DRAWS, RemainingTransforms, draw_choices
from itr.data.records import Record, Split
from itr.evaluation.score_tables import EmbeddingTable
from itr.models.base import Encoded, Model, RetrievalModel
from itr.nn.answer_ranking import AnswerList
from itr.training.step import Step
from itr.view import PixelView
from tests.models.model_sizes import MODEL_SIZES
from tests.models.tiny import batch_for, build, build_task, item_batch
from tests.training.simulated_gpu import (
    CUDA,
    SimulatedDraws,
    batch_on_gpu,
    on_gpu,
    simulated_gpu,
)

BF16, RANKS = torch.bfloat16, 8
EARLY, LATE = Clock(epoch=0, batches_per_epoch=4), Clock(epoch=9, batches_per_epoch=4)
# Precisions and times: before and after every warm-up. Eight ranks add bfloat16 after it.
FORWARDS = ((BF16, EARLY), (None, LATE), (torch.float16, LATE))
ITEM_TASKS = ("vqa", "entailment", "nlvr2", "assignment", "grounding")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    with simulated_gpu(monkeypatch) as mode:
        yield mode


def forward_on_gpu(model: Model, given, mode: FakeTensorMode, forwards=FORWARDS):
    """Train-mode forward passes; returns the batch on the device."""
    moved = batch_on_gpu(given, mode)
    for dtype, clock in forwards:
        step = Step(model, CUDA, dtype, torch.amp.GradScaler("cuda", enabled=False))
        step.sleeping, step.wrapped = model.sleeping(clock), model
        total, terms = step.forward(moved, clock, SimulatedDraws())
        assert total.device.type == "cuda" and total.dtype == torch.float32
        assert all(value.shape == () for value in terms.losses.values())
    return moved


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = build(name), batch_for(name)
    with simulated_gpu(monkeypatch) as mode, torch.no_grad():
        on_gpu(model, mode)
        moved = forward_on_gpu(model.train(), given, mode)
        model.eval()
        for dtype in (None, BF16):
            with torch.autocast("cuda", dtype, enabled=dtype is not None):
                images, texts = model.encode_images(moved), model.encode_texts(moved)
                table = EmbeddingTable(images.pooled.float(), texts.pooled.float())
                scores = table.in_direction("t2i").of(slice(0, 2))
                assert scores.device.type == "cuda" and scores.shape == (2, len(given))
                if model.has_rerank():
                    assert second_scores(model, images, texts).device.type == "cuda"


def second_scores(model: RetrievalModel, images: Encoded, texts: Encoded) -> torch.Tensor:
    block, count = model.rerank_block, 2 * model.rerank_block
    image_of = torch.arange(2, device="cuda").repeat_interleave(block)
    pairs = torch.stack([image_of, torch.arange(count, device="cuda") % 6], dim=1)
    direction = "both" if model.symmetric_rerank else "t2i"
    found = model.rerank(images, texts, pairs, direction, block)
    assert found.shape == (count,)
    return found


@pytest.mark.parametrize("task", ITEM_TASKS)
def test_a_task(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = build_task(task), item_batch(task)
    with simulated_gpu(monkeypatch) as mode, torch.no_grad():
        on_gpu(model, mode)
        moved = forward_on_gpu(model.train(), given, mode, ((BF16, LATE),))
        model.eval()
        if task in ("entailment", "nlvr2"):
            assert model.logits(moved).device.type == "cuda"
        if task == "vqa":
            states, mask = model.encode_questions(moved)
            tokens = torch.ones((9, 4), dtype=torch.int64, device=CUDA)
            answers = AnswerList(tokens, torch.full((9,), 2, device="cuda"))
            # The one transfer to the host: how many answers have one piece, and two.
            monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: [3] * len(tensor))
            ids, probabilities = model.rank_answers(states, mask, answers, 3)
            assert ids.shape == probabilities.shape == (6, 3)
            assert {ids.device.type, probabilities.device.type} == {"cuda"}


def test_what_the_loader_leaves_of_pixels_for_the_device(gpu: FakeTensorMode) -> None:
    view = PixelView(size=16, flip=True, randaugment=True)
    uniforms = np.random.default_rng(0).random((64, DRAWS))
    rest = RemainingTransforms.of(view, [draw_choices(view, row, 16, 16) for row in uniforms])
    assert rest.flipped and len({name for step in rest.steps for name, _ in step}) > 8
    raw = gpu.from_tensor(torch.zeros(64, 3, 16, 16, dtype=torch.uint8))
    finished = Batch(pixels=raw, finish=lambda b: Batch(pixels=rest(b.pixels))).to(CUDA)
    assert finished.pixels.device.type == "cuda" and finished.pixels.dtype == torch.float32


def test_regions_that_are_kept_on_the_device(gpu: FakeTensorMode) -> None:
    records = [Record(number, number, ("a",), (number,)) for number in range(4)]
    array = np.zeros((4, 5, 3), dtype=np.float32)
    split = Split("train", "table", records, regions=array)
    cached = torch.zeros(20, 3, device="cuda", dtype=torch.float16)
    fields = Regions(split, cached).fields(np.array([2, 0]), np.eye(5, dtype=bool)[:2] ^ True)
    fields = {k: gpu.from_tensor(v) if torch.is_tensor(v) else v for k, v in fields.items()}
    regions = Batch(**fields).to(CUDA).regions
    assert regions.device.type == "cuda" and regions.dtype == torch.float32
    assert regions.shape == (2, 4, 3)


@pytest.fixture
def ranks() -> Iterator[None]:
    distributed.init_process_group("fake", store=FakeStore(), rank=5, world_size=RANKS)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_a_share_of_a_batch_on_eight_ranks(
    name: str, ranks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with parallel.single_process():
        model, given = build(name), batch_for(name)
    given.shared_pairs = RANKS * given.positive_pairs
    with simulated_gpu(monkeypatch) as mode, torch.no_grad():
        on_gpu(model, mode)
        forward_on_gpu(model.train(), given, mode, ((BF16, LATE),))
        model.after_step(LATE)
