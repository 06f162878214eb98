"""The data sets of the other tasks, from real files to items; what is refused, what is skipped."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itr.data.config import DataConfig
from itr.data.downstream.open import find_answer_list, open_items
from itr.data.downstream.vqa import read_answer_list
from itr.errors import ConfigError, DataError
from tests.conftest import compose
from tests.data.item_files import (
    LABELS,
    coco_file,
    write_json,
    write_lines,
    write_nlvr2,
    write_picture,
    write_refcoco,
    write_snli_ve,
    write_vqa_lists,
    write_vqa_official,
)


def data_of(name: str, root: Path, **options: Any) -> DataConfig:
    """The options of ``conf/data/<name>.yaml``, with others replaced."""
    values = {**compose("train", [f"data={name}"])["data"], "root": str(root)}
    return DataConfig(**{**values, **options})


def edit(path: Path, change: Any) -> None:
    """Apply ``change`` to the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# VQA


def test_albef_lists_of_vqa_with_visual_genome(tmp_path: Path) -> None:
    write_vqa_lists(tmp_path)
    write_picture(tmp_path / "elsewhere" / "image" / "7.jpg")
    train = open_items(
        data_of("vqa2", tmp_path, roots={"vg": str(tmp_path / "elsewhere")}), "vqa", "train"
    )
    assert (train.n_images, train.n_captions, train.name) == (4, 7, "train+vg")
    assert [record.image_id for record in train.records] == [1, 2, 3, 7]
    assert train.records[3].image == str(tmp_path / "elsewhere/image/7.jpg")
    assert [item.source for item in train.items] == ["vqa"] * 6 + ["vg"]
    assert train.items[1].votes == ("red",) * 7 + ("dark red",) * 3
    test = open_items(data_of("vqa2", tmp_path), "vqa", "test")
    assert test.n_captions == 6 and not any(item.votes for item in test.items)
    listed = find_answer_list(data_of("vqa2", tmp_path))
    assert read_answer_list(listed) == ["yes", "red", "man", "no"]


def test_official_files_of_vqa(tmp_path: Path) -> None:
    write_vqa_official(tmp_path)
    data = data_of("vqa2", tmp_path, splits={"train": "train+val+vg?"})
    train = open_items(data, "vqa", "train")
    assert train.name == "train+val" and train.n_images == 3
    assert [(i.id, i.answer_type, i.question_type) for i in train.items] == [
        (n, "other", "what color is") for n in (101, 102, 103)
    ]
    assert any("vg is left out" in note for note in train.notes)


def test_visual_genome_is_left_out_only_if_all_its_pictures_are_missing(tmp_path: Path) -> None:
    write_vqa_lists(tmp_path)
    data = data_of("vqa2", tmp_path)
    train = open_items(data, "vqa", "train")
    assert train.n_captions == 6
    (note,) = [note for note in train.notes if "vg" in note]
    assert "1 of 1" in note and "data.roots.vg" in note
    with pytest.raises(DataError, match=r"data.roots.vg"):
        open_items(data_of("vqa2", tmp_path, splits={"train": "train+vg"}), "vqa", "train")
    write_picture(tmp_path / "image" / "7.jpg")
    edit(tmp_path / "vg_qa.json", lambda rows: rows.append({**rows[0], "image": "image/8.jpg"}))
    with pytest.raises(DataError, match=r"1 of 2 images .*image/8.jpg.*data.roots.vg"):
        open_items(data, "vqa", "train")


def test_questions_without_answers_are_counted_and_left_out_of_training(tmp_path: Path) -> None:
    write_vqa_lists(tmp_path)
    edit(tmp_path / "vqa_train.json", lambda rows: [row.pop("answer") for row in rows[:2]])
    train = open_items(data_of("vqa2", tmp_path), "vqa", "train")
    assert train.n_captions == 4
    assert any("2 entries without an answer" in note for note in train.notes)
    with pytest.raises(DataError, match=r"vqa_test.json: none of its 6.*data.splits.train"):
        open_items(data_of("vqa2", tmp_path, splits={"train": "test"}), "vqa", "train")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dataset": "gqa"}, r"\[0\]: 'dataset' is str 'gqa'.*data.roots.gqa=DIR"),
        ({"answer": ["yes", 3]}, r"\[0\]: 'answer' is list"),
        ({"question": None}, r"\[0\]: 'question' is missing"),
        ({"image": ""}, r"\[0\]: 'image' is an empty str"),
        ({"image": coco_file("train2014", 99)}, r"1 of 4 images .*99.jpg.*data.roots.vqa"),
        ({"question_id": [1]}, r"\[0\]: 'question_id' is list"),
    ],
)
def test_questions_that_are_refused(tmp_path: Path, change: dict, match: str) -> None:
    write_vqa_lists(tmp_path)
    edit(tmp_path / "vqa_train.json", lambda rows: rows[0].update(change))
    with pytest.raises(DataError, match=match):
        open_items(data_of("vqa2", tmp_path), "vqa", "train")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (["yes", "no", "yes"], "1 answers occur more than once: yes"),
        ([], "an empty list"),
        ({"yes": 0}, "dict"),
        (["yes", ""], r"\[1\] is an empty str"),
    ],
)
def test_answer_lists_that_are_refused(tmp_path: Path, content: Any, match: str) -> None:
    write_json(tmp_path / "answer_list.json", content)
    with pytest.raises(DataError, match=match):
        read_answer_list(tmp_path / "answer_list.json")


