"""Runs the jobs of a multirun through submitit, on a Slurm cluster or on this machine.

Why not hydra-submitit-launcher 1.2: it pickles the task function with everything it refers to,
takes resources from the launcher's configuration only, and requeues a job without letting the
training finish its step.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict

from itr.command import USER_ERROR
from itr.errors import ConfigError, RankLost, Stopped, UserError
from itr.instantiate import check
from itr.jobs.entry import PREEMPTED, EntryPoint, selected_metric
from itr.options import configured, option
from itr.terminal import PlainConsole
from itr.training.config import check_config
from itr.training.signals import BEFORE_TRAINING

ROOT = Path(__file__).resolve().parents[3]
LINGER = 30.0  # seconds that ranks other than 0 wait: a task that ends early may end rank 0
POLL_SECONDS = 2.0


@dataclass
@configured("hydra/launcher/slurm.yaml", "hydra.launcher")
class SlurmConfig:
    """The keys of ``conf/hydra/launcher/slurm.yaml``."""

    cluster: str = option(choices=("slurm", "local"))
    folder: str = option()
    hours: float = option(above=0)
    partition: str | None = option()
    account: str | None = option()
    qos: str | None = option()
    constraint: str | None = option()
    cpus_per_task: int = option(at_least=1)
    mem_gb: float | None = option()
    gpus: bool = option()
    signal_delay_s: int = option()
    requeues: int = option(at_least=0)
    wait: bool = option()
    extra: list[str] = option()


@dataclass
class RemoteJob:
    """What one task of a Slurm job runs: one rank of ``job`` on the configuration ``values``.

    If the scheduler stops the job, rank 0 requeues it, at most ``requeues`` times.
    """

    job: Callable[[dict[str, Any]], dict[str, Any]]
    values: dict[str, Any]
    requeues: int

    def __call__(self) -> dict[str, Any]:
        """The results, or ``{"error": message, "secondary": bool}`` for an error of the user.

        An error is secondary if it only says that another rank does not respond.
        """
        import submitit

        environment = submitit.JobEnvironment()
        if environment.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(
                set_cuda_visible_devices=False, overwrite=True
            )
        # These replace submitit's handlers, which end a job without letting it save. Its warning
        # signal becomes SIGTERM, which training handles; before training there is nothing to save.
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(environment._usr_sig(), lambda *_: signal.raise_signal(signal.SIGTERM))
        try:
            return self.job(self.values)
        except UserError as error:
            outcome = {"error": str(error), "secondary": isinstance(error, RankLost)}
            if environment.num_tasks > 1:
                _return_and_exit(environment, outcome)
            return outcome
        except Stopped as stopped:
            if not stopped.preempted:
                return {"error": stopped.message, "secondary": False}
            restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
            if restarts >= self.requeues:
                limit = (
                    f"stopped after {restarts} restarts; pass a larger hydra.launcher.requeues "
                    f"than {self.requeues}"
                )
                return {"error": limit, "secondary": False}
        if environment.global_rank == 0:
            environment._requeue(self.requeues - restarts)
        elif environment.cluster == "slurm":
            time.sleep(LINGER)
        sys.exit(PREEMPTED)


def _return_and_exit(environment: Any, outcome: dict[str, Any]) -> NoReturn:
    """Store the result of this task as submitit would, and end the process.

    An orderly exit waits for ranks that may not respond. Without an exit code the other ranks would
    keep waiting.
    """
    from submitit.core.utils import cloudpickle_dump, temporary_save_path

    with temporary_save_path(environment.paths.result_pickle) as path:
        cloudpickle_dump(("success", outcome), path)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(USER_ERROR)


def _stop(*_: Any) -> None:
    raise Stopped(BEFORE_TRAINING, preempted=True)


def make_executor(config: SlurmConfig, nodes: int, devices: int, gpus: bool) -> Any:
    """A submitit executor for jobs of ``nodes`` x ``devices`` tasks, each with a GPU or none.

    Raises ConfigError if submitit or Slurm is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            "hydra/launcher=slurm: submitit is not installed; run pip install -e '.[slurm]'"
        ) from error
    if config.cluster == "slurm" and shutil.which("srun") is None:
        raise ConfigError(
            "hydra/launcher=slurm: Slurm is not installed here (no srun on the PATH); log in to "
            "the cluster, or pass hydra.launcher.cluster=local"
        )
    if config.cluster == "local" and nodes > 1:
        raise ConfigError(f"nodes={nodes}: hydra.launcher.cluster=local runs on one machine only")
    executor = submitit.AutoExecutor(folder=Path(config.folder) / "%j", cluster=config.cluster)
    parameters: dict[str, Any] = {
        "name": "itr",
        "nodes": nodes,
        "tasks_per_node": devices,
        "timeout_min": max(1, round(config.hours * 60)),
    }
    if config.cluster == "local":
        parameters["gpus_per_node"] = devices if gpus else 0
    else:
        parameters |= {
            "cpus_per_task": config.cpus_per_task,
            "slurm_signal_delay_s": config.signal_delay_s,
            "slurm_partition": config.partition,
            "slurm_account": config.account,
            "slurm_qos": config.qos,
            "slurm_constraint": config.constraint,
            "slurm_gpus_per_node": devices if gpus else None,
            "mem_gb": config.mem_gb,
            "slurm_srun_args": ["--kill-on-bad-exit=1"],  # a failed rank ends the others
            # Without this Slurm does not requeue a job that it preempted.
            "slurm_additional_parameters": {"requeue": True, **_flags(config.extra)},
        }
    executor.update_parameters(
        **{key: value for key, value in parameters.items() if value is not None}
    )
    return executor


