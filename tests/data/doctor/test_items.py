"""`itr data check` on questions, hypotheses, statements and expressions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from itr.data.doctor.cli import main
from itr.data.scenes.make import prepare
from itr.data.scenes.make_items import TASKS
from tests.data.downstream.test_readers import edit
from tests.data.image_files import entry, write_karpathy
from tests.data.item_files import (
    write_nlvr2,
    write_refcoco,
    write_snli_ve,
    write_vqa_lists,
)


def check(capsys: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def messages(report: dict[str, Any], level: str, split: str | None = None) -> str:
    return "\n".join(
        finding["message"]
        for finding in report["findings"]
        if finding["level"] == level and split in (None, finding["split"])
    )


@pytest.mark.parametrize(
    ("name", "write", "splits"),
    [
        ("vqa2", write_vqa_lists, {"train": 6, "val": 6, "test": 6}),
        ("snli_ve", write_snli_ve, {"train": 6, "dev": 6, "test": 6}),
        ("nlvr2", write_nlvr2, {"train": 4, "dev": 4, "test_p": 4}),
        ("refcoco", write_refcoco, {"train": 4, "val": 2, "testA": 2, "testB": 2}),
    ],
)
def test_counts_of_each_data_set(
    tmp_path: Path, capsys: Any, name: str, write: Any, splits: dict[str, int]
) -> None:
    write(tmp_path)
    (tmp_path / "vg_qa.json").unlink(missing_ok=True)
    code, report = check(capsys, f"data={name}", f"data.root={tmp_path}")
    assert code == 0, messages(report, "warning") + messages(report, "refused")
    assert {entry["split"]: entry["captions"] for entry in report["splits"]} == splits
    assert "this split of" in messages(report, "note")  # far fewer than are known
    unnamed, report = check(capsys, f"data.root={tmp_path}")
    assert unnamed == 0 and "this split of" not in messages(report, "note")


def test_answers_and_their_list(tmp_path: Path, capsys: Any) -> None:
    write_vqa_lists(tmp_path)
    edit(tmp_path / "vqa_train.json", lambda rows: rows[0].pop("answer"))
    code, report = check(capsys, f"data.root={tmp_path}")
    assert code == 2 and "data.roots.vg" in messages(report, "refused", "vg")
    assert "1 entries without an answer" in messages(report, "warning", "train")
    assert "100.00 %" in messages(report, "note", "val")
    assert "without answers 6" in messages(report, "note", "test")
    edit(tmp_path / "answer_list.json", lambda answers: answers.append("yes"))
    _, report = check(capsys, f"data.root={tmp_path}")
    assert "more than once: yes" in messages(report, "refused")


def test_labels_and_missing_pictures(tmp_path: Path, capsys: Any) -> None:
    write_snli_ve(tmp_path, lists=True)
    edit(tmp_path / "ve_dev.json", lambda rows: rows[3].update(label="perhaps"))
    (tmp_path / "flickr30k-images" / "3000.jpg").unlink()
    code, report = check(capsys, f"data.root={tmp_path}")
    assert code == 2
    assert "'perhaps'" in messages(report, "refused", "dev")
    assert "1 of 2 images are missing" in messages(report, "refused", "test")
    assert "label 0 2, label 1 2, label 2 2" in messages(report, "note", "train")


def test_a_picture_of_two_splits(tmp_path: Path, capsys: Any) -> None:
    write_snli_ve(tmp_path, lists=True)
    edit(tmp_path / "ve_dev.json", lambda rows: rows[0].update(image="1000"))
    code, report = check(capsys, f"data.root={tmp_path}")
    assert code == 2 and "1 of 3 images" in messages(report, "refused", "dev")


def test_evaluated_pictures_that_a_retrieval_model_was_trained_on(
    tmp_path: Path, capsys: Any
) -> None:
    write_snli_ve(tmp_path)
    images = [
        {**entry(number, split), "filename": f"{number}.jpg"}
        for number, split in ((1000, "train"), (3000, "train"), (2000, "val"), (3001, "test"))
    ]
    write_karpathy(tmp_path, images, "flickr30k", "flickr30k-images")
    _, report = check(capsys, f"data.root={tmp_path}", "data=snli_ve")
    assert "1 of 2 pictures" in messages(report, "warning", "test")
    assert "dataset_flickr30k.json" in messages(report, "warning", "test")
    assert not messages(report, "warning", "dev")


def test_boxes_and_proposals(tmp_path: Path, capsys: Any) -> None:
    write_refcoco(tmp_path)
    edit(tmp_path / "dets.json", lambda boxes: boxes.update({"503": [], "502": [[90, 1, 2, 2]]}))
    code, report = check(capsys, f"data.root={tmp_path}")
    assert code == 1
    assert "1 boxes outside their picture" in messages(report, "warning", "val")
    assert "2 of 2 expressions of testA" in messages(report, "warning", "testA")


@pytest.mark.parametrize("task", TASKS)
def test_items_of_scenes(tmp_path: Path, capsys: Any, task: str) -> None:
    folder = prepare(tmp_path, train=30, val=8, test=8, seed=1)
    code, report = check(capsys, f"data.root={folder}", f"task={task}")
    assert code == 0, report["findings"]
    assert {entry["layout"] for entry in report["splits"]} == {task}
