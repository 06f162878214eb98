"""Bars of configurations, paper against ours, and results against what training costs."""

from __future__ import annotations

from typing import Any

from itr.results.collect import ResultRow
from itr.results.paper_tables import published_counterpart
from itr.results.plots.groups import Group, best_rows, facts
from itr.results.plots.style import COLORS, COLUMN, MARKERS, PAGE, Plot, pyplot_free, shown
from itr.results.published import PublishedResults, PublishedRow
from itr.tasks.columns import columns_of

MOST_BARS = 24
COSTS = (  # metric of the cost, its axis
    ("train_seconds", "training time (s)"),
    ("gpu_hours", "GPU-hours"),
    ("peak_gpu_memory_gib", "peak GPU memory (GiB)"),
    ("parameters_millions", "parameters (M)"),
)


def ablation(group: Group) -> Plot | None:
    """A bar per configuration, its seeds as points; None for fewer than two configurations."""
    kept, omitted = best_rows(group, MOST_BARS)
    if len(kept) < 2:
        return None
    figure = pyplot_free()(figsize=(PAGE * 0.75, 0.5 + 0.3 * len(kept)), layout="constrained")
    axes = figure.add_subplot()
    rows: list[list[Any]] = []
    for place, row in enumerate(kept):
        mean, deviation = row.mean(group.main)
        values = row.values[group.main]
        axes.barh(place, mean, xerr=deviation, height=0.65, color=COLORS[5], ecolor="#444444")
        axes.plot(values, [place] * len(values), "o", color=COLORS[0], markersize=2.5)
        axes.annotate(f"{mean:.1f}", (0, place), (3, 0), textcoords="offset points", va="center")
        rows += [
            [row.name, seed, value, mean, deviation]
            for seed, value in zip(row.seeds, values, strict=True)
        ]
    axes.set_yticks(range(len(kept)), [shown(row.name, 44) for row in kept])
    axes.invert_yaxis()
    axes.set_xlabel(f"{group.heading} on {group.split}")
    axes.grid(axis="y", visible=False)
    caption = (
        f"{group.heading} by configuration, {group.title}; bar and whisker: mean and standard "
        f"deviation over seeds, points: seeds. {facts(kept)}{omitted}"
    )
    header = ("configuration", "seed", group.main, "mean", "deviation")
    return Plot(f"ablation_{group.slug}", figure, caption, header, rows)


def paper_against_ours(group: Group, published: PublishedResults) -> Plot | None:
    """Our rows beside the published ones they are compared with; None if there are none."""
    papers = published.of(group.data, group.protocol, group.split)
    pairs = [(row, paper) for row in group.rows if (paper := published_counterpart(row, papers))]
    pairs = pairs[:MOST_BARS]
    if not pairs:
        return None
    metrics = [m for m in dict.fromkeys((group.main, "i2t_r1", "t2i_r1")) if m in _metrics(group)]
    figure = pyplot_free()(figsize=(PAGE, 0.9 + 0.32 * len(pairs)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    rows: list[list[Any]] = []
    for axes, metric in zip(panels, metrics, strict=True):
        for place, (row, paper) in enumerate(pairs):
            rows.append(_compared(axes, place, row, paper, metric))
        axes.set_xlabel(columns_of(group.protocol).heading(metric))
    panels[0].set_yticks(range(len(pairs)), [shown(row.name) for row, _ in pairs])
    panels[0].invert_yaxis()
    panels[0].set_ylim(len(pairs) - 0.5, -0.5)
    panels[-1].legend(*_legend(panels[-1]), loc="upper left", bbox_to_anchor=(1, 1))
    own = [row for row, _ in pairs]
    caption = (
        f"Ours against the published numbers, {group.title}; whisker: 95 % interval of the mean "
        f"over seeds (bootstrap over images), else the standard deviation. {facts(own)} Papers "
        f"select on: {', '.join(sorted({paper.selection for _, paper in pairs}))}."
    )
    header = ("configuration", "metric", "ours", "low", "high", "paper", "source", "selected_on")
    return Plot(f"paper_{group.slug}", figure, caption, header, rows)


def _metrics(group: Group) -> tuple[str, ...]:
    return columns_of(group.protocol).metrics


def _compared(axes: Any, place: int, row: ResultRow, paper: PublishedRow, metric: str) -> list[Any]:
    mean, deviation = row.mean(metric)
    interval, printed = row.intervals.get(metric), paper.values.get(metric)
    low = high = None
    if mean is not None:
        spread = deviation or 0.0
        low, high = mean - spread, mean + spread
        if interval is not None:
            low, high = interval.low, interval.high
        sides = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
        axes.errorbar(
            mean, place, xerr=sides, fmt="o", color=COLORS[0], label="ours", capsize=2, zorder=3
        )
    if printed is not None:
        axes.plot(
            printed, place, "D", markerfacecolor="none", color=COLORS[1], label="paper", zorder=4
        )
    return [row.name, metric, mean, low, high, printed, paper.source, paper.selection]


def _legend(axes: Any) -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    first = dict(reversed(list(zip(labels, handles, strict=True))))
    return list(first.values()), list(first)


def _scale(axes: Any, prices: list[float]) -> None:
    """A logarithmic axis for prices of several orders of magnitude, else one from 0."""
    if max(prices) > 20 * min(prices) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")  # not 10^{2}
        axes.xaxis.set_minor_formatter(lambda *_: "")
    else:
        axes.set_xlim(0, 1.15 * max(prices) or 1)


def against_cost(group: Group) -> Plot | None:
    """The main metric against every cost that is known; None if none is."""
    kept, omitted = best_rows(group)
    known = [cost for cost in COSTS if any(row.cost(cost[0]) for row in kept)]
    if not known:
        return None
    figure = pyplot_free()(figsize=(max(COLUMN, 2.1 * len(known) + 1), 2.3), layout="constrained")
    panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    rows: list[list[Any]] = []
    for axes, (cost, label) in zip(panels, known, strict=True):
        for row, color, marker in zip(kept, COLORS, MARKERS, strict=False):
            mean, deviation = row.mean(group.main)
            if (price := row.cost(cost)) is not None:
                axes.errorbar(
                    price, mean, yerr=deviation, fmt=marker, color=color, label=shown(row.name, 28)
                )
                rows.append([row.name, cost, price, mean, deviation])
        _scale(axes, [row[2] for row in rows if row[1] == cost])
        axes.set_xlabel(label)
    panels[0].set_ylabel(f"{group.heading} on {group.split}")
    handles, labels = _legend(panels[0])
    figure.legend(handles, labels, loc="outside right center")
    caption = (
        f"{group.heading} against the cost of training, {group.title}; mean and standard deviation "
        f"over seeds. {facts(kept)}{omitted}"
    )
    header = ("configuration", "cost", "value", group.main, "deviation")
    return Plot(f"cost_{group.slug}", figure, caption, header, rows)
