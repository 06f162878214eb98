"""What the items of a task add to a batch: labels, or answers with their weights.

B captions, A answers of all of them together, L token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from itr.data.items import Item, Question, Statement
from itr.data.records import Split
from itr.data.text.answers import tokenize_answers
from itr.data.text.token_table import CaptionPadder
from itr.data.text.tokenizer import Tokenizer
from itr.view import TextView

SINGLE_ANSWER_WEIGHTS = {"vg": 0.5}  # source -> weight of each answer, instead of its share
UNLABELED = -1


def weighted_answers(question: Question) -> dict[str, float]:
    """The distinct answers in the order in which they first occur, each with its weight.

    The weight is the share of the annotators who gave the answer. Visual Genome's questions have
    one answer, of weight 0.5. Source: the authors' code of ALBEF.
    """
    weights: dict[str, float] = {}
    if (weight := SINGLE_ANSWER_WEIGHTS.get(question.source)) is not None:
        return dict.fromkeys(question.votes, weight)
    for vote in question.votes:
        weights[vote] = weights.get(vote, 0.0) + 1 / len(question.votes)
    return weights


class AnswerFields:
    """The answers to the questions of a split. Each distinct answer is tokenized once."""

    def __init__(self, items: Sequence[Item], tokenizer: Tokenizer):
        numbers: dict[str, int] = {}
        answers: list[int] = []
        weights: list[float] = []
        counts: list[int] = []
        for item in items:
            assert isinstance(item, Question)
            weighted = weighted_answers(item)
            answers += [numbers.setdefault(answer, len(numbers)) for answer in weighted]
            weights += weighted.values()
            counts.append(len(weighted))
        self.answers = np.array(answers, dtype=np.int64)  # rows of the table
        self.weights = np.array(weights, dtype=np.float32)
        self.counts = np.array(counts, dtype=np.int64)  # of each caption
        self.first = np.cumsum(self.counts) - self.counts
        self.table = tokenize_answers(tokenizer, list(numbers))
        self.padder = CaptionPadder(self.table, TextView())

    def fields(self, captions: np.ndarray) -> dict[str, Any]:
        """``answer_tokens answer_mask answer_weights answer_counts`` of ``captions`` [B]."""
        counts = self.counts[captions]
        before = np.cumsum(counts) - counts
        chosen = np.repeat(self.first[captions] - before, counts) + np.arange(counts.sum())
        positions, lengths = self.table.positions(self.answers[chosen])
        padded = self.padder.fields(self.table.flat[positions], lengths)
        return {
            "answer_tokens": padded["tokens"],
            "answer_mask": padded["token_mask"],
            "answer_weights": torch.from_numpy(self.weights[chosen]),
            "answer_counts": tuple(counts.tolist()),
        }


class LabelFields:
    """The labels of the statements of a split; -1 for a statement without one."""

    def __init__(self, items: Sequence[Item]):
        self.labels = np.array([_label(item) for item in items], dtype=np.int64)

    def fields(self, captions: np.ndarray) -> dict[str, Any]:
        """``labels`` of ``captions`` [B]."""
        return {"labels": torch.from_numpy(self.labels[captions])}


def item_fields(split: Split, tokenizer: Tokenizer) -> AnswerFields | LabelFields | None:
    """What the items of ``split`` add to its training batches; None: nothing."""
    items = split.items
    if not items:
        return None
    if isinstance(items[0], Question):
        return AnswerFields(items, tokenizer)
    return LabelFields(items) if isinstance(items[0], Statement) else None


def _label(item: Item) -> int:
    assert isinstance(item, Statement)
    return UNLABELED if item.label is None else item.label