def _flags(words: Sequence[str]) -> dict[str, Any]:
    """sbatch options such as ``exclusive`` or ``gres=gpu:a100:8``, in submitit's form."""
    pairs = (word.lstrip("-").partition("=") for word in words)
    return {key: value if separator else True for key, separator, value in pairs}


def job_of(config_name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The job of the entry point with that configuration."""
    if config_name == "train":
        from itr.jobs.train import train

        return train
    from itr.jobs.evaluate import evaluate

    return evaluate


def submit_jobs(
    options: Mapping[str, Any],
    context: Any,
    task: EntryPoint,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
) -> list[JobReturn]:
    """Compose and check all jobs, submit them, and wait for their results.

    Results and errors are added to the lists that `entry` attached to ``task``. Raises ConfigError
    for a job that cannot be submitted.
    """
    settings: SlurmConfig = check(options, SlurmConfig, "hydra.launcher")
    console = PlainConsole(stderr=True)
    name = str(config.hydra.job.config_name)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # tasks import the package, installed or not
    composed = [_compose(context, config, overrides, name) for overrides in job_overrides]
    jobs: list[tuple[Any, str]] = []
    for values, overrides in zip(composed, job_overrides, strict=True):
        nodes, devices = int(values.get("nodes", 1)), int(values.get("devices", 1))
        gpus = settings.gpus and values.get("device") != "cpu"
        label = " ".join(filter_overrides(list(overrides)))
        executor = make_executor(settings, nodes, devices, gpus)
        try:
            job = executor.submit(RemoteJob(job_of(name), values, settings.requeues))
        except Exception as error:  # submitit's own kinds, and those of subprocess
            raise _refused(label or name, error, [job for job, _ in jobs]) from error
        tasks = f"{nodes} x {devices} tasks"
        console.print(
            f"submitted {job.job_id}: {label or name}, {tasks}, log {job.paths.stdout}",
            soft_wrap=True,
        )
        jobs.append((job, label))
    if not settings.wait:
        return [_returned(None, list(overrides)) for overrides in job_overrides]
    return _collect(jobs, task, [list(overrides) for overrides in job_overrides], console)


def _refused(label: str, error: Exception, submitted: Sequence[Any]) -> ConfigError:
    """sbatch's refusal of a job, and what became of those before it."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else type(error).__name__
    fate = "nothing was submitted"
    if submitted:
        ids = " ".join(str(job.job_id) for job in submitted)
        fate = (
            f"what was submitted before it stays; to cancel: scancel {ids}. Once those jobs have "
            "ended, the same command submits the others, and finished runs cost nothing"
        )
    return ConfigError(
        f"{label}: the job was refused ({reason}); {fate}. Change hydra.launcher.partition, "
        "account, qos, hours or extra"
    )


def _compose(
    context: Any, config: DictConfig, overrides: Sequence[str], name: str
) -> dict[str, Any]:
    """The checked configuration of one job."""
    node = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(node):
        del node["hydra"]
    container = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    values = {str(key): value for key, value in container.items()}
    if name == "train":
        check_config(values)
        if values.get("overwrite"):
            raise ConfigError(
                "overwrite=true: a requeued job would delete its own progress; delete the run "
                "directory instead"
            )
        values["resume"] = "auto"  # a requeued job continues
    return values


def _collect(
    jobs: Sequence[tuple[Any, str]],
    task: EntryPoint,
    job_overrides: list[list[str]],
    console: PlainConsole,
) -> list[JobReturn]:
    try:
        while not all(job.done() for job, _ in jobs):
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        if any(type(job).__name__ == "SlurmJob" for job, _ in jobs):
            ids = " ".join(job.job_id for job, _ in jobs)
            console.print(f"the jobs keep running; to cancel them: scancel {ids}")
        raise
    returned = []
    for (job, label), overrides in zip(jobs, job_overrides, strict=True):
        results = _results(job)
        if "error" in results:
            message = f"{label}: {results['error']}"
            task.fail(message)
            returned.append(_returned(None, overrides))
        else:
            task.finished.append((str(results.get("run", job.job_id)), results))
            returned.append(_returned(selected_metric(results, task.split), overrides))
    return returned


def _results(job: Any) -> dict[str, Any]:
    """The results of rank 0 or, if it failed, the error that is not secondary."""
    first = _result(job.task(0))
    if "error" not in first:
        return first
    outcomes = [first, *(_result(job.task(number)) for number in range(1, job.num_tasks))]
    return min((one for one in outcomes if "error" in one), key=lambda one: one["secondary"])


def _result(task: Any) -> dict[str, Any]:
    try:
        return task.result()
    except Exception as error:  # one failed job must not hide the results of the others
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"error": f"{lines[-1]} (log: {task.paths.stderr})", "secondary": True}


def _returned(value: Any, overrides: list[str]) -> JobReturn:
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    done.return_value = None if value is None else float(value)
    return done
