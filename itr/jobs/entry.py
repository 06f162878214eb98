"""The commands train and eval: Hydra composes, a job runs, errors become sentences.

Nothing here imports torch, so that help and a misspelled key are answered at once.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from itr import help as help_pages
from itr.command import INTERRUPTED, USER_ERROR, command, explain_system_error, print_error
from itr.compose import CONF
from itr.errors import Stopped, UserError
from itr.hydra_words import expand_paths, readable
from itr.override_errors import check_groups, explain, explain_value

if TYPE_CHECKING:
    from omegaconf import DictConfig

PREEMPTED = 75  # exit code, beside those of `itr.command`

Values = dict[str, Any]


@dataclass
class EntryPoint:
    """What one command runs on a configuration, and what came of its jobs.

    ``job`` is ``module:function`` from the configuration to flat results, of which Hydra's sweepers
    get the one that selects on ``split``. ``prepare``, also ``module:function``, may change the
    configuration, knowing the overrides of the command line. A launcher that runs jobs elsewhere
    adds to ``finished`` and ``failed``.
    """

    name: str
    job: str
    split: str
    prepare: str | None = None
    finished: list[tuple[str, Values]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __call__(self, config: DictConfig) -> float | None:
        """Run the job; Hydra calls this once for each job of a multirun."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(values, dict)
        values = expand_paths({str(key): value for key, value in values.items()})
        try:
            if self.prepare is not None:
                values = locate(self.prepare)(values, list(HydraConfig.get().overrides.task))
            results = locate(self.job)(values)
        except Stopped as stopped:  # this ends a whole multirun
            _warn(stopped.message)
            sys.exit(PREEMPTED if stopped.preempted else INTERRUPTED)
        except UserError as error:  # the other jobs of a multirun still run
            self.fail(str(error))
            return None
        except Exception as error:
            refused = isinstance(error, OSError | MemoryError | RecursionError)
            if not refused and HydraConfig.get().mode != RunMode.MULTIRUN:
                raise
            self._crashed(error)
            return None
        self.finished.append((str(results.get("run", len(self.finished))), results))
        return selected_metric(results, self.split)

    def _crashed(self, error: Exception) -> None:
        """Report a job that failed with a bug or a system error; the others still run."""
        if isinstance(error, OSError | MemoryError | RecursionError):
            self.fail(explain_system_error(error))
        else:
            traceback.print_exception(error)
            self.fail(f"this job crashed ({type(error).__name__}: {error}); see above")

    def fail(self, message: str) -> None:
        """Print and record why a job, or the command, failed."""
        self.failed.append(message)
        print_error(message)


def selected_metric(results: Values, split: str) -> float | None:
    """The metric by which runs are compared, on ``split``: rSum, or an accuracy. None: unknown."""
    from itr.tasks.columns import columns_of

    value = results.get(f"{split}/{columns_of(str(results.get(f'{split}/protocol'))).main}")
    return None if value is None else float(value)


def locate(target: str) -> Callable[..., Any]:
    """The function that ``module:function`` names, imported now."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def run(entry: EntryPoint, arguments: Sequence[str]) -> None:
    """Compose what ``arguments`` say and run it, once or (with ``-m``) once for each combination.

    Exits with 2 for an error the user can fix (printed without a traceback), 75 if saved and
    preempted by SIGTERM or SIGUSR1, 130 if interrupted (saved, unless Ctrl-C came twice).
    """
    if help_pages.wanted(arguments):
        print(help_pages.help_text(entry.name, arguments))
        return
    arguments = readable(arguments)
    check_groups(entry.name, arguments)
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed by Hydra
    if list(arguments) != sys.argv[1:]:
        sys.argv = [f"{entry.name}.py", *arguments]  # Hydra reads its arguments there
    decorate = hydra.main(version_base="1.3", config_path=str(CONF), config_name=entry.name)
    try:
        decorate(entry)()
    except UserError as error:  # a launcher's own
        entry.fail(str(error))
    except HydraException as error:
        entry.fail(explain(error, entry.name, sys.argv[1:]))
    except OmegaConfBaseException as error:
        entry.fail(explain_value(error))
    except KeyboardInterrupt:
        _warn("interrupted; pass resume=auto to resume")
        sys.exit(INTERRUPTED)
    finally:
        _print_table(entry.finished)
    if entry.failed:
        if entry.finished:
            jobs = len(entry.failed) + len(entry.finished)
            print_error(f"{len(entry.failed)} of {jobs} jobs failed")
        sys.exit(USER_ERROR)


def _print_table(finished: Sequence[tuple[str, Values]]) -> None:
    if len(finished) < 2:
        return
    from itr import parallel
    from itr.results.accuracy_tables import runs_tables
    from itr.terminal import OutputConsole

    if parallel.rank() == 0:
        for table in runs_tables(list(finished)):
            OutputConsole().print(table)


def _warn(message: str) -> None:
    from itr import parallel
    from itr.terminal import OutputConsole

    if parallel.rank() == 0:
        console = OutputConsole(stderr=True)
        console.print(message, style="yellow", soft_wrap=True)


@command
def train(arguments: Sequence[str]) -> None:
    """``itr train``, ``train.py``: Hydra reads ``arguments`` (default: those of the process)."""
    refuse = "itr.models.build:refuse_loss"
    run(EntryPoint("train", "itr.jobs.train:train", "val", refuse), arguments)


@command
def evaluate(arguments: Sequence[str]) -> None:
    """``itr eval``, ``eval.py``: Hydra reads ``arguments`` (default: those of the process)."""
    keep = "itr.jobs.eval.config:keep_typed_options"
    run(EntryPoint("eval", "itr.jobs.evaluate:evaluate", "test", keep), arguments)
