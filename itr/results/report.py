"""Paper against ours as Markdown, LaTeX and CSV. One table for each data set and protocol."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from itr.evaluation.statistics import METRICS
from itr.results.collect import Row
from itr.results.published import Publications, Published

COLUMNS = ("i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10", "rSum")
HEAD = ("method", *COLUMNS, "seeds", "chosen on")
CHOSEN = {"zero-shot": "nothing (zero-shot)", "last": "last epoch", "unknown": "?", None: "?"}


@dataclass
class Line:
    """One line of a table."""

    kind: str  # paper | ours | interval | delta
    name: str
    cells: list[str]
    seeds: str = ""
    chosen: str = ""
    marks: str = ""


@dataclass
class Section:
    """One table: what was evaluated, its lines, and the notes below it."""

    data: str
    split: str
    protocol: str
    size: str
    lines: list[Line] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Data set, split, protocol, sizes."""
        return f"{self.data}, {self.split} split, protocol {self.protocol}{self.size}"


def sections(rows: Sequence[Row], known: Publications, everyone: bool = False) -> list[Section]:
    """A table for each data set and protocol among ``rows``; ``everyone``: also published methods
    that no row is of. Ours follow what was published of the same method."""
    made: dict[tuple[str, str, str, str], Section] = {}
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        images, captions, ties = (row.fact(k) for k in ("n_images", "n_captions", "tie_rule"))
        size = f" ({images:,} images, {captions:,} captions, {ties} ties)" if images else ""
        place = (str(row.data), str(row.split), str(row.protocol), size)
        made.setdefault(place, Section(*place))
        grouped.setdefault(place, []).append(row)
    for place, section in made.items():
        ours = sorted(grouped[place], key=lambda row: (str(row.fact("model")), row.name))
        printed = known.of(section.data, section.protocol)
        models = dict.fromkeys(str(row.fact("model")) for row in ours)
        others = dict.fromkeys(row.model for row in printed) if everyone else {}
        for model in {**models, **others}:
            _method(section, model, [r for r in ours if r.fact("model") == model], printed, known)
    return [made[place] for place in sorted(made)]


def _method(
    section: Section,
    model: str,
    ours: Sequence[Row],
    printed: Sequence[Published],
    known: Publications,
) -> None:
    for paper in (row for row in printed if row.model == model):
        section.lines.append(_paper_line(section, paper, known))
    for row in ours:
        section.lines.append(_our_line(section, row))
        if row.intervals:
            cells = [f"{row.intervals[m].low:.1f}–{row.intervals[m].high:.1f}" for m in METRICS]
            section.lines.append(Line("interval", "95 % interval", cells))
        stage = known.of(section.data, section.protocol, row.variant) if row.variant else printed
        against = reference(row, stage)
        if against is not None:
            section.lines.append(_delta_line(section, row, against))


def reference(row: Row, printed: Sequence[Published]) -> Published | None:
    """The printed row that ``row`` is set against: of its model, its training data (where they are
    known) and as many models."""
    trained, count = row.fact("trained_on"), row.ensemble
    fitting = [
        paper
        for paper in printed
        if paper.reference
        and paper.model == row.fact("model")
        and paper.ensemble in (count, min(count, 2))
        and trained in (None, paper.train)
    ]
    own = [paper for paper in fitting if paper.train == row.data]
    return next(iter(own or fitting), None)


def _paper_line(section: Section, paper: Published, known: Publications) -> Line:
    cells = ["" if v is None else f"{v:.1f}" for v in paper.values.values()]
    marks = _marks(section, paper.ensemble, paper.selection)
    if paper.evidence == "unverified":
        marks += "?"
        section.notes["? not verified against the paper"] = None
    name = f"{paper.label} [{paper.source}]"
    told = {"quoted": "quoted by others", "users": "measured by users"}.get(paper.evidence)
    parts = [known.sources[paper.source], told, paper.note]
    section.notes[f"[{paper.source}] {parts[0]}"] = None
    if told or paper.note:
        extra = "; ".join(part for part in parts[1:] if part)
        section.notes[f"{paper.label}: {extra}"] = None
    chosen = CHOSEN.get(paper.selection, paper.selection)
    return Line("paper", name, cells, "", chosen, marks)


