"""``pytest tests/parity --golden DIR``: prove the numbers of the cases in DIR/<method>/."""

from __future__ import annotations

from pathlib import Path

import pytest

DEFAULT = Path(__file__).resolve().parents[1] / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        action="append",
        metavar="DIR",
        help=f"folder of golden cases, DIR/<method>/<case>.json (repeatable; default {DEFAULT})",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from tests.parity.harness import cases_in

    # If pytest loads this file after parsing the command line, only the default is available.
    given = metafunc.config.getoption("golden", None)
    folders = [Path(name) for name in given] if given else [DEFAULT]
    if "golden_folder" in metafunc.fixturenames:
        metafunc.parametrize("golden_folder", folders, ids=str)
    if "golden_case" in metafunc.fixturenames:
        found = [(folder, path) for folder in folders for path in cases_in(folder)]
        metafunc.parametrize(
            "golden_case",
            [path for _, path in found],
            ids=[f"{folder.name}/{path.parent.name}/{path.stem}" for folder, path in found],
        )
