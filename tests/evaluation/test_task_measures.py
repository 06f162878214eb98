"""Measures of VQA, entailment, NLVR2 and grounding, against naive second implementations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itr.errors import ConfigError
from itr.evaluation.grounding_boxes import (
    box_iou,
    box_of_map,
    box_scores,
    choose_box,
    points_inside,
    upsample,
    window_grid,
)
from itr.evaluation.label_accuracy import group_consistency, label_accuracy
from itr.evaluation.vqa_accuracy import (
    CONTRACTIONS,
    answer_coverage,
    make_answer_list,
    mean_by_group,
    vqa_scores,
)

WORDS = st.sampled_from(["yes", "Yes", "no", "two", "2", "the dog", "dog"])


# VQA


@settings(max_examples=50, deadline=None)
@given(WORDS, st.lists(WORDS, min_size=2, max_size=10))
def test_the_rule_of_the_annotators(answer: str, votes: list[str]) -> None:
    """Each annotator is compared with the others; the vendored copy keeps the votes' words."""
    (score,) = vqa_scores([answer], [votes], "vendored")
    given_answer = {"two": "2", "the dog": "dog", "Yes": "yes"}.get(answer, answer)
    parts = []
    for index in range(len(votes)):
        others = votes[:index] + votes[index + 1 :]
        parts.append(min(1, sum(vote == given_answer for vote in others) / 3))
    assert score == pytest.approx(100 * sum(parts) / len(parts))


def test_votes_decide_whether_the_current_evaluator_normalizes() -> None:
    answers, votes = ["Two", "Two", "n/a"], [["2"] * 10, ["2"] * 9 + ["3"], ["n/a"] * 10]
    assert vqa_scores(answers, votes).tolist() == [0, 100, 100]


def test_one_vote_counts_as_ten_and_none_as_unknown() -> None:
    scores = vqa_scores(["man", "dog", "x"], [["man"], ["cat"], []])
    assert scores[:2].tolist() == [100, 0] and np.isnan(scores[2])
    assert mean_by_group(scores, ["a", "a", "b"]) == {"a": 50}
    with pytest.raises(ConfigError, match="evaluator=old"):
        vqa_scores([], [], "old")


def test_answer_list_and_its_coverage() -> None:
    votes = [["red"] * 6 + ["maroon"] * 4, ["Red"] * 10, ["two"] * 10, ["the"] * 10, []]
    assert make_answer_list(votes) == ["red", "2"]
    assert make_answer_list(votes, most=1) == ["red"]
    assert answer_coverage(votes, ["Red", "blue"]) == 50
    assert len(CONTRACTIONS) == 114


# Labels


def test_label_accuracy_by_class_without_unlabeled_items() -> None:
    predicted, labels = np.array([0, 1, 2, 1, 0]), np.array([0, 1, 1, -1, 2])
    assert label_accuracy(predicted, labels, ["a", "b", "c", "d"]) == {
        "accuracy": 50,
        "accuracy_a": 100,
        "accuracy_b": 50,
        "accuracy_c": 0,
    }
    assert label_accuracy(predicted, np.full(5, -1), ["a", "b", "c"]) == {}


def test_a_group_is_consistent_if_all_of_it_is_right() -> None:
    correct = np.array([True, True, True, False, True])
    assert group_consistency(correct, ["x", "x", "y", "y", None]) == 50
    assert group_consistency(correct, [None] * 5) is None


# Grounding


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16))
def test_scores_of_boxes_are_sums_over_whole_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    evidence = upsample(rng.normal(size=(4, 4)), 30, 40)
    boxes = [tuple(rng.uniform(0, 30, 4)) for _ in range(8)]
    expected = [
        evidence[int(y) : int(y + h), int(x) : int(x + w)].sum(dtype=np.float64) / (w * h) ** 0.5
        for x, y, w, h in boxes
    ]
    assert box_scores(evidence, boxes) == pytest.approx(expected, abs=1e-9)


def test_boxes_outside_the_image_or_without_area_have_no_evidence() -> None:
    boxes = [(50, 50, 5, 5), (-9, -9, 4, 4), (3, 3, 0, 4), (3.2, 3.2, 0.5, 0.5)]
    scores = box_scores(np.ones((10, 10), np.float32), boxes)
    assert scores.tolist() == [0, 0, 0, 0]
    assert choose_box(scores, boxes, "largest") == ((50, 50, 5, 5), True)
    assert choose_box(scores, boxes, "previous", (1, 2, 3, 4)) == ((1, 2, 3, 4), True)
    assert choose_box(scores, boxes, "previous") == ((50, 50, 5, 5), True)
    assert choose_box(np.array([1.0, 2, 2, 0]), boxes, "largest") == (boxes[1], False)


def test_iou_counts_the_last_pixel() -> None:
    assert box_iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert box_iou((0, 0, 10, 10), (5, 0, 10, 10)) == 50 / 150
    assert box_iou((0, 0, 10, 10), (9, 0, 10, 10)) == 0  # one column: not strictly inside
    assert box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_the_box_of_a_map_is_its_largest_region() -> None:
    evidence = np.zeros((20, 30), np.float32)
    evidence[2:4, 3:5] = 1.0
    evidence[10:15, 8:20] = 0.6
    evidence[16:20, :] = 0.4
    assert box_of_map(evidence) == ((8, 10, 12, 5), False)
    assert box_of_map(evidence, 0.9) == ((3, 2, 2, 2), False)
    assert box_of_map(-evidence) == ((0, 0, 30, 20), True)
    assert points_inside(evidence, (3, 2, 1, 1)) and not points_inside(evidence, (4, 2, 9, 9))


def test_the_grid_of_windows_finds_a_region_of_any_size() -> None:
    windows = window_grid(60, 90)
    assert all(x >= 0 and y >= 0 and x + w <= 90.01 and y + h <= 60.01 for x, y, w, h in windows)
    assert (0, 0, 90, 60) in windows
    for box in [(10, 10, 20, 15), (40, 5, 45, 50), (0, 30, 90, 20)]:
        evidence = np.full((60, 90), -0.5, np.float32)
        x, y, w, h = box
        evidence[y : y + h, x : x + w] = 1.0
        chosen, _ = choose_box(box_scores(evidence, windows), windows, "largest")
        assert box_iou(chosen, box) >= 0.5
