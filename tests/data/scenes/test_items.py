"""Items that are made from scenes: true, fair, the same every time, read as real data sets are."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from itr.data.config import DataConfig
from itr.data.downstream.open import find_answer_list, open_items
from itr.data.downstream.vqa import read_answer_list
from itr.data.scenes.expressions import OVERLAP, PROPOSALS
from itr.data.scenes.make import prepare
from itr.data.scenes.make_items import TASKS, VERSIONS, prepare_items
from itr.evaluation.grounding_boxes import box_iou
from itr.evaluation.vqa_accuracy import answer_coverage, vqa_scores
from tests.data.scenes.test_make import files_of

COLOR = "red green blue yellow orange purple pink brown black cyan".split()
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
SHAPE = "circle square triangle star cross diamond".split()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("tiny"), train=40, val=12, test=12, seed=3)


def rows_of(scenes: Path, task: str, name: str) -> list[dict[str, Any]]:
    return json.loads((prepare_items(scenes, 0, task) / name).read_text())


def things_of(scenes: Path) -> dict[str, list[dict[str, Any]]]:
    """File of a picture -> its things."""
    images = json.loads((scenes / "dataset_scenes.json").read_text())["images"]
    return {f"{image['filepath']}/{image['filename']}": image["things"] for image in images}


# Fair


def gain_of_words(rows: list[dict[str, Any]], text: str, answer: Callable[[dict], Any]) -> float:
    """By how many points the best guess that knows the words beats one in (answers)."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        counts[row[text]][answer(row)] += 1
    best = sum(max(counter.values()) for counter in counts.values()) / len(rows)
    return 100 * (best - 1 / len({answer for counter in counts.values() for answer in counter}))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_words_alone_do_not_answer_a_question(default: Path, split: str) -> None:
    rows = rows_of(default, "vqa", f"vqa_{split}.json")
    kinds = {row["question_type"] for row in rows}
    assert len(kinds) == 8
    for kind in kinds:
        members = [row for row in rows if row["question_type"] == kind]
        assert len(members) >= 50
        assert gain_of_words(members, "question", lambda row: row["answer"][0]) <= 5, kind


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_words_alone_do_not_label_a_hypothesis_or_a_statement(default: Path, split: str) -> None:
    rows = rows_of(default, "entailment", f"ve_{split}.json")
    for kind in ("existence", "absence", "place", "relation"):
        members = [row for row in rows if row["kind"] == kind]
        assert len(members) >= 100
        assert gain_of_words(members, "sentence", lambda row: row["label"]) <= 5, kind
    rows = rows_of(default, "nlvr2", f"nlvr_{split}.json")
    assert len(rows) >= 500
    assert gain_of_words(rows, "sentence", lambda row: row["label"]) <= 5


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_picture_alone_does_not_label_a_hypothesis(default: Path, split: str) -> None:
    """Not even to who counts what the panel leaves: with few things, more is undecided."""
    things = things_of(default)
    rows = rows_of(default, "entailment", f"ve_{split}.json")
    labels: dict[int, Counter] = defaultdict(Counter)
    for row in rows:
        visible, _ = visible_of(things, row)
        labels[len(visible)][row["label"]] += 1
    most_frequent = max(Counter(row["label"] for row in rows).values())
    best = sum(max(counter.values()) for counter in labels.values())
    assert 100 * (best - most_frequent) / len(rows) <= 5


def visible_of(things: dict[str, list[dict]], row: dict[str, Any]) -> tuple[list[dict], int]:
    """What the panel on the picture of a hypothesis leaves, and the quarter that it covers."""
    assert row["image"].startswith(f"entailment-{VERSIONS['entailment']}/covered/")
    stem, _, number = Path(row["image"]).name.partition("-")
    scene = things[f"images/{stem}.jpg"]
    return [thing for thing in scene if thing["place"] != QUARTERS[int(number)]], int(number)


def test_proposals_of_every_picture_are_equally_many_and_one_is_right(default: Path) -> None:
    detections = rows_of(default, "grounding", "dets.json")
    content = rows_of(default, "grounding", "instances.json")
    objects: dict[int, list] = defaultdict(list)
    for entry in content["annotations"]:
        objects[entry["image_id"]].append(entry["bbox"])
    for image, boxes in list(objects.items())[::20]:
        proposals = detections[str(image)]
        assert len(proposals) == PROPOSALS
        for box in boxes:
            ious = sorted(box_iou(box, proposal) for proposal in proposals)
            assert ious[-1] > 0.6 and ious[-2] < OVERLAP + 0.1