# SNLI-VE


@pytest.mark.parametrize("lists", [False, True])
def test_both_formats_of_snli_ve(tmp_path: Path, lists: bool) -> None:
    write_snli_ve(tmp_path, lists)
    for role, first in (("train", 1000), ("val", 2000), ("test", 3000)):
        split = open_items(data_of("snli_ve", tmp_path), "entailment", role)
        assert [record.image_id for record in split.records] == [first, first + 1]
        assert [item.label for item in split.items] == [0, 1, 2, 0, 1, 2]
        assert all(label in text for label, text in zip(2 * LABELS, split.texts, strict=True))
        assert not any("caption" in text for text in split.texts)


def test_hypotheses_without_a_gold_label_are_left_out(tmp_path: Path) -> None:
    write_snli_ve(tmp_path)
    path = tmp_path / "snli_ve_test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["gold_label"] = "-"
    rows[1]["Flikr30kID"] = rows[1].pop("Flickr30K_ID")
    write_lines(path, rows)
    split = open_items(data_of("snli_ve", tmp_path), "entailment", "test")
    assert [item.label for item in split.items] == [1, 2, 0, 1, 2]
    assert any("1 pairs without a gold label" in note and "3000" in note for note in split.notes)


def test_a_test_split_without_labels_is_predicted(tmp_path: Path) -> None:
    write_snli_ve(tmp_path, lists=True)
    for split in ("train", "test"):
        edit(tmp_path / f"ve_{split}.json", lambda rows: [row.pop("label") for row in rows])
    split = open_items(data_of("snli_ve", tmp_path), "entailment", "test")
    assert [item.label for item in split.items] == [None] * 6
    with pytest.raises(DataError, match="ve_train.json: none of its 6"):
        open_items(data_of("snli_ve", tmp_path), "entailment", "train")


@pytest.mark.parametrize("label", ["maybe", True, 2, ["neutral"]])
def test_unknown_labels_are_refused(tmp_path: Path, label: Any) -> None:
    write_snli_ve(tmp_path, lists=True)
    edit(tmp_path / "ve_dev.json", lambda rows: rows[4].update(label=label))
    with pytest.raises(DataError, match=r"ve_dev.json: \[4\].*contradiction, neutral, entailment"):
        open_items(data_of("snli_ve", tmp_path), "entailment", "val")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    write_snli_ve(tmp_path)
    path = tmp_path / "snli_ve_dev.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match="snli_ve_dev.jsonl, line 6: not valid JSON"):
        open_items(data_of("snli_ve", tmp_path), "entailment", "val")


# NLVR2


@pytest.mark.parametrize("lists", [False, True])
def test_both_formats_of_nlvr2(tmp_path: Path, lists: bool) -> None:
    write_nlvr2(tmp_path, lists)
    for role in ("train", "val", "test"):
        split = open_items(data_of("nlvr2", tmp_path), "nlvr2", role)
        assert (split.n_images, split.n_captions) == (4, 4)
        assert [item.label for item in split.items] == [1, 0, 0, 1]
        for image, item in zip(split.text_to_image, split.items, strict=True):
            left, right = split.records[image].image, split.records[item.second].image
            assert str(left).replace("img0", "img1") == right != left
        groups = [item.group for item in split.items]
        assert groups[0] == groups[2] != groups[1] == groups[3]


def test_labels_of_nlvr2_may_be_booleans(tmp_path: Path) -> None:
    write_nlvr2(tmp_path, lists=True)
    edit(tmp_path / "nlvr_dev.json", lambda rows: rows[0].update(label=True))
    split = open_items(data_of("nlvr2", tmp_path), "nlvr2", "val")
    assert split.items[0].label == 1
    for label in ("true", 1, "yes"):
        edit(tmp_path / "nlvr_dev.json", lambda rows, label=label: rows[0].update(label=label))
        with pytest.raises(DataError, match=r"nlvr_dev.json: \[0\]: 'label'.*True or False"):
            open_items(data_of("nlvr2", tmp_path), "nlvr2", "val")


def test_a_pair_needs_both_pictures(tmp_path: Path) -> None:
    write_nlvr2(tmp_path)
    (tmp_path / "dev" / "dev-9-1-img1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images .*dev-9-1-img1.png.*data.images"):
        open_items(data_of("nlvr2", tmp_path), "nlvr2", "val")
    write_nlvr2(tmp_path, lists=True)
    edit(tmp_path / "nlvr_dev.json", lambda rows: rows[1]["images"].pop())
    with pytest.raises(DataError, match=r"nlvr_dev.json: \[1\]: 'images'.*two paths"):
        open_items(data_of("nlvr2", tmp_path), "nlvr2", "val")


# RefCOCO+


