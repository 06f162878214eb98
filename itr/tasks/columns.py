"""The metric columns of a results table, which depend on the protocol or the task."""

from __future__ import annotations

from dataclasses import dataclass

from itr.evaluation.predictions import ACCURACY
from itr.evaluation.protocols import PROTOCOLS


@dataclass(frozen=True)
class ColumnSet:
    """The metrics of a table with their headings, and the metric by which rows are compared."""

    columns: tuple[tuple[str, str], ...]
    main: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, as in the results."""
        return tuple(metric for metric, _ in self.columns)

    def heading(self, metric: str) -> str:
        """The heading of ``metric``."""
        return dict(self.columns)[metric]

    @property
    def headings(self) -> tuple[str, ...]:
        """Column headings."""
        return tuple(heading for _, heading in self.columns)


RETRIEVAL = ColumnSet(
    (
        *((f"i2t_r{k}", f"{'i2t ' if k == 1 else ''}R@{k}") for k in (1, 5, 10)),
        *((f"t2i_r{k}", f"{'t2i ' if k == 1 else ''}R@{k}") for k in (1, 5, 10)),
        ("rsum", "rSum"),
    ),
    main="rsum",
)
CXC = ColumnSet(
    (*RETRIEVAL.columns, ("i2i_r1", "i2i R@1"), ("t2t_r1", "t2t R@1")),
    main="rsum",
)
ECCV = ColumnSet(
    tuple(
        (f"{direction}_{metric}", f"{direction} {heading}")
        for direction in ("i2t", "t2i")
        for metric, heading in (("map_at_r", "mAP@R"), ("rprecision", "R-P"), ("r1", "R@1"))
    ),
    main="i2t_map_at_r",
)
ZEROSHOT = ColumnSet(
    (("top1", "top-1"), ("mean_per_class", "mean per class"), ("reported", "as papers report")),
    main="top1",
)


def _accuracies(*others: tuple[str, str]) -> ColumnSet:
    return ColumnSet(((ACCURACY, ACCURACY), *others), main=ACCURACY)


ACCURACIES = _accuracies()  # of a task that is not among TASKS

# Of tasks with items, whose name takes the place of a protocol.
TASKS = {
    "zeroshot": ZEROSHOT,
    "vqa": _accuracies(
        ("accuracy_yes_no", "yes/no"), ("accuracy_number", "number"), ("accuracy_other", "other")
    ),
    "entailment": _accuracies(
        ("accuracy_entailment", "entailment"),
        ("accuracy_neutral", "neutral"),
        ("accuracy_contradiction", "contradiction"),
    ),
    "nlvr2": _accuracies(("consistency", "consistency")),
    "assignment": ACCURACIES,
    "grounding": _accuracies(
        ("testA/accuracy", "testA"), ("testB/accuracy", "testB"), ("pointing", "pointing game")
    ),
}


def columns_of(protocol: str) -> ColumnSet:
    """The columns of a table of ``protocol``, or of the task of that name."""
    if protocol in TASKS:
        return TASKS[protocol]
    truth = PROTOCOLS[protocol].ground_truth if protocol in PROTOCOLS else None
    return {"cxc": CXC, "eccv": ECCV}.get(truth or "", RETRIEVAL)
