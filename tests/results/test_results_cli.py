"""The subcommands of itr results, their help, and the width of their tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from itr.results.__main__ import main
from tests.results.synthetic_runs import run


def test_table_is_the_default_command(tmp_path: Path, capsys: pytest.CaptureFixture):
    run(tmp_path / "a")
    assert main(["table", str(tmp_path)]) == 0
    explicit = capsys.readouterr().out
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == explicit


@pytest.mark.parametrize("command", [[], ["table"], ["compare"]])
def test_help_explains_every_option(command: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    options = {
        (): ("table", "compare"),
        ("table",): ("RUNS", "--wandb", "--project", "--split", "--format", "--out", "--all"),
        ("compare",): ("A", "B", "--split", "--protocol"),
    }[tuple(command)]
    lines = shown.splitlines()
    for option in options:
        at = next(i for i, line in enumerate(lines) if line.split()[:1] == [option])
        words = " ".join(lines[at : at + 2]).split()[1:]
        assert len(words) > 2, option


def test_missing_arguments_are_an_error(capsys: pytest.CaptureFixture):
    for command in (["table"], ["compare", "one"], []):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2
    assert "--wandb GROUP" in capsys.readouterr().err


def test_markdown_rows_are_never_wrapped(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    run(tmp_path / "a")
    run(tmp_path / "b", noise=0.5, seedless_hash="bb", updates=3480)
    assert main([str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) > 110
    assert all(line.endswith("|") and line.count("|") == 14 for line in lines)
    (marked,) = [line for line in lines if "◆" in line]
    assert "3,480 updates" in marked  # less noise: the better run
