"""What each task of ALBEF starts from: runs and authors' files of the same and of other tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from itr import checkpoint
from itr.errors import CheckpointError
from itr.jobs.init_weights import initialize_from
from itr.jobs.train import train
from itr.models.build import model_meta
from itr.official import albef as official
from tests.conftest import compose
from tests.models.model_sizes import SMALL_ALBEF
from tests.models.tiny import Steps, build_task, item_batch

HEADS = ("head", "assignment_head", "itm_head", "vision_proj", "text_proj", "temperature")


def saved(model: Any, folder: Path, kind: str) -> Path:
    """A checkpoint of ours, or an authors' file."""
    if kind == "authors":
        torch.save(official.export(model), folder / "theirs.pth")
        return folder / "theirs.pth"
    path = folder / "best.safetensors"
    meta = {**model_meta(model), "model_name": "albef", "loss": None, "tokenizer": None}
    checkpoint.write(path, {f"model/{k}": v for k, v in model.state_dict().items()}, meta)
    return path


def trained(task: str, **fields: Any) -> Any:
    """A model after a step, so that its momentum copies are no longer copies."""
    model = build_task(task, momentum=0.5, **fields)
    steps = Steps("albef", model)
    for _ in range(2):
        steps(item_batch(task, 6))
    return model


def started(task: str, path: Path, **fields: Any) -> tuple[Any, str]:
    """A model of ``task`` that starts from ``path``, and what is said about it."""
    model = build_task(task, **fields)
    with torch.no_grad():  # other random weights than those of the checkpoint
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    if model.twin is not None:
        model.twin.reset()
    return model, "\n".join(initialize_from(model, "albef", str(path)))


KINDS = pytest.mark.parametrize("kind", ["ours", "authors"])


@KINDS
def test_question_answering_from_pretraining(kind: str, tmp_path: Path) -> None:
    """The decoder begins as the fusion half, the word embeddings and the word head; its copy as
    theirs of the momentum encoders."""
    source = trained("pretrain")
    model, said = started("vqa", saved(source, tmp_path, kind))
    for theirs, ours in ((source, model), (source.twin, model.twin)):
        for part in ("vision", "text", "fusion"):
            expected = theirs.get_submodule(part).state_dict()
            for name, value in ours.get_submodule(part).state_dict().items():
                assert torch.equal(value, expected[name]), (part, name)
        decoder = ours.get_submodule("decoder")
        parts = (
            (decoder.body, theirs.get_submodule("fusion")),
            (
                decoder.words,
                theirs.get_submodule("words"),
            ),
        )
        for mine, other in parts:
            for name, value in mine.state_dict().items():
                if value.shape == other.state_dict()[name].shape:
                    assert torch.equal(value, other.state_dict()[name]), name
        words = theirs.get_submodule("text").embeddings.word_embeddings.weight
        assert torch.equal(decoder.embeddings.word_embeddings.weight, words)
    assert not model.vision.norm.weight.equal(model.twin["vision"].norm.weight)
    ignored = next(line for line in said.splitlines() if line.startswith("model.init: ignored ("))
    assert "words" not in ignored and "itm_head" in ignored
    # The questions that the decoder reads are 16 wide, the images of the source 12.
    assert "left at their initial values (8): decoder.body.layers.0.image.key.weight" in said
    assert "taken from weights of other names" in said


