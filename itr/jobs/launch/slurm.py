"""Jobs of a multirun through submitit: on a Slurm cluster, or on this machine by the same way.

hydra-submitit-launcher 1.2 pickles the task function with all that it refers to, takes resources
from the launcher's node alone and requeues without letting the training finish its step.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from itr.command import print_error
from itr.errors import ConfigError, RankLost, Stopped, UserError
from itr.instantiate import check
from itr.jobs.entry import PREEMPTED, USER_ERROR
from itr.training.config import check_config

ROOT = Path(__file__).resolve().parents[3]
LINGER = 30.0  # seconds that other ranks stay: a task that ends early may end the first one
POLL = 2.0


@dataclass
class SlurmConfig:
    """The keys of ``conf/hydra/launcher/slurm.yaml``."""

    cluster: str = "slurm"
    folder: str = ".cache/slurm"
    hours: float = 24.0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cpus_per_task: int = 8
    mem_gb: float | None = None
    gpus: bool = True
    signal_delay_s: int = 120
    requeues: int = 100
    wait: bool = True
    extra: list[str] = field(default_factory=list)


@dataclass
class Remote:
    """What a task of a job runs: one rank of ``job`` on the configuration ``values``.

    Told to stop by a scheduler, rank 0 has the job queued again, ``requeues`` times at most.
    """

    job: Callable[[dict[str, Any]], dict[str, Any]]
    values: dict[str, Any]
    requeues: int

    def __call__(self) -> dict[str, Any]:
        """The results, or ``{"error": sentence}`` where the user can mend something; ``follows`` is
        then true of what a rank met because another one was gone."""
        import submitit

        environment = submitit.JobEnvironment()
        if environment.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(
                set_cuda_visible_devices=False, overwrite=True
            )
        # Over submitit's own handlers, which end a job without letting it save: its warning
        # becomes the signal that training knows, and before training there is nothing to save.
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(environment._usr_sig(), lambda *_: signal.raise_signal(signal.SIGTERM))
        try:
            return self.job(self.values)
        except UserError as error:
            told = {"error": str(error), "follows": isinstance(error, RankLost)}
            if environment.num_tasks > 1:
                _leave(environment, told)
            return told
        except Stopped as stopped:
            if not stopped.preempted:
                return {"error": stopped.message, "follows": False}
            again = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
            if again >= self.requeues:
                tired = f"stopped and queued again {again} times; raise requeues"
                return {"error": tired, "follows": False}
        if environment.global_rank == 0:
            environment._requeue(self.requeues - again)
        elif environment.cluster == "slurm":
            time.sleep(LINGER)
        sys.exit(PREEMPTED)


def _leave(environment: Any, told: dict[str, Any]) -> NoReturn:
    """Store what this task returns, as submitit would, and end it: an orderly end would wait for
    ranks that may not answer, and one without an exit code would leave them waiting."""
    from submitit.core.utils import cloudpickle_dump, temporary_save_path

    with temporary_save_path(environment.paths.result_pickle) as path:
        cloudpickle_dump(("success", told), path)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(USER_ERROR)


def _stop(*_: Any) -> None:
    raise Stopped("stopped by a signal before the first update", preempted=True)


def make_executor(config: SlurmConfig, nodes: int, devices: int, gpus: bool) -> Any:
    """submitit's executor for jobs of ``nodes`` x ``devices`` tasks, with a GPU each or none.

    Raises ConfigError without submitit or without Slurm.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            "hydra/launcher=slurm: submitit is not installed; type pip install -e '.[slurm]'"
        ) from error
    if config.cluster not in ("slurm", "local"):
        raise ConfigError(f"hydra.launcher.cluster: '{config.cluster}'; expected slurm or local")
    if config.cluster == "slurm" and shutil.which("srun") is None:
        raise ConfigError(
            "hydra/launcher=slurm: no Slurm here (srun is not on the PATH); log in to the cluster, "
            "or type hydra.launcher.cluster=local"
        )
    if config.cluster == "local" and nodes > 1:
        raise ConfigError(f"nodes={nodes}: hydra.launcher.cluster=local is one machine")
    executor = submitit.AutoExecutor(folder=Path(config.folder) / "%j", cluster=config.cluster)
    wanted: dict[str, Any] = {
        "name": "itr",
        "nodes": nodes,
        "tasks_per_node": devices,
        "timeout_min": max(1, round(config.hours * 60)),
    }
    if config.cluster == "local":
        wanted["gpus_per_node"] = devices if gpus else 0
    else:
        wanted |= {
            "cpus_per_task": config.cpus_per_task,
            "slurm_signal_delay_s": config.signal_delay_s,
            "slurm_partition": config.partition,
            "slurm_account": config.account,
            "slurm_qos": config.qos,
            "slurm_constraint": config.constraint,
            "slurm_gpus_per_node": devices if gpus else None,
            "mem_gb": config.mem_gb,
            "slurm_srun_args": ["--kill-on-bad-exit=1"],  # a rank that has failed ends the others
            # Without it Slurm would not take a job back that it preempted.
            "slurm_additional_parameters": {"requeue": True, **_flags(config.extra)},
        }
    executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
    return executor


