"""The entry points' frame: Hydra composes, errors become sentences, jobs return their metric."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from itr import parallel
from itr.command import INTERRUPTED, USER_ERROR, command, print_error
from itr.compose import CONF
from itr.errors import Stopped, UserError
from itr.instantiate import nearest
from itr.results.terminal_tables import runs_table

PREEMPTED = 75  # exit code, beside those of `itr.command`


Values = dict[str, Any]


def entry(
    config_name: str,
    job: Callable[[Values], Values],
    metric: str,
    prepare: Callable[[Values, Sequence[str]], Values] = lambda values, typed: values,
) -> None:
    """Run ``job`` on the composed configuration, once or (with ``-m``) once a combination.

    ``prepare`` may change the configuration, knowing the overrides that were typed.
    ``job`` gets plain dictionaries and returns flat results; Hydra's sweepers get ``metric`` of
    them. Exit codes: 0 done, 2 an error the user can fix (printed without a traceback), 75 saved
    and preempted by SIGTERM or SIGUSR1, 130 interrupted (saved, unless Ctrl-C came twice).
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed by Hydra
    finished: list[tuple[str, dict[str, Any]]] = []
    failed: list[str] = []
    console = Console(stderr=True)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def main(config: DictConfig) -> float | None:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(values, dict)
        typed = list(HydraConfig.get().overrides.task)
        try:
            results = job(prepare({str(key): value for key, value in values.items()}, typed))
        except Stopped as stopped:  # and with it a whole multirun
            _warn(console, stopped.message)
            sys.exit(PREEMPTED if stopped.preempted else INTERRUPTED)
        except UserError as error:  # the other jobs of a multirun go on
            failed.append(str(error))
            print_error(str(error))
            return None
        finished.append((str(results.get("run", len(finished))), results))
        value = results.get(metric)
        return None if value is None else float(value)

    # A launcher that runs the jobs elsewhere enters what they return here.
    vars(inspect.unwrap(main)).update(finished=finished, failed=failed, metric=metric)
    try:
        main()
    except UserError as error:  # such a launcher's own
        failed.append(str(error))
        print_error(failed[-1])
    except HydraException as error:
        failed.append(explain(error, config_name, sys.argv[1:]))
        print_error(failed[-1])
    except OmegaConfBaseException as error:
        failed.append(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}")
        print_error(failed[-1])
    except KeyboardInterrupt:
        _warn(console, "interrupted; go on with resume=auto")
        sys.exit(INTERRUPTED)
    finally:
        if len(finished) > 1 and parallel.rank() == 0:
            Console().print(runs_table(finished))
    if failed:
        if finished:
            print_error(f"{len(failed)} of {len(failed) + len(finished)} jobs failed")
        sys.exit(USER_ERROR)


def _warn(console: Console, message: str) -> None:
    if parallel.rank() == 0:
        console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)


def explain(error: HydraException, config_name: str, arguments: list[str]) -> str:
    """Hydra's ``error`` as a sentence that says what to type."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match.group(1)
        known = _known_keys(config_name, arguments)
        if config_name == "eval" and key.startswith("model.") and "model.name" not in known:
            return f"'{key}': type model=NAME, too, the method whose option this is"
        return f"'{key}' is no key of this configuration{nearest(key, known)}. See --cfg job"
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, option = match.group(1).rpartition("/")
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        found = ", ".join(options) or "none"
        return f"{group}={option}: no such option{nearest(option, options)} (options: {found})"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return (
            f"{match.group(1)}: a comma means several values. One value that holds a comma: "
            f"{_quoted(match.group(1))}   several runs: add -m   a list: key=[a,b]"
        )
    if type(error).__name__ == "OverrideParseException":
        guilty = next((a for a in arguments if re.search(r"=.*[=,{}\[\]()\s:]", a)), None)
        if guilty is not None:
            return f"{guilty}: special characters in a value need quotes: {_quoted(guilty)}"
        bare = next((a for a in arguments if "=" not in a and not a.startswith("-")), "")
        return f"'{bare}': expected key=value, e.g. python {config_name}.py seed=1"
    return text


def _quoted(argument: str) -> str:
    key, _, value = argument.partition("=")
    return f"'{key}=\"{value}\"'"


def _known_keys(config_name: str, arguments: list[str]) -> list[str]:
    """Every key of the configuration that the group choices among ``arguments`` compose."""
    groups = [a for a in arguments if re.fullmatch(r"(model|data|loss|task|tracker)=\w+", a)]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = hydra.compose(config_name, overrides=groups)
    except HydraException:
        return []
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            keys.append(f"{prefix}{key}")
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(config, resolve=False), "")
    return keys


@command
def train(arguments: Sequence[str]) -> None:
    """``itr train``, ``train.py``: Hydra reads ``arguments`` (default: those of the process)."""
    from itr.jobs.train import train as job

    _enter("train", arguments, job, "val/rsum")


@command
def evaluate(arguments: Sequence[str]) -> None:
    """``itr eval``, ``eval.py``: Hydra reads ``arguments`` (default: those of the process)."""
    from itr.jobs.eval.config import keep_typed_options
    from itr.jobs.evaluate import evaluate as job

    _enter("eval", arguments, job, "test/rsum", keep_typed_options)


def _enter(
    name: str,
    arguments: Sequence[str],
    job: Callable[[Values], Values],
    metric: str,
    prepare: Callable[[Values, Sequence[str]], Values] = lambda values, typed: values,
) -> None:
    if list(arguments) != sys.argv[1:]:
        sys.argv = [f"{name}.py", *arguments]  # Hydra reads its arguments there
    entry(name, job, metric, prepare)