@KINDS
@pytest.mark.parametrize("task", ["assignment", "nlvr2"])
@pytest.mark.parametrize("start", ["pretrain", "retrieval"])
def test_each_fusion_layer_becomes_a_pair(task: str, start: str, kind: str, tmp_path: Path) -> None:
    source = trained(start, momentum_fusion=True)
    model, _ = started(task, saved(source, tmp_path, kind))
    for number, layer in enumerate(model.fusion.layers):
        expected = source.fusion.layers[number // 2].state_dict()
        own = layer.state_dict()
        missing = {name for name in expected if name not in own}
        assert all(torch.equal(own[name], expected[name]) for name in own)
        shared = {f"image.{part}" for part in ("key.weight", "key.bias")}
        shared |= {name.replace("key", "value") for name in shared}
        assert missing == (shared if number % 2 else set())


@KINDS
def test_pairs_start_from_text_assignment(kind: str, tmp_path: Path) -> None:
    """The copies, which that file lacks, are those of its weights; on request, as the authors' are,
    those of the random weights before."""
    source = trained("assignment")
    path = saved(source, tmp_path, kind)
    model, said = started("nlvr2", path)
    layer = "fusion.layers.3.words.query"
    weight = source.get_submodule(layer).weight
    assert torch.equal(model.get_submodule(layer).weight, weight)
    assert torch.equal(model.twin.get_submodule(layer).weight, weight)
    assert "copied to momentum encoders" in said and "assignment_head" in said
    before, said = started("nlvr2", path, teacher_from="copies_before")
    assert torch.equal(before.get_submodule(layer).weight, weight)
    assert not torch.equal(before.twin.get_submodule(layer).weight, weight)
    assert "twin.fusion" in said.split("left at their initial values")[1]


@KINDS
def test_the_teacher_can_begin_as_a_copy_of_what_is_trained(kind: str, tmp_path: Path) -> None:
    source = trained("pretrain")
    path = saved(source, tmp_path, kind)
    for choice, theirs in (("file", source.twin), ("copies_after", source)):
        model, _ = started("entailment", path, teacher_from=choice)
        expected = theirs.get_submodule("vision.norm").weight
        assert torch.equal(model.twin["vision"].norm.weight, expected)
        assert torch.equal(model.vision.norm.weight, source.vision.norm.weight)
        assert torch.equal(model.twin["head"][0].weight, model.head[0].weight)


@KINDS
@pytest.mark.parametrize(
    ("task", "start"),
    [
        ("vqa", "retrieval"),
        ("vqa", "entailment"),
        ("vqa", "grounding"),
        ("entailment", "vqa"),
        ("entailment", "nlvr2"),
        ("nlvr2", "vqa"),
        ("assignment", "nlvr2"),
        ("grounding", "assignment"),
        ("retrieval", "vqa"),
    ],
)
def test_a_checkpoint_of_another_task_is_refused_by_name(
    task: str, start: str, kind: str, tmp_path: Path
) -> None:
    path = saved(build_task(start), tmp_path, kind)
    named = "retrieval" if (kind, start) == ("authors", "grounding") else start
    with pytest.raises(CheckpointError, match=rf"task={named},[\s\S]*task={task} starts from"):
        initialize_from(build_task(task), "albef", str(path))


@KINDS
@pytest.mark.parametrize("task", ["vqa", "entailment", "nlvr2", "assignment", "grounding"])
def test_every_task_starts_from_itself(task: str, kind: str, tmp_path: Path) -> None:
    source = trained(task, momentum_fusion=True)
    model, said = started(task, saved(source, tmp_path, kind), momentum_fusion=True)
    for name, value in source.state_dict().items():
        assert name.endswith("ids") or torch.equal(model.state_dict()[name], value), name
    assert "model.init: ignored (" not in said


def test_a_larger_image_resizes_both_position_embeddings(tmp_path: Path) -> None:
    source = trained("vqa")
    path = saved(source, tmp_path, "ours")
    image = dataclasses.replace(source.config.image, size=24)
    model, said = started("vqa", path, image=image)
    assert model.vision.pos_embed.shape == model.twin["vision"].pos_embed.shape == (1, 37, 12)
    assert "resized (2): " in said and "model.init: ignored (" not in said


# From files on disk to results

SMALL = (*SMALL_ALBEF, "trainer.max_steps=2")


@pytest.fixture(scope="module")
def here(world: Path) -> tuple[str, ...]:
    return (*SMALL, f"data.root={world / 'data'}", f"data.cache={world / 'cache'}")


@pytest.fixture(scope="module")
def pretrained(here: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    train(compose("train", [*here, "task=pretrain", "rerank.k=10", f"out={out}"]))
    return out


@pytest.mark.parametrize("task", ["vqa", "entailment", "assignment", "nlvr2", "grounding"])
def test_a_run_of_every_task_starts_from_a_run_of_pretraining(
    task: str, here: tuple[str, ...], pretrained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = {"vqa": ("task.k=5", "model.answer_depth=1")}.get(task, ())
    given = [*here, f"task={task}", f"model.init={pretrained}", f"out={out}", *options]
    train(compose("train", given))
    said = " ".join((out / "train.log").read_text().split())
    loaded = said.split("model.init: loaded ")[1]
    assert "from weights of other names" in loaded or task in ("entailment", "grounding"), said
    path = out / "checkpoints" / "best.safetensors"
    assert checkpoint.read_meta(path)["model_config"]["task"] == task


def test_a_run_that_cannot_start_from_a_run_says_so(
    here: tuple[str, ...], pretrained: Path, tmp_path: Path
) -> None:
    first = [*here, "task=entailment", f"model.init={pretrained}", f"out={tmp_path / 'first'}"]
    train(compose("train", first))
    given = [*here, "task=vqa", "task.k=5", f"out={tmp_path / 'second'}"]
    with pytest.raises(CheckpointError, match=r"task=entailment.*task=vqa"):
        train(compose("train", [*given, f"model.init={tmp_path / 'first'}"]))
