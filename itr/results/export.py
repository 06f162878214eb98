"""Writes paper tables as Markdown, LaTeX, CSV, and as text for a terminal."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from itr.results.collect import ResultRow
from itr.results.escapes import csv_cell, latex, markdown
from itr.results.paper_tables import (
    PaperTable,
    TableLine,
    checkpoint_selection,
    published_counterpart,
)
from itr.results.published import PublishedResults, PublishedRow
from itr.tasks.columns import columns_of
from itr.terminal import printable


def _headings(table: PaperTable) -> tuple[str, ...]:
    return (
        "method",
        *table.columns.headings,
        "seeds",
        "training",
        "cost",
        "selected on",
        "trained on",
    )


def _cells(line: TableLine) -> list[str]:
    """The cells behind the name of a line."""
    return [*line.cells, line.seeds, line.training, line.cost, line.selection, line.trained]


def to_markdown(tables: Sequence[PaperTable]) -> str:
    """Markdown tables, with columns aligned at whatever width they need."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: PaperTable) -> str:
    lines = [
        list(_headings(table)),
        *([_name(line, markdown), *map(markdown, _cells(line))] for line in table.lines),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def join(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w)
                  for i, (c, w) in enumerate(zip(cells, widths, strict=True))]  # fmt: skip
        return f"| {' | '.join(padded)} |"

    rule = f"|{'-' * (widths[0] + 2)}|" + "|".join(f"{'-' * (w + 1)}:" for w in widths[1:]) + "|"
    body = [join(lines[0]), rule, *(join(line) for line in lines[1:])]
    notes = [f"- {markdown(note)}" for note in table.notes]
    return "\n".join([f"## {markdown(table.title)}", "", *body, "", *notes, ""])


def _name(line: TableLine, escape: Callable[[str], str]) -> str:
    indent = "" if line.kind in ("paper", "ours") else "... "
    return f"{indent}{escape(line.name)}{' ' if line.marks else ''}{escape(line.marks)}"


def to_text(tables: Sequence[PaperTable], width: int) -> str:
    """Plain text for a terminal: what a line is called, its numbers, and below how they came about.

    The longest numbers need 80 columns; names and notes are broken at ``width``.
    """
    return "\n".join(_text(table, width) for table in tables)


def _text(table: PaperTable, width: int) -> str:
    body = [[cell.replace(" ± ", "±") for cell in line.cells] for line in table.lines]
    headings = table.columns.headings
    widths = [max(map(len, column)) for column in zip(headings, *body, strict=True)]

    def join(cells: Sequence[str]) -> str:
        return "  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)).rstrip()

    def broken(text: str, indent: str = "") -> str:
        return textwrap.fill(
            printable(text), width, subsequent_indent=indent, initial_indent=indent,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip

    lines = [broken(table.title), "", join(headings)]
    for line, cells in zip(table.lines, body, strict=True):
        lines += [broken(_name(line, str)), join(cells)]
        facts = (
            line.seeds and f"{line.seeds} seed{'s' * (line.seeds != '1')}",
            line.training,
            line.cost,
            line.selection and f"selected on {line.selection}",
            line.trained and f"trained on {line.trained}",
        )
        if any(facts):
            lines.append(broken("; ".join(filter(None, facts)), "  "))
    return "\n".join([*lines, "", *(broken(f"- {note}") for note in table.notes), ""])


def to_latex(tables: Sequence[PaperTable]) -> str:
    """One ``table`` environment per table; needs the LaTeX packages booktabs and amssymb."""
    blocks = []
    for table in tables:
        body: list[str] = []
        for line in table.lines:
            if line.kind == "ours" and body:
                body.append(r"\midrule" if body[-1] != r"\midrule" else "")
            cells = [_name(line, latex), *map(latex, _cells(line))]
            body.append(" & ".join(cells) + r" \\")
        head = " & ".join(map(latex, _headings(table))) + r" \\"
        notes = r" \\ ".join(latex(note) for note in table.notes)
        blocks += [
            r"\begin{table}",
            rf"\caption{{{latex(table.title)}}}",
            r"\small",
            r"\begin{tabular}{l" + "r" * (len(_headings(table)) - 1) + "}",
            r"\toprule",
            head,
            r"\midrule",
            *filter(None, body),
            r"\bottomrule",
            r"\end{tabular}",
            rf"\par\footnotesize {notes}" if notes else "",
            r"\end{table}",
            "",
        ]
    return "\n".join(blocks)


COSTS = ("train_seconds", "gpu_hours", "peak_gpu_memory_gib", "parameters_millions")
FIELDS = ("kind", "data", "split", "protocol", "model", "name", "metric", "value", "deviation",
          "low", "high", "seeds", "paper", "delta", "ensemble", "selected_on", "training",
          *COSTS, "trained_on", "pretrained_on", "backbone", "n_captions", "source", "evidence",
          "note")  # fmt: skip


def to_csv(
    rows: Sequence[ResultRow], published: PublishedResults, tables: Sequence[PaperTable]
) -> str:
    """One line per number in full precision: ours with their counterparts, then the papers'."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        paper = published_counterpart(row, published.of(row.data, row.protocol, row.split))
        for metric in columns_of(row.protocol).metrics:
            writer.writerow(_escaped(_our_record(row, metric, paper, published)))
    for table in tables:
        for paper in published.of(table.data, table.protocol, table.split):
            for metric in table.columns.metrics:
                if (value := paper.values.get(metric)) is not None:
                    writer.writerow(_escaped(_paper_record(paper, metric, value)))
    return out.getvalue()


def _escaped(record: dict[str, Any]) -> dict[str, Any]:
    return {key: csv_cell(value) for key, value in record.items()}


def _our_record(
    row: ResultRow, metric: str, paper: PublishedRow | None, published: PublishedResults
) -> dict[str, Any]:
    mean, deviation = row.mean(metric)
    interval = row.intervals.get(metric)
    printed = paper.values.get(metric) if paper else None
    record = {
        "kind": "ours",
        "data": row.data,
        "split": row.split,
        "protocol": row.protocol,
        "model": row.fact("model"),
        "name": row.name,
        "metric": metric,
        "value": mean,
        "deviation": deviation,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "seeds": " ".join(str(seed) for seed in row.seeds if seed is not None),
        "paper": printed,
        "delta": None if mean is None or printed is None else mean - printed,
        "ensemble": row.ensemble,
        "selected_on": checkpoint_selection(row, published),
        "training": row.training,
        **{key: row.cost(key) for key in COSTS},
        "trained_on": row.fact("trained_on"),
        "n_captions": row.fact("n_captions"),
        "source": paper.source if paper else None,
        "evidence": paper.evidence if paper else None,
        "note": paper.note if paper else None,
    }
    return {key: "" if value is None else value for key, value in record.items()}


def _paper_record(paper: PublishedRow, metric: str, value: float) -> dict[str, Any]:
    return {
        "kind": "paper",
        "data": paper.test,
        "split": paper.split,
        "protocol": paper.protocol,
        "model": paper.model,
        "name": f"{paper.label}, first stage" if paper.stage else paper.label,
        "metric": metric,
        "value": value,
        "ensemble": paper.ensemble,
        "selected_on": paper.selection,
        "trained_on": paper.train,
        "pretrained_on": paper.pretrain,
        "backbone": paper.backbone,
        "n_captions": paper.captions or "",
        "source": paper.source,
        "evidence": paper.evidence,
        "note": paper.note,
    }
