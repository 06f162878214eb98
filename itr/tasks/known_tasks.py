"""The tasks by name, and the checked options of the one that a configuration chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from itr.errors import ConfigError, nearest
from itr.instantiate import check
from itr.tasks.grounding_task import GroundingTask
from itr.tasks.retrieval import RetrievalTask
from itr.tasks.statement_tasks import AssignmentTask, EntailmentTask, Nlvr2Task
from itr.tasks.task import Task
from itr.tasks.vqa_task import VqaTask

TASKS: dict[str, type[Task]] = {
    "retrieval": RetrievalTask,
    "pretrain": RetrievalTask,
    "vqa": VqaTask,
    "entailment": EntailmentTask,
    "nlvr2": Nlvr2Task,
    "assignment": AssignmentTask,
    "grounding": GroundingTask,
}


def build_task(node: Mapping[str, Any]) -> Task:
    """The task of a node ``task``. Raises ConfigError for an unknown one, or an unusable option."""
    name = str(node.get("name"))
    if name not in TASKS:
        raise ConfigError(
            f"task={name}: cannot be trained{nearest(name, TASKS)}; expected one of "
            f"{', '.join(TASKS)}"
        )
    cls = TASKS[name]
    return cls(check(node, cls.Config, "task"))
