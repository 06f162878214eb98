"""Makes items of the other tasks from the truth of the generated scenes.

They are written below the folder of the dataset, one folder a task, in the formats of the real data
sets. A task's items are made when the task is first used; the dataset itself stays as it is.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from itr.data.scenes.expressions import write_expressions
from itr.data.scenes.hypotheses import write_hypotheses
from itr.data.scenes.known_scenes import read_scenes
from itr.data.scenes.made_once import made_once
from itr.data.scenes.questions import write_questions
from itr.data.scenes.statements import write_statements
from itr.files import parse_json

log = logging.getLogger(__name__)

# Increase a number when the same scenes give other items of the task.
VERSIONS = {"vqa": 1, "entailment": 2, "nlvr2": 1, "grounding": 1}
TASKS = tuple(VERSIONS)
MANIFEST = "manifest.json"  # of the dataset


def scenes_seed(folder: Path) -> int | None:
    """The seed of the generated dataset in ``folder``; None if it holds something else."""
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_scenes = isinstance(manifest, dict) and manifest.get("name") == "scenes"
    return int(manifest["seed"]) if is_scenes else None


def prepare_items(folder: Path, seed: int, task: str) -> Path:
    """The folder with the items of ``task`` for the dataset in ``folder``; made if it is missing.

    It is written under a temporary name and renamed. Raises DataError if it cannot be written.
    """
    target = folder / f"{task}-{VERSIONS[task]}"
    if target.is_dir():
        return target
    log.info("%s: making the items of task=%s (once)", target, task)
    with made_once(target) as draft:
        for name, content in _files(folder, seed, task, draft, target.name).items():
            (draft / name).write_text(json.dumps(content), encoding="utf-8")
    return target


def _files(folder: Path, seed: int, task: str, draft: Path, name: str) -> dict[str, Any]:
    """File name -> content of the items of ``task``."""
    scenes = read_scenes(folder)
    draws = [VERSIONS[task], seed, TASKS.index(task)]
    if task == "entailment":
        return write_hypotheses(scenes, draws, folder, draft, name)
    writers = {"vqa": write_questions, "nlvr2": write_statements, "grounding": write_expressions}
    return writers[task](scenes, draws)
