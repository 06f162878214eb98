"""Jobs through submitit: a real one on this machine, and the script that Slurm would be given."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from itr.errors import ConfigError
from itr.instantiate import check
from itr.jobs.launch.slurm import SlurmConfig, _results, make_executor
from tests import processes
from tests.conftest import ROOT, TINY

# What the cluster's own programs do, as far as a submission goes: the script is kept.
SBATCH = '#!/bin/sh\ncp "$1" "$KEPT/$(ls "$KEPT" | wc -l).sh"\necho "Submitted batch job 4242"\n'


def launch(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python train.py -m hydra/launcher=slurm ...`` as a user types it."""
    words = ("-m", "hydra/launcher=slurm", *arguments)
    return processes.run(str(ROOT / "train.py"), *words, cwd=cwd, **environment)


def test_slurm_gets_a_script_that_says_what_was_asked_for(world: Path, tmp_path: Path) -> None:
    programs, kept = tmp_path / "bin", tmp_path / "kept"
    programs.mkdir()
    kept.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", "#!/bin/sh\n"), ("sacct", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    done = launch(
        "hydra.launcher.partition=long",
        "hydra.launcher.hours=12",
        "hydra.launcher.wait=false",
        "hydra.launcher.extra=[exclusive]",
        "nodes=4,1",
        "devices=2",
        *(word for word in TINY if word != "device=cpu" and not word.startswith("batch_size")),
        "batch_size=32",
        f"data.root={world / 'data'}",
        cwd=tmp_path,
        PATH=f"{programs}:{os.environ['PATH']}",
        KEPT=str(kept),
    )
    assert done.returncode == 0, done.stderr
    assert "submitted 4242: nodes=4" in done.stderr and "4 x 2 tasks" in done.stderr
    first, second = (path.read_text() for path in sorted(kept.iterdir()))
    for flag in (
        "nodes=4",
        "ntasks-per-node=2",
        "gpus-per-node=2",
        "cpus-per-task=8",
        "partition=long",
        "time=720",
        "requeue",
        "exclusive",
        "open-mode=append",
        "signal=USR2@120",
        "job-name=itr",
    ):
        assert f"#SBATCH --{flag}\n" in first, f"{flag} is not in\n{first}"
    assert "#SBATCH --nodes=1\n" in second
    (command,) = [line for line in first.splitlines() if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1" in command
    assert "-m submitit.core._submit" in command and str(tmp_path / ".cache" / "slurm") in command


def test_a_refusal_says_which_jobs_stay_submitted(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    once = (
        '#!/bin/sh\nif [ -e "$0.used" ]; then echo "sbatch: error: QOSMaxSubmit" >&2; exit 1; fi\n'
    )
    texts = {"sbatch": once + 'touch "$0.used"; echo "Submitted batch job 4242"\n'}
    for name, text in {"srun": "#!/bin/sh\n", "sacct": "#!/bin/sh\n", **texts}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    done = launch("seed=0,1", "device=cpu", cwd=tmp_path, PATH=path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "submitted 4242: seed=0" in done.stderr
    told = " ".join(done.stderr.partition("error: seed=1 ")[2].split())
    assert "QOSMaxSubmit" in told and "scancel 4242" in told


@pytest.mark.parametrize(
    ("options", "nodes", "told"),
    [
        ({"partion": "x"}, 1, "hydra.launcher.partion: unknown key; nearest: partition"),
        ({"cluster": "pbs"}, 1, "hydra.launcher.cluster=pbs: .*slurm, local"),
        ({}, 1, "hydra.launcher.cluster=local"),
        ({"cluster": "local"}, 2, "nodes=2: hydra.launcher.cluster=local"),
    ],
)
def test_what_cannot_be_submitted_is_told(
    options: dict[str, Any], nodes: int, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun there
    with pytest.raises(ConfigError, match=told):
        make_executor(check(options, SlurmConfig, "hydra.launcher"), nodes, 1, gpus=False)


def test_the_sentence_of_the_rank_that_failed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Submitit gives a slow file system 15 s to show the result of a task.
    minutes = SimpleNamespace(time=itertools.count(0, 60).__next__, sleep=lambda _: None)
    monkeypatch.setattr("submitit.core.core._time", minutes)
    from submitit.core.utils import cloudpickle_dump
    from submitit.local.local import LocalJob

    job: LocalJob[dict[str, Any]] = LocalJob(tmp_path, "7", tasks=[0, 1])
    lost = {"error": "the other ranks do not answer", "secondary": True}
    for told, expected in (
        ([lost, {"error": "a.jpg: cannot be read", "secondary": False}], "a.jpg: cannot be read"),
        ([lost, None], "the other ranks do not answer"),  # a task that was killed
        ([{"run": "x"}, lost], None),
    ):
        for number, outcome in enumerate(told):
            path = job.task(number).paths.result_pickle
            path.unlink(missing_ok=True)
            if outcome is not None:
                cloudpickle_dump(("success", outcome), path)
        assert _results(job).get("error") == expected


@pytest.mark.soak
def test_a_job_of_two_processes_runs_through_submitit(world: Path, tmp_path: Path) -> None:
    done = launch(
        *TINY,
        "hydra.launcher.cluster=local",
        "devices=2",
        "trainer.epochs=1",
        f"data.root={world / 'data'}",
        f"data.cache={world / 'cache'}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    results = json.loads((run / "results.json").read_text())
    assert results["test/n_images"] == 20 and 0 < results["test/rsum"] <= 600
    logs = sorted((tmp_path / ".cache" / "slurm").glob("*/*_log.out"))
    assert len(logs) == 2  # one a process
    assert "2 tasks" in done.stderr
