"""The tables of `report` as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from itr.results.collect import Row
from itr.results.columns import kind_of
from itr.results.paper_tables import Line, Section, chosen, reference
from itr.results.published import Published, PublishedResults


def _head(table: Section) -> tuple[str, ...]:
    return ("method", *table.kind.headings, "seeds", "chosen on", "trained on")


def markdown(tables: Sequence[Section]) -> str:
    """Tables that read well as text, too."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Section) -> str:
    lines = [
        list(_head(table)),
        *(
            [_shown(line, _plain), *line.cells, line.seeds, line.chosen, line.trained]
            for line in table.lines
        ),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def join(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w)
                  for i, (c, w) in enumerate(zip(cells, widths, strict=True))]  # fmt: skip
        return f"| {' | '.join(padded)} |"

    rule = f"|{'-' * (widths[0] + 2)}|" + "|".join(f"{'-' * (w + 1)}:" for w in widths[1:]) + "|"
    body = [join(lines[0]), rule, *(join(line) for line in lines[1:])]
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"## {table.title}", "", *body, "", *notes, ""])


def _plain(text: str) -> str:
    return text.replace("|", "\\|")


def _shown(line: Line, escape: Callable[[str], str]) -> str:
    indent = "" if line.kind in ("paper", "ours") else "... "
    return f"{indent}{escape(line.name)}{' ' if line.marks else ''}{escape(line.marks)}"


SPECIAL = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
           "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
           "±": r"$\pm$", "–": "--", "†": r"$\dagger$", "‡": r"$\ddagger$"}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)


def latex(tables: Sequence[Section]) -> str:
    """One ``table`` environment each; needs the package booktabs."""
    made = []
    for table in tables:
        body: list[str] = []
        for line in table.lines:
            if line.kind == "ours" and body:
                body.append(r"\midrule" if body[-1] != r"\midrule" else "")
            cells = [*line.cells, line.seeds, line.chosen, line.trained]
            body.append(" & ".join([_shown(line, _tex), *map(_tex, cells)]) + r" \\")
        head = " & ".join(map(_tex, _head(table))) + r" \\"
        notes = r" \\ ".join(_tex(note) for note in table.notes)
        made += [
            r"\begin{table}",
            rf"\caption{{{_tex(table.title)}}}",
            r"\small",
            r"\begin{tabular}{l" + "r" * (len(_head(table)) - 1) + "}",
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
    return "\n".join(made)


FIELDS = ("kind", "data", "split", "protocol", "model", "name", "metric", "value", "deviation",
          "low", "high", "seeds", "paper", "delta", "ensemble", "chosen_on", "trained_on",
          "pretrained_on", "backbone", "n_captions", "source", "evidence", "note")  # fmt: skip


def table_csv(rows: Sequence[Row], known: PublishedResults, tables: Sequence[Section]) -> str:
    """One line a number, full precision: ours with what they are set against, then the papers'."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        paper = reference(row, known.of(row.data, row.protocol, row.split))
        for metric in kind_of(row.protocol).metrics:
            writer.writerow(_our_record(row, metric, paper, known))
    for table in tables:
        for paper in known.of(table.data, table.protocol, table.split):
            for metric in table.kind.metrics:
                if (value := paper.values.get(metric)) is not None:
                    writer.writerow(_paper_record(paper, metric, value))
    return out.getvalue()


def _our_record(
    row: Row, metric: str, paper: Published | None, known: PublishedResults
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
        "chosen_on": chosen(row, known),
        "trained_on": row.fact("trained_on"),
        "n_captions": row.fact("n_captions"),
        "source": paper.source if paper else None,
        "evidence": paper.evidence if paper else None,
        "note": paper.note if paper else None,
    }
    return {key: "" if value is None else value for key, value in record.items()}


def _paper_record(paper: Published, metric: str, value: float) -> dict[str, Any]:
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
        "chosen_on": paper.selection,
        "trained_on": paper.train,
        "pretrained_on": paper.pretrain,
        "backbone": paper.backbone,
        "n_captions": paper.captions or "",
        "source": paper.source,
        "evidence": paper.evidence,
        "note": paper.note,
    }