def _our_line(section: Section, row: Row) -> Line:
    cells = []
    for metric in METRICS:
        mean, deviation = row.mean(metric)
        cell = "" if mean is None else f"{mean:.1f}"
        cells.append(cell if deviation is None else f"{cell} ± {deviation:.1f}")
    chosen = "authors" if row.fact("official") else row.fact("select_on")
    marks = _marks(section, row.ensemble, chosen)
    if row.fact("rerank_k") and not row.variant:
        section.notes[f"{row.name}: the {row.fact('rerank_k')} best are re-ranked"] = None
    if row.intervals:
        note = "95 % interval: bootstrap over images with their captions, of the mean over seeds"
        section.notes[note] = None
    if len(row.runs) > 1:
        section.notes["±: standard deviation over seeds"] = None
    seeds = "" if row.seeds == [None] else str(len(row.seeds))
    return Line("ours", f"{row.name} (ours)", cells, seeds, str(chosen or "?"), marks)


def _marks(section: Section, ensemble: int, selection: str | None) -> str:
    marks = ""
    if ensemble > 1:
        marks += "*"
        section.notes["* an ensemble of several models; compare with ensembles only"] = None
    if selection == "test":
        marks += "†"
        section.notes["† checkpoint chosen on the test split: optimistic"] = None
    return marks


def _delta_line(section: Section, row: Row, paper: Published) -> Line:
    cells = []
    for metric in METRICS:
        mean, printed = row.mean(metric)[0], paper.values[metric]
        cells.append("" if mean is None or printed is None else f"{mean - printed:+.1f}")
    ours = "test" if row.fact("select_on") == "test" else "val"
    marks = ""
    if not row.fact("official") and (paper.selection == "test") != (ours == "test"):
        marks = "‡"
        section.notes["‡ the two were chosen on different splits: the difference favours test"] = (
            None
        )
    if row.fact("trained_on") is None:
        note = f"{row.name}: training data not known; set against {paper.label}"
        section.notes[note] = None
    return Line("delta", f"ours - {paper.label}", cells, marks=marks)


# The three formats


def markdown(tables: Sequence[Section]) -> str:
    """Tables that read well as text, too."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Section) -> str:
    lines = [list(HEAD), *([_shown(line, _plain), *line.cells, line.seeds, line.chosen]
                           for line in table.lines)]  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]

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
            cells = [_shown(line, _tex), *map(_tex, line.cells), line.seeds, _tex(line.chosen)]
            body.append(" & ".join(cells) + r" \\")
        head = " & ".join(map(_tex, HEAD)) + r" \\"
        notes = r" \\ ".join(_tex(note) for note in table.notes)
        made += [
            r"\begin{table}",
            rf"\caption{{{_tex(table.title)}}}",
            r"\small",
            r"\begin{tabular}{l" + "r" * (len(HEAD) - 1) + "}",
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
          "low", "high", "seeds", "paper", "delta", "ensemble", "chosen_on", "source", "evidence",
          "note")  # fmt: skip


def table_csv(rows: Sequence[Row], known: Publications, tables: Sequence[Section]) -> str:
    """One line a number, full precision: ours with what they are set against, then the papers'."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        paper = reference(row, known.of(row.data, row.protocol, row.variant))
        for metric in METRICS:
            writer.writerow(_our_record(row, metric, paper))
    for table in tables:
        for paper in known.of(table.data, table.protocol):
            for metric, value in paper.values.items():
                if value is not None:
                    writer.writerow(_paper_record(paper, metric, value, table.split))
    return out.getvalue()


def _our_record(row: Row, metric: str, paper: Published | None) -> dict[str, Any]:
    mean, deviation = row.mean(metric)
    interval, printed = row.intervals.get(metric), paper.values[metric] if paper else None
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
        "chosen_on": "authors" if row.fact("official") else row.fact("select_on"),
        "source": paper.source if paper else None,
        "evidence": paper.evidence if paper else None,
        "note": paper.note if paper else None,
    }
    return {key: "" if value is None else value for key, value in record.items()}


def _paper_record(paper: Published, metric: str, value: float, split: str) -> dict[str, Any]:
    return {
        "kind": "paper",
        "data": paper.test,
        "split": split,
        "protocol": paper.protocol,
        "model": paper.model,
        "name": paper.label,
        "metric": metric,
        "value": value,
        "ensemble": paper.ensemble,
        "chosen_on": paper.selection,
        "source": paper.source,
        "evidence": paper.evidence,
        "note": paper.note,
    }
