"""``itr runs``: lists runs, tags, archives and deletes them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.live import Live
from rich.text import Text

from itr.command import command
from itr.errors import ConfigError
from itr.results.runs.changes import archive, change_tags, delete, require_idle
from itr.results.runs.listing import SORTS, matching, report, size
from itr.results.runs.run_state import RunState, find_runs, read_run
from itr.terminal import PlainConsole, say

ACTIONS = ("tag", "archive", "delete")
LIST = """List the runs below a folder: state, progress, best value on val, value on test, age,
size. States: running, finished, preempted (stopped by a signal), failed, killed, damaged."""
EPILOG = """FOLDER is a folder of runs (default: runs). KEY=VALUE keeps the runs whose name, state,
model, data, task, loss, seed or tag fit VALUE, where * stands for anything: state=failed
name='hrem*'. Other commands: itr runs tag, itr runs archive, itr runs delete (--help for each)."""


@command
def main(arguments: Sequence[str]) -> None:
    """Run an action, or list runs."""
    if arguments[:1] and arguments[0] in ACTIONS:
        {"tag": _tag, "archive": _archive, "delete": _delete}[arguments[0]](arguments[1:])
    else:
        _list(arguments)


def _list(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="itr runs", description=LIST, epilog=EPILOG)
    parser.add_argument("given", nargs="*", metavar="FOLDER|KEY=VALUE", help="what is listed")
    parser.add_argument("--sort", choices=SORTS, default="age", help="default: %(default)s")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--json", action="store_true", help="a JSON list instead of a table")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=5.0,
        metavar="SECONDS",
        help="print the list again every 5 seconds, until Ctrl-C",
    )
    options = parser.parse_args(arguments)
    if options.watch is not None and not options.watch > 0:
        raise ConfigError(f"--watch {options.watch:g}: expected a number of seconds above 0")
    if options.watch is None:
        _print(options)
        return
    console = PlainConsole()
    if options.json or not console.is_terminal:
        while True:
            _print(options)
            sys.stdout.flush()
            time.sleep(options.watch)
    with Live(_report(options), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(options.watch)
            live.update(_report(options), refresh=True)


def _print(options: argparse.Namespace) -> None:
    if options.json:
        say(json.dumps([run.facts() for run in _chosen(options)], indent=2))
        return
    PlainConsole().print(_report(options), soft_wrap=True)


def _report(options: argparse.Namespace) -> Text:
    return report(_chosen(options), time.time())


def _chosen(options: argparse.Namespace) -> list[RunState]:
    """The runs to be listed, in order."""
    filters = [each for each in options.given if "=" in each and not Path(each).is_dir()]
    folders = [Path(each) for each in options.given if each not in filters] or [Path("runs")]
    runs = sorted(matching(find_runs(folders), filters), key=SORTS[options.sort])
    return runs[::-1] if options.reverse else runs


def _tag(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="itr runs tag", description="Add or remove tags of runs.")
    _add_runs(parser)
    parser.add_argument("--add", nargs="+", default=[], metavar="TAG", help="tags to add")
    parser.add_argument("--remove", nargs="+", default=[], metavar="TAG", help="tags to remove")
    options = parser.parse_args(arguments)
    if not options.add and not options.remove:
        parser.error("pass --add TAG or --remove TAG")

    for run in options.runs:
        say(f"{run}: {' '.join(change_tags(run, options.add, options.remove)) or 'no tags'}")


def _archive(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="itr runs archive",
        description="Move runs out of the list, into the folder archive beside them.",
    )
    _add_runs(parser)
    _add_yes(parser)
    parser.add_argument("--to", type=Path, metavar="DIR", help="another folder to move them to")
    options = parser.parse_args(arguments)

    if _agreed("archive", options):
        for run in options.runs:
            say(f"{run}: moved to {archive(run, options.to)}")


def _delete(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="itr runs delete", description="Delete runs with their checkpoints, for good."
    )
    _add_runs(parser)
    _add_yes(parser)
    options = parser.parse_args(arguments)

    if _agreed("delete", options):
        for run in options.runs:
            delete(run)
            say(f"{run}: deleted")


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run directories")


def _add_yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _agreed(action: str, options: argparse.Namespace) -> bool:
    """Show the runs and ask. Raises ConfigError where nobody can be asked."""
    for run in options.runs:
        require_idle(run)
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"itr runs {action}: asks before it does so; pass --yes in a script")
    runs = [read_run(run, str(run)) for run in options.runs]
    PlainConsole().print(report(runs, time.time()), soft_wrap=True)
    total = size(sum(run.size for run in runs))
    answer = input(f"{action} {len(runs)} runs, {total}? [y/N] ")
    return answer.strip().lower() in ("y", "yes")
