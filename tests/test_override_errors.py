"""Mistakes in arguments: the near option is named, that of a user's own folder, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from itr.compose import compose
from itr.override_errors import explain


def test_the_near_option_of_a_folder_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 3\n")
    with pytest.raises(Exception, match="experiment/mien") as refusal:
        compose("train", ["experiment=mien"], [tmp_path])
    told = explain(refusal.value, "train", ["experiment=mien"])
    assert told.startswith("experiment=mien: unknown option; nearest: mine (options: mine, ")
