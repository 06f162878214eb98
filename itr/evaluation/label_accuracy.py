"""Accuracy of predicted labels: overall, by class, and NLVR2's consistency. N items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

UNLABELED = -1


def label_accuracy(
    predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """``accuracy`` and ``accuracy_<name>`` for each class, in per cent.

    Args:
        predicted: indices of classes [N].
        labels: the true ones [N]; -1 for an item without a label, which does not count.
        names: of the classes. A class without items is left out.

    Without labels the result is empty.
    """
    known = labels != UNLABELED
    if not known.any():
        return {}
    correct = predicted == labels
    metrics = {"accuracy": _percent(correct[known])}
    for index, name in enumerate(names):
        members = labels == index
        if members.any():
            metrics[f"accuracy_{name}"] = _percent(correct[members])
    return metrics


def group_consistency(correct: np.ndarray, groups: Sequence[str | None]) -> float | None:
    """The share of groups, in per cent, in which every item is correct.

    ``correct`` bool [N]. Items without a group do not count; None if no item has one. Source: Suhr
    et al., "A Corpus for Reasoning about Natural Language Grounded in Photographs", ACL 2019.
    """
    whole: dict[str, bool] = defaultdict(lambda: True)
    for group, right in zip(groups, correct.tolist(), strict=True):
        if group is not None:
            whole[group] &= right
    return 100.0 * sum(whole.values()) / len(whole) if whole else None


def _percent(correct: np.ndarray) -> float:
    return 100.0 * int(np.count_nonzero(correct)) / len(correct)
