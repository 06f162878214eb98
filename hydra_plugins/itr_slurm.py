"""Hydra launcher of conf/hydra/launcher/slurm.yaml; itr.jobs.launch.slurm does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SlurmLauncher(Launcher):
    """Submits each job of a multirun to Slurm through submitit."""

    def __init__(self, **options: Any):
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the arguments for `launch`."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the jobs and, unless ``wait`` is false, wait for all of them."""
        from itr.jobs.launch.slurm import (
            submit_jobs,  # not before it is used: Hydra reads every plugin
        )

        return submit_jobs(self.options, self.context, self.task, self.config, job_overrides)