@pytest.mark.parametrize(("lists", "as_pickle"), [(True, True), (False, True), (False, False)])
def test_formats_of_refcoco(tmp_path: Path, lists: bool, as_pickle: bool) -> None:
    write_refcoco(tmp_path, lists, as_pickle)
    data = data_of("refcoco", tmp_path)
    sizes = {role: open_items(data, "grounding", role).n_captions for role in data.splits}
    assert sizes == {"train": 4, "val": 2, "test": 4}
    test = open_items(data, "grounding", "test")
    assert [item.part for item in test.items] == ["testA", "testA", "testB", "testB"]
    item = test.items[3]
    assert (item.id, item.box, item.size) == (4, (4.5, 5, 10, 12), (33, 32))
    assert item.proposals == ((5, 5, 10, 11), (20, 20, 8, 9))
    assert test.texts[3] == "thing 4" and test.records[1].image_id == 504


def test_training_needs_no_boxes(tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    for name in ("refs(unc).p", "instances.json", "dets.json"):
        (tmp_path / name).unlink()
    train = open_items(data_of("refcoco", tmp_path), "grounding", "train")
    assert train.n_captions == 4 and train.items[0].box is None
    val = open_items(data_of("refcoco", tmp_path), "grounding", "val")
    assert any("2 expressions of val are not known" in note for note in val.notes)


def test_a_pickle_that_could_run_code_is_refused(tmp_path: Path) -> None:
    write_refcoco(tmp_path)

    class Harmful:
        def __reduce__(self) -> tuple:
            return Path.write_text, (tmp_path / "ran", "x")

    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([Harmful()]))
    with pytest.raises(DataError, match=r"refs\(unc\).p: cannot be read safely.*refs\(unc\).json"):
        open_items(data_of("refcoco", tmp_path), "grounding", "val")
    assert not (tmp_path / "ran").exists()


def test_proposals_are_checked(tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    path = tmp_path / "dets.json"

    def change(boxes: dict) -> None:
        del boxes["503"]
        boxes["504"] += [[40, 5, 3, 3], [-9, 0, 5, 5]]

    edit(path, change)
    test = open_items(data_of("refcoco", tmp_path), "grounding", "test")
    assert [len(item.proposals) for item in test.items] == [0, 0, 2, 2]
    assert any("no proposal for 2 of 2 expressions of testA" in note for note in test.notes)
    assert any("2 boxes outside their picture" in note and "504" in note for note in test.notes)
    edit(path, lambda boxes: boxes.update({"504": [[1, 2, 3]]}))
    with pytest.raises(DataError, match=r"dets.json: '504'.*x, y, width, height"):
        open_items(data_of("refcoco", tmp_path), "grounding", "test")


@pytest.mark.parametrize(
    ("box", "match"),
    [
        ([60, 5, 3, 3], r"annotations\[2\].*object 902.*outside"),
        ([1, 2], "is no box"),
        (None, "box"),
    ],
)
def test_objects_outside_their_picture_are_refused(tmp_path: Path, box: Any, match: str) -> None:
    write_refcoco(tmp_path)
    path = tmp_path / "instances.json"
    edit(path, lambda content: content["annotations"][2].update(bbox=box))
    with pytest.raises(DataError, match=match):
        open_items(data_of("refcoco", tmp_path), "grounding", "val")


def test_files_of_different_data_sets_are_refused(tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    edit(tmp_path / "refcoco+_train.json", lambda rows: rows[0].update(ref_id=77))
    with pytest.raises(DataError, match=r"'ref_id' 77 is not in .*refs\(unc\).p"):
        open_items(data_of("refcoco", tmp_path), "grounding", "train")


# Options


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    write_vqa_lists(tmp_path)
    for options, match in (
        ({"noise": 0.2}, "data.noise=0.2"),
        ({"unique_captions": True}, "data.unique_captions=True"),
        ({"layout": "lists"}, "data.layout=lists"),
        ({"roots": {"vg": str(tmp_path / "no")}}, "data.roots.vg"),
    ):
        with pytest.raises(ConfigError, match=match):
            open_items(data_of("vqa2", tmp_path, **options), "vqa", "train")
    with pytest.raises(ConfigError, match="task=vqaa.*nearest: vqa"):
        open_items(data_of("vqa2", tmp_path), "vqaa", "train")
    with pytest.raises(DataError, match="task=grounding.*vqa_train.json.*data=NAME"):
        open_items(data_of("vqa2", tmp_path), "grounding", "train")
    with pytest.raises(DataError, match="no split 'extra'.*train, val, test"):
        open_items(data_of("vqa2", tmp_path, splits={"val": "extra"}), "vqa", "val")


def test_caption_ids_are_the_rows_of_the_file(tmp_path: Path) -> None:
    write_vqa_lists(tmp_path)
    edit(tmp_path / "vqa_val.json", lambda rows: rows.reverse() or rows.insert(0, rows.pop(3)))
    split = open_items(data_of("vqa2", tmp_path), "vqa", "val")
    ids = np.array([item.id for item in split.items])
    order = np.argsort([number for record in split.records for number in record.caption_ids])
    listed = [row["question_id"] for row in json.loads((tmp_path / "vqa_val.json").read_text())]
    assert ids[order].tolist() == listed