# True


def test_answers_are_those_of_the_scene(default: Path) -> None:
    things = things_of(default)
    for row in rows_of(default, "vqa", "vqa_test.json"):
        scene, answer = things[row["image"]], row["answer"][0]
        words = row["question"].rstrip("?").split()
        named = [t for t in scene if t["shape"] in words or t["colour"] in words]
        match row["question_type"]:
            case "color":
                assert [t["colour"] for t in named] == [answer]
            case "shape":
                assert [t["shape"] for t in named] == [answer]
            case "fill":
                assert [t["fill"] for t in named] == [answer]
            case "place":
                assert [t["place"] for t in named] == [answer]
            case "existence":
                there = any(t["shape"] in words and t["colour"] in words for t in scene)
                assert answer == ("yes" if there else "no")
            case "count":
                assert answer == str(sum(words[2] in (t["fill"], t["size"]) for t in scene))
            case "relation":
                first, second = (
                    next(t for t in scene if t["shape"] == w) for w in (words[2], words[-1])
                )
                assert answer == ("yes" if _related(first, second, words) else "no")
            case "beside":
                others = [t["shape"] for t in scene if _related(t, named[0], words)]
                assert others == [answer]


def _related(first: dict, second: dict, words: list[str]) -> bool:
    """Whether ``first`` is left of ... ``second``, as ``words`` say; by quarters."""
    axis, sign = {"left": (1, -1), "right": (1, 1), "above": (0, -1), "below": (0, 1)}[
        next(word for word in words if word in ("left", "right", "above", "below"))
    ]
    order = ("top", "bottom") if axis == 0 else ("left", "right")
    a, b = (order.index(thing["place"].split()[axis]) for thing in (first, second))
    return (a - b) * sign > 0


def test_what_a_panel_covers_is_neutral(default: Path) -> None:
    things = things_of(default)
    for row in rows_of(default, "entailment", "ve_test.json"):
        words = row["sentence"].split()
        visible, panel = visible_of(things, row)
        expected = None
        match row["kind"]:
            case "place":
                there = [t for t in visible if t["place"] == " ".join(words[4:6])]
                if there:
                    expected = words[-1] in (there[0]["colour"], there[0]["shape"])
                else:
                    assert QUARTERS[panel] == " ".join(words[4:6])
            case "existence":
                if any({t["colour"], t["shape"]} <= set(words) for t in visible):
                    expected = True
            case "absence":
                if any({t["colour"], t["shape"]} <= set(words) for t in visible):
                    expected = False
            case "relation":
                named = [[t for t in visible if t["shape"] == w] for w in (words[1], words[-1])]
                if all(named):
                    expected = _related(named[0][0], named[1][0], words)
        assert (
            row["label"] == {None: "neutral", True: "entailment", False: "contradiction"}[expected]
        )


