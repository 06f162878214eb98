"""Names the run that a new one is easily mistaken for: ``resume=auto`` with a changed option."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itr.files import parse_yaml
from itr.jobs.run_dir import differences, read_stored
from itr.results.run_folder import CONFIG
from itr.training.checkpointing import BEST, LAST

FEW, MOST_COMPARED = 3, 30  # options in which a similar run differs; runs that are compared


def similar_run(path: Path, values: Mapping[str, Any]) -> str | None:
    """A log line about the run beside the new ``path`` that differs in the fewest options.

    None if ``out`` names the folder, or if there is no run that differs in at most `FEW`.
    """
    prefix = path.name.rpartition("-")[0]
    beside = path.parent.glob(f"{prefix}-*/{CONFIG}") if prefix and not values.get("out") else ()
    found: list[tuple[list[str], Path]] = []
    for config in sorted(beside, key=_age)[:MOST_COMPARED]:
        stored, _ = read_stored(config, parse_yaml)
        differing = differences(stored, values) if stored else []
        if 0 < len(differing) <= FEW:
            found.append((differing, config.parent))
    if not found:
        return None
    differing, other = min(found, key=lambda one: len(one[0]))
    last = other / "checkpoints" / LAST
    weights = last if last.is_file() else other / "checkpoints" / BEST
    return (
        f"resume=auto: there is no run of this configuration, so a new one begins in {path}. The "
        f"closest is {other} ({'; '.join(differing)}). A run is not resumed with other options, "
        f"but another one can start from its weights: model.init={weights}"
    )


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:  # it was deleted a moment ago
        return 0.0
