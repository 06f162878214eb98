"""What an evaluator of a split offers, whatever the task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from itr.data.records import Split
from itr.evaluation.encode import Progress
from itr.evaluation.predictions import Predictions
from itr.evaluation.query_log import QueryLog


class SplitEvaluator(ABC):
    """Evaluates models on one split.

    After a `run` that keeps them, ``query_log`` holds the ranks of every query (retrieval), or
    ``predictions`` what was predicted for every item (other tasks).
    """

    data: Split
    query_log: QueryLog | None = None
    predictions: Predictions | None = None

    @abstractmethod
    def run(
        self, model: Any, progress: Progress | None = None, *, with_query_log: bool = False
    ) -> dict[str, Any]:
        """Evaluate ``model``; returns flat metrics and facts about how they were computed."""