def test_a_panel_is_grey_and_covers_one_quarter(tiny: Path) -> None:
    folder = prepare_items(tiny, 3, "entailment") / "covered"
    path = min(folder.iterdir())
    number = int(path.stem.partition("-")[2])
    covered, plain = (
        np.asarray(Image.open(io.BytesIO(file.read_bytes())), dtype=float)
        for file in (path, tiny / "images" / f"{path.stem.partition('-')[0]}.jpg")
    )
    half = len(covered) // 2
    for quarter in range(4):
        rows = slice(half * (quarter // 2), half * (quarter // 2) + half)
        columns = slice(half * (quarter % 2), half * (quarter % 2) + half)
        inner = (covered[rows, columns][8:-8, 8:-8], plain[rows, columns][8:-8, 8:-8])
        if quarter == number:
            assert np.abs(inner[0] - 128).max() < 8
        else:
            assert np.abs(inner[0] - inner[1]).mean() < 4


def test_statements_are_about_two_true_and_two_false_pairs(default: Path) -> None:
    things = things_of(default)
    groups: dict[str, list] = defaultdict(list)
    for row in rows_of(default, "nlvr2", "nlvr_test.json"):
        left, right = (things[image] for image in row["images"])
        groups[row["identifier"].split("-")[1]].append(row)
        words = row["sentence"].split()
        if words[0] == "each" or words[:2] == ["only", "one"]:
            has = [any({t["colour"], t["shape"]} & set(words) for t in s) for s in (left, right)]
            truth = all(has) if words[0] == "each" else has[0] != has[1]
        elif words[3] == "more" or words[4] == "more":
            counts = [sum(_counted(t, words) for t in scene) for scene in (left, right)]
            truth = (counts[0] > counts[1]) == (words[1] == "left") and counts[0] != counts[1]
        else:
            continue
        assert row["label"] == str(truth), row
    for rows in groups.values():
        assert Counter(row["label"] for row in rows) == {"True": 2, "False": 2}
        assert len({row["sentence"] for row in rows}) == 1


def _counted(thing: dict, words: list[str]) -> bool:
    adjectives = {"solid", "hollow", "small", "medium", "large"} & set(words)
    return not adjectives or bool(adjectives & {thing["fill"], thing["size"]})


def test_boxes_enclose_the_drawn_things(default: Path) -> None:
    """Pixels that differ from the background are inside the boxes, which touch them."""
    content = rows_of(default, "grounding", "instances.json")
    boxes: dict[int, list] = defaultdict(list)
    for entry in content["annotations"]:
        boxes[entry["image_id"]].append(entry["bbox"])
    for number in range(0, 200, 10):
        pixels = np.asarray(Image.open(default / "images" / f"{number:06d}.jpg"), dtype=float)
        drawn = np.abs(pixels - pixels[0, 0]).max(axis=2) > 60
        for x, y, w, h in boxes[number]:
            rows, columns = np.nonzero(drawn[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1])
            found = (columns.min() + int(x), rows.min() + int(y), np.ptp(columns), np.ptp(rows))
            assert found == pytest.approx((x, y, w, h), abs=3)
            drawn[max(0, int(y) - 2) : int(y + h) + 3, max(0, int(x) - 2) : int(x + w) + 3] = False
        assert not drawn.any()


# Read as real data sets


@pytest.mark.parametrize("task", TASKS)
def test_items_are_read_by_the_readers_of_the_real_data_sets(tiny: Path, task: str) -> None:
    data = DataConfig("scenes", str(tiny))
    before = files_of(tiny)
    splits = {role: open_items(data, task, role) for role in ("train", "val", "test")}
    for split in splits.values():
        assert split.n_captions >= 20 and len(split.items) == split.n_captions
        assert all(Path(str(record.image)).is_file() for record in split.records)
    files = [{Path(str(r.image)).stem[:6] for r in split.records} for split in splits.values()]
    assert not files[0] & files[1] and not files[0] & files[2] and not files[1] & files[2]
    after = files_of(tiny)
    assert {name: after[name] for name in before} == before
    if task == "grounding":
        assert splits["test"].name == "testA+testB"
        assert all(item.box and len(item.proposals) == PROPOSALS for item in splits["test"].items)
    if task == "vqa":
        listed = read_answer_list(find_answer_list(data))
        votes = [item.votes for item in splits["train"].items]
        assert answer_coverage(votes, listed) == 100
        assert (vqa_scores([vote[0] for vote in votes], votes) == 100).all()


def test_the_same_seed_gives_the_same_items(tiny: Path, tmp_path: Path) -> None:
    again = prepare(tmp_path, train=40, val=12, test=12, seed=3)
    for task in TASKS:
        assert files_of(prepare_items(again, 3, task)) == files_of(prepare_items(tiny, 3, task))
    assert {path.name for path in again.iterdir() if path.is_dir() and "-" in path.name} == {
        f"{task}-{VERSIONS[task]}" for task in TASKS
    }


def test_visual_genome_joins_the_training_questions(tiny: Path) -> None:
    data = DataConfig("scenes", str(tiny), splits={"train": "train+vg"})
    split = open_items(data, "vqa", "train")
    alone = open_items(DataConfig("scenes", str(tiny)), "vqa", "train")
    more = split.n_captions - alone.n_captions
    assert more > 0 and Counter(item.source for item in split.items)["vg"] == more
