"""The dataset that a checkpoint names, without writing anything because its header says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.scenes import make as scenes
from itr.errors import CheckpointError, DataError
from itr.instantiate import check, schema_of

SCENES = f"{scenes.prepare.__module__}.{scenes.prepare.__name__}"
WRITTEN = ("cache", "noise_file")  # options of `DataConfig` that name files to write


def data_of_checkpoint(
    path: Path, stored: Mapping[str, Any], typed: Mapping[str, Any]
) -> DataConfig:
    """The dataset ``stored`` in the header of ``path``, with the options that the user ``typed``.

    Places to write (`WRITTEN`) are the user's alone. The scenes dataset is found, not generated.
    Raises CheckpointError for any other ``prepare`` node, DataError if the scenes are not there.
    """
    node = {key: value for key, value in stored.items() if key not in WRITTEN}
    noise_file = stored.get("noise_file")
    if noise_file is not None and Path(str(noise_file)).expanduser().is_file():
        node["noise_file"] = noise_file  # it exists, so it is only read
    data: DataConfig = check({**node, **typed}, DataConfig, "data")
    if data.prepare is None:
        return data
    target = data.prepare.get("_target_") if isinstance(data.prepare, Mapping) else None
    if target != SCENES:
        raise CheckpointError(
            f"{path}: its dataset is made by {target!r}, and a file may only name {SCENES}; pass "
            f"the dataset yourself, data={data.name} data.root=DIR"
        )
    options = check(
        {**data.prepare, "parent": data.root}, schema_of(scenes.prepare), "data.prepare"
    )
    folder: Path = scenes.folder_of(**dataclasses.asdict(options))
    if not folder.is_dir():
        sizes = " ".join(f"data.prepare.{k}={getattr(options, k)}" for k in scenes.SPLITS)
        raise DataError(
            f"{folder}: no such dataset, and an evaluation does not generate it because a "
            f"checkpoint says so; pass data.root=DIR if it is elsewhere, or generate it with "
            f"data=scenes {sizes} data.prepare.seed={options.seed} data.root=DIR"
        )
    return dataclasses.replace(data, root=str(folder), prepare=None)
