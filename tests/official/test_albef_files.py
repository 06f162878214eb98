"""The authors' files of every task of ALBEF on the command line: inspected, converted, exported."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from itr import checkpoint
from itr.data.text.known_tokenizers import tokenizer_from_json
from itr.jobs.evaluate import evaluate
from itr.jobs.train import train
from itr.models.build import restore
from itr.official import albef as official_albef
from itr.official.__main__ import main as official
from itr.official.load import recognize
from itr.official.name_table import load_pickle
from itr.tasks.grounding_task import GroundingEvaluator
from itr.tasks.statement_tasks import StatementEvaluator
from itr.tasks.vqa_task import VqaEvaluator
from tests.conftest import ROOT, compose
from tests.models.test_albef_starts import SMALL
from tests.official.test_official_files import save_tokenizer

GOLDEN = ROOT / "tests" / "golden" / "albef"
FILES = {
    "official_checkpoint_12layers": ("pretrain", "ALBEF"),
    "official_checkpoint_vqa": ("vqa", "ALBEFQuestionAnswering"),
    "official_checkpoint_ve": ("entailment", "ALBEFEntailment"),
    "official_checkpoint_nlvr_ta": ("assignment", "ALBEFAssignment"),
    "official_checkpoint_nlvr": ("nlvr2", "ALBEFPairs"),
    "official_checkpoint_grounding_bare": ("retrieval", "ALBEF"),
}
HEADS = ("--heads", "2", "--image-heads", "2")


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_known_by_its_weights(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, cls = FILES[name]
    path = tmp_path / "anything.pth"
    shutil.copy(GOLDEN / f"{name}.pth", path)
    assert recognize(path) == "albef"
    assert official(["inspect", str(path), *HEADS]) == 0
    assert f"task: {task}\n" in capsys.readouterr().out
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    assert official(["convert", str(path), str(ours), *HEADS]) == 0
    meta = checkpoint.read_meta(ours)
    assert type(restore(ours, meta)).__name__ == cls and meta["model_config"]["task"] == task
    assert official(["export", str(ours), str(back)]) == 0
    payload = load_pickle(path)
    theirs, written = payload.get("model", payload), load_pickle(back)["model"]
    assert all(torch.equal(written[key], value) for key, value in theirs.items())


def test_of_two_values_of_a_shared_weight_the_second_is_read(tmp_path: Path) -> None:
    """As the authors' code does, which loads one name after the other into the same parameter."""
    payload = load_pickle(GOLDEN / "official_checkpoint_nlvr.pth")
    name = "text_encoder.encoder.layer.{}.crossattention.self.key.weight"
    payload["model"][name.format(9)] = payload["model"][name.format(9)] + 1.0
    torch.save(payload, tmp_path / "theirs.pth")
    assert official(["convert", str(tmp_path / "theirs.pth"), str(tmp_path), *HEADS]) == 0
    tensors = checkpoint.read_tensors(tmp_path / "best.safetensors", "model/")
    found = tensors["fusion.layers.2.image.key.weight"]
    assert torch.equal(found, payload["model"][name.format(9)])


def test_a_classifier_of_other_classes_is_no_file_of_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = load_pickle(GOLDEN / "official_checkpoint_ve.pth")
    head = payload["model"]["cls_head.2.weight"]
    payload["model"]["cls_head.2.weight"] = torch.cat([head, head])
    torch.save(payload, tmp_path / "theirs.pth")
    assert official(["inspect", str(tmp_path / "theirs.pth"), *HEADS]) != 0
    assert "not a checkpoint of a known method's authors" in capsys.readouterr().err


# Evaluated as they are

EVALUATORS = {
    "vqa": VqaEvaluator,
    "entailment": StatementEvaluator,
    "nlvr2": StatementEvaluator,
    "grounding": GroundingEvaluator,
}


@pytest.mark.parametrize("task", EVALUATORS)
def test_an_authors_file_of_a_task_is_evaluated_as_its_run(
    task: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its task on the command line, if the weights tell it; and a picture of several items
    is encoded once, which changes nothing."""
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    out = tmp_path / "run"
    options = {"vqa": ["task.k=7", "model.answer_depth=2"]}.get(task, [])
    train(compose("train", [*SMALL, *places, f"task={task}", f"out={out}", *options]))
    best = out / "checkpoints" / "best.safetensors"
    meta = checkpoint.read_meta(best)
    model = restore(best, meta)
    torch.save(official_albef.export(model), tmp_path / "theirs.pth")
    folder = save_tokenizer(tokenizer_from_json(meta["tokenizer"]), tmp_path / "tokenizer")
    ours = evaluate(compose("eval", [f"checkpoint={out}", "device=cpu"]))
    heads = f"model.text.heads={model.config.text.heads}"
    image_heads = f"model.image.heads={model.config.image.heads}"
    named = {"vqa": ["task=vqa", "task.k=7"], "grounding": ["task=grounding"]}.get(task, [])
    data = [option for option in SMALL if option.startswith("data")]
    given = ["model=albef", f"checkpoint={tmp_path / 'theirs.pth'}", "device=cpu", *data, *places]
    given += [heads, image_heads, f"model.text.tokenizer={folder}", *named]
    monkeypatch.setattr(EVALUATORS[task], "share_images", False)
    theirs = evaluate(compose("eval", given))
    accuracies = {key: value for key, value in ours.items() if "accuracy" in key}
    assert accuracies and {key: theirs[key] for key in accuracies} == accuracies
