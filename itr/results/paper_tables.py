"""Compares our rows with published numbers: one table per dataset, split and protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from itr.results.collect import ResultRow
from itr.results.published import PublishedResults, PublishedRow
from itr.results.terminal_tables import selected_on_test
from itr.tasks.columns import ColumnSet, columns_of

SELECTION_TEXT = {"zero-shot": "none (zero-shot)", "last": "last epoch", "unknown": "?", None: "?"}
EVIDENCE_TEXT = {"quoted": "quoted by others", "users": "measured by users"}
UNKNOWN = "unknown"


@dataclass
class TableLine:
    """One line of a table."""

    kind: str  # paper | ours | interval | delta
    name: str
    cells: list[str]
    seeds: str = ""
    training: str = ""
    cost: str = ""  # of training
    selection: str = ""
    trained: str = ""
    marks: str = ""


@dataclass
class PaperTable:
    """One table: what was evaluated, its lines, and the notes below it."""

    data: str
    split: str
    protocol: str
    size: str
    lines: list[TableLine] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def columns(self) -> ColumnSet:
        """The metric columns."""
        return columns_of(self.protocol)

    @property
    def title(self) -> str:
        """Dataset, split, protocol, sizes."""
        return f"{self.data}, {self.split} split, protocol {self.protocol}{self.size}"

    def note(self, text: str) -> None:
        """Add a note below the table, without duplicates."""
        self.notes[text] = None


def paper_tables(
    rows: Sequence[ResultRow], published: PublishedResults, all_methods: bool = False
) -> list[PaperTable]:
    """A table for each dataset, split and protocol in ``rows``.

    Published rows of a method come before ours. ``all_methods``: include published methods of
    which there is no row in ``rows``.
    """
    tables: dict[tuple[str, str, str, str], PaperTable] = {}
    grouped: dict[tuple[str, ...], list[ResultRow]] = {}
    for row in rows:
        key = (row.data, row.split, row.protocol, _size(row))
        tables.setdefault(key, PaperTable(*key))
        grouped.setdefault(key, []).append(row)
    for key, table in tables.items():
        _fill(table, grouped[key], published, all_methods)
    return [tables[key] for key in sorted(tables)]


def _fill(
    table: PaperTable, rows: Sequence[ResultRow], published: PublishedResults, all_methods: bool
) -> None:
    ours = sorted(rows, key=lambda row: (str(row.fact("model")), row.name))
    best = _best(ours, table.columns.main)
    comparable = published.of(table.data, table.protocol, table.split)
    models = dict.fromkeys(str(row.fact("model")) for row in ours)
    if all_methods:
        models |= dict.fromkeys(row.model for row in comparable)
    for model in models:
        papers = [row for row in comparable if row.model == model]
        for paper in papers:
            table.lines.append(_paper_line(table, paper, published))
        for row in (row for row in ours if str(row.fact("model")) == model):
            table.lines += _our_lines(table, row, papers, published, row is best)
    _add_misprints(table, models, published)


def _best(rows: Sequence[ResultRow], metric: str) -> ResultRow | None:
    """The row with the highest ``metric``; None for fewer than two rows."""
    with_metric = [row for row in rows if row.mean(metric)[0] is not None]
    if len(with_metric) < 2:
        return None
    return max(with_metric, key=lambda row: row.mean(metric)[0] or 0.0)


def _size(row: ResultRow) -> str:
    images, captions, rule = (row.fact(key) for key in ("n_images", "n_captions", "tie_break"))
    if not images:
        return ""
    if captions is None:
        of_what = {name: row.fact(f"n_{name}") for name in ("items", "classes")}
        known = [f", {count:,} {name}" for name, count in of_what.items() if count is not None]
        return f" ({images:,} images{''.join(known)})"
    folds = f" in {row.fact('folds')} folds" if row.fact("folds") else ""
    return f" ({images:,} images, {captions:,} captions{folds}, {rule} ties)"


def _our_lines(
    table: PaperTable,
    row: ResultRow,
    papers: Sequence[PublishedRow],
    published: PublishedResults,
    is_best: bool,
) -> list[TableLine]:
    """Our row, its intervals, and its difference from the published counterpart."""
    lines = [_our_line(table, row, published, is_best)]
    if row.intervals:
        intervals = [row.intervals.get(metric) for metric in table.columns.metrics]
        cells = [f"{i.low:.1f}–{i.high:.1f}" if i else "" for i in intervals]
        lines.append(TableLine("interval", "95 % interval", cells))
    counterpart = published_counterpart(row, papers)
    if counterpart is not None:
        lines.append(_delta_line(table, row, counterpart, published))
    elif row.fact("trained_on") is None and any(_comparable(row, paper) for paper in papers):
        trains = ", ".join(dict.fromkeys(paper.train for paper in papers if paper.reference))
        table.note(
            f"{row.name}: training data unknown, so not compared; evaluate again with "
            f"trained_on= one of {trains}"
        )
    return lines


def _comparable(row: ResultRow, paper: PublishedRow) -> bool:
    """Whether ``row`` can be compared with ``paper``, apart from the training data."""
    count = row.ensemble
    same = (paper.model, paper.stage) == (row.fact("model"), row.stage)
    if (tower := row.fact("tower")) or paper.tower:
        same = same and tower in paper.tower
    return paper.reference and same and paper.ensemble in (count, min(count, 2))


def published_counterpart(row: ResultRow, papers: Sequence[PublishedRow]) -> PublishedRow | None:
    """The published row that ``row`` is compared with.

    It has the same model, training data and number of models (or two, for an ensemble of several).
    Unknown training data match if there is only one candidate. A tower that was not trained further
    is compared with the row of its own name.
    """
    trained, model = row.fact("trained_on"), row.fact("model")
    if row.fact("tower") and trained is None:
        return next((paper for paper in papers if _comparable(row, paper)), None)
    trains = {paper.train for paper in papers if paper.reference and paper.model == model}
    if trained is None and len(trains) == 1:
        (trained,) = trains
    matches = [p for p in papers if _comparable(row, p) and p.train == trained]
    return max(matches, key=lambda paper: paper.ensemble, default=None)


def checkpoint_selection(row: ResultRow, published: PublishedResults) -> str | None:
    """The split on which the checkpoint was selected ("val,test" for an ensemble).

    For an authors' checkpoint, what is published about its selection.
    """
    if not row.fact("official"):
        return row.fact("select_on")
    facts = (row.fact(key) for key in ("official", "model", "trained_on", "select_on"))
    count = row.ensemble
    each = [words if len(words := str(f).split(",")) == count else [str(f)] * count for f in facts]
    selections = [
        str(published.selection(model, None if trained == "None" else trained) or UNKNOWN)
        if official == "True"
        else select
        for official, model, trained, select in zip(*each, strict=True)
    ]
    return ",".join(dict.fromkeys(selections))


def _paper_line(table: PaperTable, paper: PublishedRow, published: PublishedResults) -> TableLine:
    values = (paper.values.get(metric) for metric in table.columns.metrics)
    cells = ["" if value is None else f"{value:.1f}" for value in values]
    marks = _marks(table, paper.ensemble, paper.selection)
    if paper.evidence == "unverified":
        marks += "?"
        table.note("? not verified against the paper")
    table.note(f"[{paper.source}] {published.sources[paper.source]}")
    stage = ", first stage" if paper.stage else ""
    details = [paper.backbone, EVIDENCE_TEXT.get(paper.evidence), paper.note]
    if text := "; ".join(detail for detail in details if detail):
        table.note(f"{paper.label}{stage}: {text}")
    return TableLine(
        "paper",
        f"{paper.label}{stage} [{paper.source}]",
        cells,
        selection=SELECTION_TEXT.get(paper.selection, paper.selection),
        trained=_training_data(paper),
        marks=marks,
    )


def _training_data(paper: PublishedRow) -> str:
    pretrained = paper.pretrain if paper.pretrain != paper.train else ""
    return f"{paper.train} (after {pretrained})" if pretrained else paper.train


def _our_line(
    table: PaperTable, row: ResultRow, published: PublishedResults, is_best: bool
) -> TableLine:
    cells = []
    for metric in table.columns.metrics:
        mean, deviation = row.mean(metric)
        cell = "" if mean is None else f"{mean:.1f}"
        cells.append(cell if deviation is None else f"{cell} ± {deviation:.1f}")
    selection = checkpoint_selection(row, published)
    marks = _marks(table, row.ensemble, selection)
    if is_best:
        marks += "◆"
        headings = dict(table.columns.columns)
        table.note(f"◆ best of our rows by {headings[table.columns.main]}")
    _add_notes(table, row)
    words = str(selection or UNKNOWN).split(",")
    text = ", ".join(SELECTION_TEXT.get(word, word) for word in words)
    return TableLine(
        "ours",
        f"{row.name} (ours)",
        cells,
        seeds="" if row.seeds == [None] else str(len(row.seeds)),
        training=row.training,
        cost=row.cost_text,
        selection=f"authors: {text}" if row.fact("official") else text,
        trained=row.fact("trained_on") or "?",
        marks=marks,
    )


def _add_notes(table: PaperTable, row: ResultRow) -> None:
    depth = row.fact("rerank_k")
    if depth == UNKNOWN:
        table.note(f"{row.name}: from a score file; whether it was re-ranked is unknown")
    elif depth and not row.variant:
        table.note(f"{row.name}: the best {depth} candidates are re-ranked")
    if row.fact("within_modality") and not row.variant:
        table.note(f"{row.name}: i2i and t2t use {row.fact('within_modality')} scores")
    if skipped := row.fact("directions_skipped"):
        table.note(f"{row.name}: not evaluated: {skipped}")
    if row.variant.rpartition("/")[2].startswith("hubness"):
        bank = row.fact("hubness_bank") or "a query bank"
        table.note(f"{row.name}: hubness correction with {bank}")
    if row.intervals:
        table.note(
            "95 % interval: bootstrap over images with their captions, of the mean over seeds"
        )
    if row.cost_text:
        table.note("cost: of training, mean over seeds; peak GPU memory of a device; parameters")
    if len(row.runs) > 1:
        table.note("±: standard deviation over seeds")


def _marks(table: PaperTable, ensemble: int, selection: str | None) -> str:
    marks = ""
    if ensemble > 1:
        marks += "*"
        table.note("* ensemble of several models; compare with ensembles only")
    if selected_on_test(selection):
        marks += "†"
        table.note("† checkpoint selected on the test split: optimistic")
    return marks


def _delta_line(
    table: PaperTable, row: ResultRow, paper: PublishedRow, published: PublishedResults
) -> TableLine:
    cells = []
    for metric in table.columns.metrics:
        mean, printed = row.mean(metric)[0], paper.values.get(metric)
        cells.append("" if mean is None or printed is None else f"{mean - printed:+.1f}")
    selection, marks = checkpoint_selection(row, published), ""
    known = UNKNOWN not in (selection, paper.selection)
    if known and selected_on_test(paper.selection) != selected_on_test(selection):
        marks = "‡"
        table.note("‡ checkpoints selected on different splits: the difference favors test")
    if row.fact("trained_on") is None and not paper.tower:
        table.note(f"{row.name}: training data unknown; compared with {paper.label}")
    if paper.ensemble != row.ensemble:
        table.note(f"{row.name}: {row.ensemble} models, compared with {paper.ensemble}")
    captions = row.fact("n_captions")
    if paper.captions and captions and paper.captions != captions:
        table.note(f"{row.name}: {captions:,} captions, {paper.label}: {paper.captions:,}")
    return TableLine("delta", f"ours - {paper.label}", cells, marks=marks)


def _add_misprints(table: PaperTable, models: dict[str, None], published: PublishedResults) -> None:
    sources = {note.partition("]")[0].removeprefix("[") for note in table.notes}
    for one in published.misprints:
        if one["test"] == table.data and (one["model"] in models or one["where"] in sources):
            table.note(f"misprint [{one['where']}]: {one['what']}")