def _flags(words: Sequence[str]) -> dict[str, Any]:
    """sbatch's options as submitit has them: ``exclusive`` or ``gres=gpu:a100:8``."""
    pairs = (word.lstrip("-").partition("=") for word in words)
    return {key: value if separator else True for key, separator, value in pairs}


def job_of(config_name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What an entry point runs on its configuration."""
    if config_name == "train":
        from itr.jobs.train import train

        return train
    from itr.jobs.evaluate import evaluate

    return evaluate


def launch(
    options: Mapping[str, Any],
    context: Any,
    task: Any,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
) -> list[JobReturn]:
    """Compose every job here, submit all of them, wait, and enter their results where ``task``
    keeps them (`entry`). Raises ConfigError for what cannot be submitted."""
    settings: SlurmConfig = check(options, SlurmConfig, "hydra.launcher")
    console = Console(stderr=True)
    name = str(config.hydra.job.config_name)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # tasks import us, installed or not
    composed = []
    for overrides in job_overrides:
        found = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(found):
            del found["hydra"]
        values = OmegaConf.to_container(found, resolve=True, throw_on_missing=True)
        assert isinstance(values, dict)
        composed.append({str(key): value for key, value in values.items()})
        if name == "train":
            check_config(composed[-1])
            if composed[-1].get("overwrite"):
                raise ConfigError(
                    "overwrite=true: a job that is queued again would delete what it had trained; "
                    "delete the run directory instead"
                )
            composed[-1]["resume"] = "auto"  # the same job goes on after it was queued again
    jobs = []
    for values, overrides in zip(composed, job_overrides, strict=True):
        nodes, devices = int(values.get("nodes", 1)), int(values.get("devices", 1))
        gpus = settings.gpus and values.get("device") != "cpu"
        executor = make_executor(settings, nodes, devices, gpus)
        job = executor.submit(Remote(job_of(name), values, settings.requeues))
        label = " ".join(filter_overrides(list(overrides)))
        tasks = f"{nodes} x {devices} tasks"
        console.print(
            f"submitted {job.job_id}: {label or name}, {tasks}, log {job.paths.stdout}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        jobs.append((job, label))
    if not settings.wait:
        return [_returned(None, list(overrides)) for overrides in job_overrides]
    return _collect(jobs, task, [list(overrides) for overrides in job_overrides], console)


def _collect(
    jobs: Sequence[tuple[Any, str]], task: Any, job_overrides: list[list[str]], console: Console
) -> list[JobReturn]:
    try:
        while not all(job.done() for job, _ in jobs):
            time.sleep(POLL)
    except KeyboardInterrupt:
        if any(type(job).__name__ == "SlurmJob" for job, _ in jobs):
            ids = " ".join(job.job_id for job, _ in jobs)
            console.print(f"the jobs go on by themselves; to end them: scancel {ids}")
        raise
    returned = []
    for (job, label), overrides in zip(jobs, job_overrides, strict=True):
        results = _results(job)
        if "error" in results:
            message = f"{label}: {results['error']}"
            task.failed.append(message)
            print_error(message)
            returned.append(_returned(None, overrides))
        else:
            task.finished.append((str(results.get("run", job.job_id)), results))
            returned.append(_returned(results.get(task.metric), overrides))
    return returned


def _results(job: Any) -> dict[str, Any]:
    """What rank 0 returned; if that is no result, what went wrong where it began."""
    first = _result(job.task(0))
    if "error" not in first:
        return first
    told = [first, *(_result(job.task(number)) for number in range(1, job.num_tasks))]
    return min((one for one in told if "error" in one), key=lambda one: one["follows"])


def _result(task: Any) -> dict[str, Any]:
    try:
        return task.result()
    except Exception as error:  # whatever ended the job, the others' results are wanted
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"error": f"{lines[-1]} (log: {task.paths.stderr})", "follows": True}


def _returned(value: Any, overrides: list[str]) -> JobReturn:
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    done.return_value = None if value is None else float(value)
    return done
