"""What a W&B workspace and a W&B report show: sections and panels over our metrics.

The package ``wandb-workspaces`` is imported where it is used. Names follow its own: a metric is a
key of the history or the summary, a `Config` a dotted key of the configuration.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from itr.errors import ConfigError

WIDE, HALF, HIGH = 24, 12, 8  # sizes of a panel; a row is 24 wide
RECALLS = tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10))
TRAINING = ("train/grad_norm", "train/pairs_per_second", "train/data_wait")
NAMES = ("model.name", "loss.name", "data.name")  # of which bars are drawn
SECONDS = "train_seconds"
COSTS = (SECONDS, "gpu_hours", "peak_gpu_memory_gib", "parameters_millions")


@dataclass(frozen=True)
class Subject:
    """The runs of a dashboard and what there is to see of them."""

    title: str
    tag: str | None = None  # such as sweep:hrem_relations
    group: str | None = None  # W&B group
    main: str = "rsum"  # the metric by which runs are compared, as in ``test/rsum``
    recalls: bool = True  # a retrieval task
    varied: tuple[str, ...] = ()  # keys of the configuration, most telling first, without the seed
    terms: tuple[str, ...] = ()  # of the loss
    protocols: tuple[str, ...] = ()  # metrics of further protocols

    @property
    def grouped_by(self) -> tuple[str, ...]:
        """Keys by which runs are grouped, so that seeds fold."""
        return self.varied or NAMES


def import_package(name: str) -> Any:
    """``wandb_workspaces.<name>``. Raises ConfigError if the package is missing."""
    try:
        return importlib.import_module(f"wandb_workspaces.{name}")
    except ImportError as error:
        raise ConfigError(
            "itr results dashboard: wandb-workspaces is not installed; run pip install "
            "'itr-suite[dashboards]'"
        ) from error


def sections(subject: Subject) -> dict[str, list[Any]]:
    """Title -> panels."""
    made = {
        "Results": _results(subject),
        "Sweep": _sweep(subject),
        "Validation": _validation(subject),
        "Training": _training(subject),
        "Protocols": [_bars(name, "model.name", f"{name} by model") for name in subject.protocols],
        "Hardest queries": _tables(subject),
    }
    return {title: panels for title, panels in made.items() if panels}


def workspace(subject: Subject, entity: str, project: str) -> Any:
    """The workspace as an object of the package."""
    ws = import_package("workspaces")
    made = [
        ws.Section(name=title, panels=panels, is_open=title != "Hardest queries")
        for title, panels in sections(subject).items()
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=subject.title,
        sections=made,
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=_filters(subject),
            groupby=[ws.Config(key) for key in subject.grouped_by],
            order=[ws.Ordering(ws.Summary(f"test/{subject.main}"), ascending=False)],
            pinned_columns=columns(subject),
        ),
    )


def report(subject: Subject, entity: str, project: str, table: str) -> Any:
    """The report as an object of the package; ``table`` is paper against ours, as Markdown.

    With an entity and a project, converting it asks the service for the project's id.
    """
    wr = import_package("reports.v2")
    runs = wr.Runset(
        entity=entity,
        project=project,
        name=subject.title,
        filters=_filters(subject),
        groupby=[f"config.{key}" for key in subject.grouped_by],
        pinned_columns=columns(subject),
    )
    blocks: list[Any] = [wr.TableOfContents()]
    if table:
        blocks += [wr.H1(text="Paper against ours"), wr.MarkdownBlock(text=table)]
    for title, panels in sections(subject).items():
        blocks += [wr.H1(text=title), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        project=project, entity=entity, title=subject.title, blocks=blocks, width="fluid"
    )


def columns(subject: Subject) -> list[str]:
    """Columns of the run set, as the service addresses them."""
    keys = dict.fromkeys([*subject.varied, *NAMES, "seed"])
    metrics = [f"val/best_{subject.main}", f"test/{subject.main}"]
    if subject.recalls:
        metrics += [f"test/{recall}" for recall in RECALLS]
    named = [f"config:{config_key(key)}" for key in keys]
    return ["run:displayName", *named, *(f"summary:{metric}" for metric in [*metrics, *COSTS])]


def config_key(key: str) -> str:
    """``model.name`` as the service addresses it: ``model.value.name``."""
    first, _, rest = key.partition(".")
    return f"{first}.value.{rest}" if rest else f"{first}.value"


def _filters(subject: Subject) -> list[Any]:
    expr = import_package("expr")
    filters: list[Any] = []
    if subject.tag is not None:
        filters.append(expr.Tags().isin([subject.tag]))
    if subject.group is not None:
        filters.append(expr.Metric("Group") == subject.group)
    return filters


def _layout(number: int) -> Any:
    wr = import_package("reports.v2")
    row, column = divmod(number, 2)
    return wr.Layout(x=column * HALF, y=row * HIGH, w=HALF, h=HIGH)


def _placed(panels: list[Any]) -> list[Any]:
    for number, panel in enumerate(panels):
        panel.layout = _layout(number)
    return panels


def _results(subject: Subject) -> list[Any]:
    wr = import_package("reports.v2")
    test = f"test/{subject.main}"
    panels = [
        wr.ScalarChart(title=f"Best {test}", metric=test, groupby_aggfunc="max"),
        wr.ScatterPlot(
            title=f"{test} against training time (seconds)",
            x=wr.SummaryMetric(SECONDS),
            y=wr.SummaryMetric(test),
            log_x=True,
        ),
    ]
    panels += [_bars(test, key, f"{test} by {key.removesuffix('.name')}") for key in NAMES]
    return _placed([*panels, wr.RunComparer(diff_only="split")])


def _bars(metric: str, key: str, title: str) -> Any:
    wr = import_package("reports.v2")
    return wr.BarPlot(
        title=f"{title}, mean and deviation over seeds",
        metrics=[metric],
        groupby=wr.Config(key),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=100,
        max_bars_to_show=50,
    )


def _sweep(subject: Subject) -> list[Any]:
    if not subject.varied:
        return []
    wr = import_package("reports.v2")
    val, test = f"val/best_{subject.main}", f"test/{subject.main}"
    axes = [*(wr.Config(key) for key in subject.varied), *map(wr.SummaryMetric, (val, test))]
    parallel = wr.ParallelCoordinatesPlot(
        title="Varied options, validation and test",
        columns=[wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes],
    )
    bars = [_bars(test, key, f"{test} by {key}") for key in subject.varied if key not in NAMES]
    return _placed([parallel, wr.ParameterImportancePlot(with_respect_to=val), *bars])


def _validation(subject: Subject) -> list[Any]:
    names = [subject.main, *(RECALLS if subject.recalls else ())]
    return _placed([_curve(f"val/{name}", "epoch") for name in names])


def _training(subject: Subject) -> list[Any]:
    losses = ["train/loss", *(f"train/{term}" for term in subject.terms)]
    curves = [_curve(name, "Step") for name in losses]
    wr = import_package("reports.v2")
    rates = wr.LinePlot(title="learning rates", x="Step", y=[], metric_regex="train/lr.*")
    return _placed([*curves, rates, *(_curve(name, "Step") for name in TRAINING)])


def _curve(name: str, axis: str) -> Any:
    """A curve of ``name`` over ``axis``, grouped as the run set is."""
    wr = import_package("reports.v2")
    return wr.LinePlot(title=name, x=axis, y=[name], max_runs_to_show=100)


def _tables(subject: Subject) -> list[Any]:
    if not subject.recalls:
        return []
    wr = import_package("reports.v2")
    layout = wr.Layout(w=WIDE, h=2 * HIGH)
    return [wr.WeavePanelSummaryTable(table_name="test/hard_queries", layout=layout)]
