"""``itr results dashboard``: a W&B workspace or report for the runs of a sweep or a group.

It stands here because it composes the jobs of a sweep file to learn what they vary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itr.command import command
from itr.errors import ConfigError
from itr.files import atomic_write, explain_write_error
from itr.options import CONF, read
from itr.results.dashboards.contents import Subject, report, workspace
from itr.results.dashboards.service import REPORT, WORKSPACE, save, spec_of
from itr.results.row_labels import differing_options
from itr.tasks.columns import TASKS, columns_of
from itr.terminal import PlainConsole

ABOUT = """Make a Weights & Biases workspace, or bring it up to date: results, sweep, validation,
training, hardest queries. The second time, the same view is updated."""
MOST_VARIED = 10  # axes of a plot that can still be read


@command
def main(arguments: Sequence[str]) -> None:
    """Save a workspace or a report, or write what would be sent."""
    options = parser().parse_args(arguments)
    entity, project = _target(options)
    subject = _subject(options)
    table = _paper_table(options, entity, project) if options.report else ""

    def make(entity: str = entity, project: str = project) -> Any:
        if options.report:
            return report(subject, entity, project, table)
        return workspace(subject, entity, project)

    console = PlainConsole()
    if options.json is not None:
        text = json.dumps(spec_of(make("", "")), indent=2, ensure_ascii=False) + "\n"
        with explain_write_error(options.json, "the specification", "pass another --json"):
            with atomic_write(options.json) as file:
                file.write(text.encode())
        console.print(f"wrote {options.json}", soft_wrap=True)
        return
    kind = REPORT if options.report else WORKSPACE
    saved = save(kind, make, entity, project, subject.title)
    verb = "made" if saved.is_new else "brought up to date"
    console.print(f"{verb}: {saved.address}", soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="itr results dashboard", description=ABOUT)
    made.add_argument(
        "target", nargs="?", metavar="ENTITY/PROJECT", help="where; not needed with --json"
    )
    chosen = made.add_mutually_exclusive_group()
    chosen.add_argument(
        "--sweep", type=Path, metavar="FILE", help="runs of this sweep file (tag sweep:NAME)"
    )
    chosen.add_argument(
        "--group", help="runs of this W&B group, such as hrem-f30k-retrieval (default: all runs)"
    )
    made.add_argument(
        "--report",
        action="store_true",
        help="a report, with the table of paper against ours in it, instead of a workspace",
    )
    made.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        metavar="RUNS",
        help="of --report: take the table from these folders (default: from the W&B group)",
    )
    made.add_argument(
        "--json", type=Path, metavar="FILE", help="write what would be sent; needs no key"
    )
    return made


def _target(options: argparse.Namespace) -> tuple[str, str]:
    entity, slash, project = (options.target or "").partition("/")
    if slash and entity and project and "/" not in project:
        return entity, project
    if options.json is not None and options.target is None:
        return "", ""
    raise ConfigError(
        f"itr results dashboard {options.target or ''}: expected ENTITY/PROJECT, as in "
        "'itr results dashboard my-team/itr', or --json FILE"
    )


def _subject(options: argparse.Namespace) -> Subject:
    if options.sweep is not None:
        return of_sweep(options.sweep)
    return of_group(options.group) if options.group else Subject("itr: all runs")


def of_sweep(path: Path) -> Subject:
    """The runs of a sweep file, with the options in which its jobs differ."""
    from itr.sweep.grid import make_job, one_at_a_time  # slow: they compose configurations
    from itr.sweep.spec import read_sweep

    sweep = read_sweep(path)
    jobs = [make_job(sweep, choices.items(), Path("runs")) for choices in one_at_a_time(sweep)]
    configs = [job.values for job in jobs]
    weights = [dict(config["loss"].get("weights") or {}) for config in configs]
    return Subject(
        f"itr: sweep {sweep.name}",
        tag=f"sweep:{sweep.name}",
        varied=tuple(differing_options(configs)[:MOST_VARIED]),
        terms=tuple(dict.fromkeys(term for each in weights for term in each)),
        **_of_task(
            {str(config["task"]["name"]) for config in configs},
            [name for config in configs for name in config["data"].get("protocols") or ()],
        ),
    )


def of_group(group: str) -> Subject:
    """The runs of a group. What its name says of model, data and task decides on the panels."""
    model, _, rest = group.partition("-")
    data, _, task = rest.partition("-")
    keys = _keys(f"model/{model}.yaml")
    terms = [key.rpartition(".")[2] for key in keys if key.startswith("loss.weights.")]
    protocols = _keys(f"data/{data}.yaml").get("data.protocols") or ()
    return Subject(f"itr: {group}", group=group, terms=tuple(terms), **_of_task({task}, protocols))


def _keys(name: str) -> Mapping[str, Any]:
    if not (CONF / name).is_file():
        return {}
    return {key: found.value for key, found in read(name).keys.items()}


def _of_task(tasks: set[str], protocols: Iterable[str]) -> dict[str, Any]:
    if tasks & set(TASKS):
        return {"main": "accuracy", "recalls": False}
    further = list(dict.fromkeys(protocols))[1:]  # the first one has no name in its keys
    return {"protocols": tuple(f"test/{name}/{columns_of(name).main}" for name in further)}


def _paper_table(options: argparse.Namespace, entity: str, project: str) -> str:
    """Paper against ours as Markdown, from run folders or from the W&B group."""
    from itr.results.collect import collect, find_results
    from itr.results.export import to_markdown
    from itr.results.paper_tables import paper_tables
    from itr.results.published import load_published
    from itr.results.wandb_runs import runs_of_group

    if options.runs:
        runs = find_results(options.runs)
    elif options.json is None and options.group:
        runs = runs_of_group(f"{entity}/{project}", options.group)
    else:
        return ""
    return to_markdown(paper_tables(collect(runs), load_published(), False))
