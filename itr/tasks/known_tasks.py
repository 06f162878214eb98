"""The tasks by name, and the checked options of the one that a configuration chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from itr.errors import ConfigError, nearest
from itr.instantiate import check, locate
from itr.tasks.task import Task

TASKS = {  # by name: most tasks import their models, and those take seconds to import
    "retrieval": "itr.tasks.retrieval.RetrievalTask",
    "pretrain": "itr.tasks.retrieval.RetrievalTask",
    "vqa": "itr.tasks.vqa_task.VqaTask",
    "entailment": "itr.tasks.statement_tasks.EntailmentTask",
    "nlvr2": "itr.tasks.statement_tasks.Nlvr2Task",
    "assignment": "itr.tasks.statement_tasks.AssignmentTask",
    "grounding": "itr.tasks.grounding_task.GroundingTask",
}


def build_task(node: Mapping[str, Any]) -> Task:
    """The task of a node ``task``. Raises ConfigError for an unknown one, or an unusable option."""
    name = str(node.get("name"))
    if name not in TASKS:
        raise ConfigError(
            f"task={name}: cannot be trained{nearest(name, TASKS)}; expected one of "
            f"{', '.join(TASKS)}"
        )
    cls = locate(TASKS[name], "task")
    return cls(check(node, cls.Config, "task"))
