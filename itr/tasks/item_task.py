"""What the tasks with items have in common: how splits are opened, and the line of a validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from itr.data.config import DataConfig
from itr.data.downstream.fields import item_fields
from itr.data.downstream.open import open_items
from itr.data.loading.loader import ItemFields
from itr.data.records import Split
from itr.data.text.tokenizer import Tokenizer
from itr.tasks.columns import ACCURACY, TASKS
from itr.tasks.task import Task
from itr.view import View


class ItemTask(Task):
    """A task whose texts have an item each. The best checkpoint has the highest accuracy."""

    selects = ACCURACY

    def open_split(self, data: DataConfig, split: str, view: View, second: bool = False) -> Split:
        """The items of ``split`` with their pictures."""
        return open_items(data, self.name, split)

    def batch_fields(self, split: Split, view: View, tokenizer: Tokenizer) -> ItemFields | None:
        """Answers or labels."""
        return item_fields(split, tokenizer)

    def line(self, results: Mapping[str, Any]) -> str:
        """The accuracies of the columns of this task."""
        if ACCURACY not in results:
            return f"{results['n_items']} items predicted; their answers are not published"
        shown = [
            f"{heading} {results[metric]:.2f}"
            for metric, heading in TASKS[self.name].columns
            if metric in results
        ]
        return f"{', '.join(shown)} (%)"
