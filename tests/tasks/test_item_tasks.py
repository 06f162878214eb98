"""Tasks with items from files on disk to results: training, validation, eval.py, files."""

from __future__ import annotations

import html.parser
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from itr.data.items import Expression
from itr.data.records import Record, Split
from itr.errors import CheckpointError, ConfigError, DataError, Stopped
from itr.evaluation.predictions import read_predictions
from itr.jobs.commands.ask_cli import ask
from itr.jobs.commands.gallery_cli import main as gallery
from itr.jobs.evaluate import evaluate
from itr.jobs.launch.workers import launch
from itr.jobs.train import train
from itr.results.__main__ import main as itr_results
from itr.tasks.grounding_task import GroundingConfig, GroundingEvaluator
from tests.conftest import call_here, compose, signal_at_update
from tests.data.item_files import (
    write_nlvr2,
    write_refcoco,
    write_snli_ve,
    write_vqa_lists,
)
from tests.processes import forked_ranks
from tests.training.sizes import SIZES

TASKS: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...]]] = {
    "vqa": ("vqa2", write_vqa_lists, ("task.k=3",)),
    "entailment": ("snli_ve", write_snli_ve, ()),
    "nlvr2": ("nlvr2", write_nlvr2, ()),
    "grounding": ("refcoco", write_refcoco, ()),
}


def overrides(task: str, root: Path, *more: str) -> list[str]:
    """Overrides of a tiny run of ``task`` on the files in ``root``."""
    data, _, options = TASKS[task]
    return [
        "model=albef", f"task={task}", f"data={data}", f"data.root={root}", *options,
        *SIZES["albef"], "model.pretrained=false", "model.image.heads=2",
        "model.text.tokenizer=wordpiece",
        "batch_size=4", "trainer.max_steps=4", "trainer.log_every=1", "tracker=none",
        f"data.cache={root / 'cache'}",
        "device=cpu", "runtime.estimate=false", f"out={root / 'run'}", *more,
    ]  # fmt: skip


