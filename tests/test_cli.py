"""The console command: its help, its errors, its exit codes, and completion in a real bash."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import itr
from itr import completion
from itr.cli import COMMANDS, main
from itr.command import BROKEN_PIPE, INTERRUPTED, USER_ERROR, command
from itr.errors import ConfigError
from itr.sweep.cli import SweepOptions
from tests.conftest import ROOT

ITR = [sys.executable, "-m", "itr"]


def run_itr(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    return subprocess.run(
        [*ITR, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["itr", itr.__version__]
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)
    assert main([]) == USER_ERROR
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "nearest"), [(["trian"], "train"), (["data", "chekc"], "check")]
)
def test_an_unknown_command_names_the_nearest(
    capsys: pytest.CaptureFixture[str], arguments: list[str], nearest: str
) -> None:
    assert main(arguments) == USER_ERROR
    message = capsys.readouterr().err
    assert arguments[-1] in message and f"nearest: {nearest}" in message


@pytest.mark.parametrize(
    "arguments",
    [
        *([name] for name in COMMANDS if name not in ("train", "eval")),  # Hydra's: see test_entry
        *(["data", name] for name in completion.SUBCOMMANDS["data"]),
        *(["official", name] for name in completion.SUBCOMMANDS["official"]),
        ["results", "compare"],
    ],
    ids=" ".join,
)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    try:
        code = main([*arguments, "--help"])
    except SystemExit as ended:  # argparse
        code = ended.code
    assert code == 0
    assert f"itr {' '.join(arguments)}" in capsys.readouterr().out


def test_python_m_itr_is_the_command() -> None:
    done = run_itr("--version")
    assert done.returncode == 0 and done.stdout.split() == ["itr", itr.__version__]
    done = run_itr("official", "inspect", "missing.pth")
    assert done.returncode == USER_ERROR and not done.stdout
    assert done.stderr.startswith("error: missing.pth") and "Traceback" not in done.stderr


# The frame


def framed(raises: BaseException | None = None, code: int | None = None) -> Callable[..., int]:
    @command
    def function(arguments: list[str]) -> int | None:
        if raises is not None:
            raise raises
        return code

    return function


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert framed()([]) == 0 and framed(code=3)([]) == 3
    assert framed(ConfigError("key=1: expected [bold]2[/bold]"))([]) == USER_ERROR
    assert capsys.readouterr().err == "error: key=1: expected [bold]2[/bold]\n"
    assert framed(KeyboardInterrupt())([]) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(ZeroDivisionError):  # an error of ours keeps its traceback
        framed(ZeroDivisionError())([])


def test_arguments_default_to_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "a", "b"])

    @command
    def count(arguments: list[str]) -> int:
        return len(arguments)

    assert count() == 2 and count(["a"]) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["data", "--help"], ["data", "check", "--help"]])
def test_a_closed_pipe_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # what `| head` does, only earlier
    try:
        done = subprocess.run(
            [*ITR, *arguments], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, b"")


# Completion


def completions(line: str, wordbreaks: str = " \t\n\"'><=;|&(:") -> list[str]:
    """COMPREPLY of a real bash for ``line``, the cursor at its end."""
    words = line.split() + ([""] if line.endswith(" ") else [])
    script = f"""
        itr() {{ {sys.executable} -m itr "$@"; }}
        eval "$(itr completion bash)"
        COMP_WORDBREAKS="$ITR_WORDBREAKS"
        COMP_LINE="$1"; COMP_POINT=${{#1}}; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _itr_completion
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ITR_WORDBREAKS": wordbreaks}
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", line, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return [word for word in done.stdout.split("\n") if word]


def test_bash_completes_commands() -> None:
    assert completions("itr ") == [f"{name} " for name in (*COMMANDS, "--help", "--version")]
    assert completions("itr ga") == ["gallery "]
    assert completions("itr data ch") == ["check "]


@pytest.mark.parametrize("wordbreaks", [" \t\n\"'><=;|&(:", " \t\n"])
def test_bash_completes_groups_and_keys(wordbreaks: str) -> None:
    models = [path.stem for path in sorted((ROOT / "conf" / "model").glob("*.yaml"))]
    prefix = "" if "=" in wordbreaks else "model="  # readline keeps what precedes the "="
    assert completions("itr train model=", wordbreaks) == [f"{prefix}{name}" for name in models]
    assert "trainer.epochs=" in completions("itr train model=vse trainer.", wordbreaks)


def test_candidates_of_each_command() -> None:
    """What bash gets, asked directly: a process each would take seconds."""
    assert completion.candidates("itr train model=vse model.image_p") == ["model.image_pool="]
    assert completion.candidates("itr eval checkp") == ["checkpoint="]
    assert completion.candidates("itr sweep ") == []  # file names
    assert completion.candidates("itr sweep file.yaml j") == ["jobs="]
    assert "trainer.epochs=" in completion.candidates("itr sweep file.yaml jobs=2 trainer.")
    assert completion.candidates("itr train experiment=alip_gates/n") == [
        "experiment=alip_gates/no_gates"
    ]
    assert completion.candidates("itr gallery run") == []


def test_a_folder_of_one_own_is_completed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "toy.yaml").write_text("# @package _global_\nmodel: {name: toy}\n")
    line = f"itr train --config-dir {tmp_path} model=to"
    assert completion.candidates(line) == ["model=toy"]


def test_sub_commands_and_options_are_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["official", "--help"])
    listed = capsys.readouterr().out.partition("{")[2].partition("}")[0].split(",")
    assert set(completion.SUBCOMMANDS["official"]) == set(listed)
    fields = {field.name for field in dataclasses.fields(SweepOptions)} - {"file", "overrides"}
    assert set(completion.SWEEP_OPTIONS) == fields


def test_completion_does_not_import_torch() -> None:
    script = (
        "import sys; from itr.completion import candidates; candidates('itr train model.'); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_the_script_of_each_shell_is_printed(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    assert "itr" in capsys.readouterr().out
    assert main(["completion", "tcsh"]) == USER_ERROR
    assert "bash, zsh, fish" in capsys.readouterr().err


def test_hydra_completes_the_script() -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "-sc", "query=bash"],
        cwd=ROOT,
        env={**os.environ, "COMP_LINE": "python train.py model=v", "COMP_POINT": "23"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["model=vse"]