Run = tuple[str, Path, dict[str, Any]]  # task, folder of its files and of its run, results


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A finished run of each task."""
    done = {}
    for task in TASKS:
        root = tmp_path_factory.mktemp(task)
        TASKS[task][1](root)
        done[task] = (task, root, train(compose("train", overrides(task, root))))
    return done


@pytest.fixture(params=TASKS)
def run(request: Any, runs: dict[str, Run]) -> Run:
    """One run after the other."""
    return runs[request.param]


def test_a_run_selects_on_accuracy_and_leaves_predictions(
    run: Run,
) -> None:
    task, root, results = run
    assert results["task"] == task and results["test/protocol"] == task
    assert 0 <= results["val/accuracy"] <= 100
    predictions = read_predictions(root / "run", "test")
    assert len(predictions.ids) == results["test/n_items"]
    if task == "vqa":  # no published answers
        assert "test/accuracy" not in results
        answers = json.loads((root / "run" / "answers_test.json").read_text())
        assert {row["question_id"] for row in answers} == set(predictions.ids)
    else:
        assert results["test/accuracy"] == pytest.approx(100 * predictions.scores.mean())


def test_eval_gives_the_same_numbers(run: Run) -> None:
    task, root, results = run
    evaluated = evaluate(
        compose(
            "eval",
            [f"checkpoint={root / 'run'}", "split=val", "device=cpu", f"out={root / 'evaluated'}"],
        )
    )
    assert evaluated["task"] == task
    assert evaluated["val/accuracy"] == results["val/accuracy"]
    assert (root / "evaluated" / "predictions-val.jsonl").is_file()


def test_a_checkpoint_of_another_task_is_refused(tmp_path: Path) -> None:
    write_snli_ve(tmp_path)
    train(compose("train", overrides("entailment", tmp_path)))
    write_vqa_lists(tmp_path / "vqa")
    with pytest.raises(CheckpointError, match="ALBEFEntailment, for task=entailment; task=vqa"):
        evaluate(
            compose(
                "eval",
                [
                    f"checkpoint={tmp_path / 'run'}",
                    "task=vqa",
                    "data=vqa2",
                    f"data.root={tmp_path / 'vqa'}",
                    "device=cpu",
                ],
            )
        )
    with pytest.raises(ConfigError, match="protocol: has no effect with task=entailment"):
        evaluate(compose("eval", [f"checkpoint={tmp_path / 'run'}", "protocol=full", "device=cpu"]))


def test_more_candidates_than_answers_are_refused_before_training(tmp_path: Path) -> None:
    write_vqa_lists(tmp_path)
    with pytest.raises(ConfigError, match=r"task.k=9: the answer list has 4 entries"):
        train(compose("train", overrides("vqa", tmp_path, "task.k=9")))
    assert not (tmp_path / "run").exists()


def test_text_assignment_on_pairs_and_nlvr2_from_it(world: Path, tmp_path: Path) -> None:
    common = [
        "model=albef", *SIZES["albef"], "model.pretrained=false", "batch_size=20",
        "trainer.max_steps=2", "tracker=none", "device=cpu", "runtime.estimate=false",
    ]  # fmt: skip
    sizes = [f"data.prepare.{split}={n}" for split, n in (("train", 60), ("val", 20), ("test", 20))]
    results = train(
        compose(
            "train",
            [
                *common,
                *sizes,
                "task=assignment",
                "model.image.heads=2",
                "model.text.tokenizer=wordpiece",
                "data=scenes",
                f"data.root={world / 'data'}",
                f"data.cache={world / 'cache'}",
                f"out={tmp_path / 'assigned'}",
            ],
        )
    )
    assert 0 <= results["val/accuracy"] <= 100
    write_nlvr2(tmp_path / "nlvr2")
    results = train(
        compose(
            "train",
            [
                *overrides("nlvr2", tmp_path / "nlvr2"),
                "model.image.mlp_ratio=2",
                "model.text.max_positions=64",
                f"model.init={tmp_path / 'assigned'}",
            ],
        )
    )
    assert results["test/consistency"] <= results["test/accuracy"]
    assert results["test/test_p/consistency"] == results["test/consistency"]


def test_one_text_about_a_picture(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, root, _ = run
    picture = next(iter(sorted(root.rglob("*.jpg")) + sorted(root.rglob("*.png"))))
    out = tmp_path / "seen.png"
    more = ["--second", str(picture)] if task == "nlvr2" else []
    more += ["--out", str(out)] if task == "grounding" else []
    assert ask([str(root / "run"), str(picture), "What is left?", "--device", "cpu", *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    if task == "grounding":
        assert lines[0].startswith("box (x, y, width, height): ") and out.is_file()
        return
    shown = {line.split(maxsplit=1)[1]: float(line.split()[0]) for line in lines}
    known = {
        "vqa": {"yes", "red", "man", "no"},
        "entailment": {"contradiction", "neutral", "entailment"},
        "nlvr2": {"false", "true"},
    }[task]
    assert set(shown) <= known and sum(shown.values()) == pytest.approx(1, abs=0.001)
    assert list(shown.values()) == sorted(shown.values(), reverse=True)


def test_pictures_that_do_not_fit_are_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    task, root, _ = run
    picture = next(iter(sorted(root.rglob("*.jpg")) + sorted(root.rglob("*.png"))))
    second = [] if task == "nlvr2" else ["--second", str(picture)]
    assert ask([str(root / "run"), str(picture), "What?", "--device", "cpu", *second]) == 2
    assert "--second" in capsys.readouterr().err
    assert ask([str(root / "run"), str(root / "absent.jpg"), "What?", "--device", "cpu"]) == 2


def test_a_paired_test_of_two_runs_and_their_table(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, root, results = run
    evaluated = [f"checkpoint={root / 'run'}", "split=val", "device=cpu", f"out={tmp_path / 'a'}"]
    accuracy = evaluate(compose("eval", evaluated))["val/accuracy"]
    assert itr_results(["compare", str(tmp_path / "a"), str(tmp_path / "a"), "--split=val"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith(" accuracy"))
    assert line.split()[1:4] == [f"{accuracy:.2f}", f"{accuracy:.2f}", "+0.00"]
    assert itr_results([str(tmp_path / "a"), "--split=val"]) == 0
    assert f"{accuracy:.1f}" in capsys.readouterr().out


def evaluate_all(jobs: dict[str, Any]) -> dict[str, Any]:
    """One evaluation after the other in the same processes."""
    return {name: evaluate(values) for name, values in jobs.items()}


def test_two_processes_predict_each_item_once(runs: dict[str, Run], tmp_path: Path) -> None:
    def jobs(name: str) -> dict[str, Any]:
        return {
            task: compose(
                "eval",
                [
                    f"checkpoint={root / 'run'}",
                    "split=val",
                    "device=cpu",
                    "runtime.eval_batch_size=2",
                    f"out={tmp_path / name / task}",
                ],
            )
            for task, root, _ in runs.values()
        }

    one = evaluate_all(jobs("one"))
    with forked_ranks():
        two = launch(evaluate_all, jobs("two"), 2, 1, cuda=False)
    for task in TASKS:
        assert two[task]["val/accuracy"] == one[task]["val/accuracy"]
        found, alone = (read_predictions(tmp_path / name / task, "val") for name in ("two", "one"))
        assert found.ids == alone.ids and found.predicted == alone.predicted


@pytest.mark.parametrize("task", TASKS)
def test_a_stopped_run_of_a_task_resumes_exactly(
    runs: dict[str, Run], task: str, tmp_path: Path
) -> None:
    undisturbed, out = runs[task][1] / "run", tmp_path / "stopped"
    same = [*overrides(task, runs[task][1]), f"out={out}"]
    with signal_at_update(2), pytest.raises(Stopped):
        train(compose("train", same))
    train(compose("train", [*same, "resume=auto"]))
    files = [folder / "checkpoints" / "last.safetensors" for folder in (undisturbed, out)]
    first, second = (load_file(file) for file in files)
    assert set(first) == set(second)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    losses = [
        [
            line["train/loss"]
            for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            if "train/loss" in line
        ]
        for folder in (undisturbed, out)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_the_gallery_shows_items(run: Run, tmp_path: Path) -> None:
    task, root, results = run
    out = tmp_path / "page.html"
    assert gallery([str(root / "run"), "--out", str(out), "--queries", "3"]) == 0
    page = out.read_text()
    html.parser.HTMLParser().feed(page)
    assert page.count("<article") >= 3 and "data:image/jpeg" in page and "http:" not in page
    assert (task == "grounding") == ('class="predicted"' in page)
    if "test/accuracy" in results:
        assert f"{results['test/accuracy']:.2f} %" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=hrem", "task=vqa"], "task=vqa: HREM does not support this task"),
        (["model=albef", "task=vqa", "loss=triplet"], "loss=triplet: task=vqa compares no scores"),
        (["model=albef", "task=vqa", "data=f30k", "data.root=."], "holds no items of task=vqa"),
    ],
)
def test_what_does_not_fit_is_one_sentence(arguments: list[str], message: str) -> None:
    ended = call_here("train.py", *arguments, "tracker=none", "device=cpu")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and message in ended.stderr, ended.stderr


def test_an_expression_without_evidence_takes_the_box_of_the_line_before() -> None:
    """The line in the file of the authors' habit; a split holds expressions by picture."""
    boxes = [(0.0, 0.0, 4.0, 4.0), (4.0, 4.0, 2.0, 2.0)]
    items = [Expression(n, boxes[0], tuple(boxes), (8, 8), "testA") for n in range(3)]
    records = [  # lines 0 and 2 are about the first picture, line 1 is about the second
        Record(5, "5.jpg", ("a", "c"), (0, 2)), Record(6, "6.jpg", ("b",), (1,))
    ]  # fmt: skip
    split = Split("testA", "refcoco", records, items=items)
    maps = np.zeros((3, 8, 8), np.float32)
    maps[0, :3, :3], maps[2, 5, 5] = 1.0, 1.0  # items by picture: lines 0, 2, 1
    settings: Any = None
    for fallback, third in (("previous", boxes[1]), ("largest", boxes[0])):
        config = GroundingConfig("grounding", "itm", None, "file", fallback, 0.5)
        found = GroundingEvaluator(split, settings, config).predict({"maps": maps})
        assert found.predicted == [list(boxes[0]), list(third), list(boxes[1])]
        assert [detail.get("without_evidence") for detail in found.details] == [None, True, None]


def test_options_of_a_task_need_its_name() -> None:
    assert call_here("eval.py", "checkpoint=RUN", "task.k=5").stderr.startswith(
        "error: task.k: an option of a task; also pass task=NAME ("
    )


def test_grounding_without_proposals(tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    (tmp_path / "dets.json").unlink()
    with pytest.raises(DataError, match=r"no expression of split val has proposals.*=map"):
        train(compose("train", overrides("grounding", tmp_path)))
    results = train(compose("train", overrides("grounding", tmp_path, "task.proposals=map")))
    assert "not comparable" in results["test/remark"]
    assert 0 <= results["test/testA/pointing"] <= 100
