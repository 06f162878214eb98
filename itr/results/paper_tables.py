"""Paper against ours. One table for each data set and protocol; `formats` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from itr.results.collect import Row
from itr.results.columns import Kind, kind_of
from itr.results.published import Published, PublishedResults
from itr.results.terminal_tables import chosen_on_test

CHOSEN = {"zero-shot": "nothing (zero-shot)", "last": "last epoch", "unknown": "?", None: "?"}
TOLD = {"quoted": "quoted by others", "users": "measured by users"}
UNKNOWN = "unknown"


@dataclass
class Line:
    """One line of a table."""

    kind: str  # paper | ours | interval | delta
    name: str
    cells: list[str]
    seeds: str = ""
    chosen: str = ""
    trained: str = ""
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
    def kind(self) -> Kind:
        """Its columns."""
        return kind_of(self.protocol)

    @property
    def title(self) -> str:
        """Data set, split, protocol, sizes."""
        return f"{self.data}, {self.split} split, protocol {self.protocol}{self.size}"

    def note(self, text: str) -> None:
        """Add a line below the table, once."""
        self.notes[text] = None


def sections(rows: Sequence[Row], known: PublishedResults, everyone: bool = False) -> list[Section]:
    """A table for each data set and protocol among ``rows``; ``everyone``: also published methods
    that no row is of. Ours follow what was published of the same method on the same split."""
    made: dict[tuple[str, str, str, str], Section] = {}
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        place = (row.data, row.split, row.protocol, _size(row))
        made.setdefault(place, Section(*place))
        grouped.setdefault(place, []).append(row)
    for place, section in made.items():
        ours = sorted(grouped[place], key=lambda row: (str(row.fact("model")), row.name))
        printed = known.of(section.data, section.protocol, section.split)
        models = dict.fromkeys(str(row.fact("model")) for row in ours)
        others = dict.fromkeys(row.model for row in printed) if everyone else {}
        for model in {**models, **others}:
            papers = [row for row in printed if row.model == model]
            _method(section, [r for r in ours if str(r.fact("model")) == model], papers, known)
        _misprints(section, {**models, **others}, known)
    return [made[place] for place in sorted(made)]


def _size(row: Row) -> str:
    images, captions, ties = (row.fact(key) for key in ("n_images", "n_captions", "tie_break"))
    if not images:
        return ""
    if captions is None:
        return f" ({images:,} images, {row.fact('n_classes')} classes)"
    folds = f" in {row.fact('folds')} folds" if row.fact("folds") else ""
    return f" ({images:,} images, {captions:,} captions{folds}, {ties} ties)"


def _method(
    section: Section, ours: Sequence[Row], papers: Sequence[Published], known: PublishedResults
) -> None:
    for paper in papers:
        section.lines.append(_paper_line(section, paper, known))
    for row in ours:
        section.lines.append(_our_line(section, row, known))
        if row.intervals:
            found = [row.intervals.get(metric) for metric in section.kind.metrics]
            cells = [f"{i.low:.1f}–{i.high:.1f}" if i else "" for i in found]
            section.lines.append(Line("interval", "95 % interval", cells))
        against = reference(row, papers)
        if against is not None:
            section.lines.append(_delta_line(section, row, against, known))
        elif row.fact("trained_on") is None and any(_alike(row, paper) for paper in papers):
            trains = ", ".join(dict.fromkeys(paper.train for paper in papers if paper.reference))
            section.note(
                f"{row.name}: training data not known, so set against no row; evaluate again "
                f"with trained_on= one of {trains}"
            )


def _alike(row: Row, paper: Published) -> bool:
    """Whether ``row`` may be set against ``paper``, but for what it was trained on."""
    count = row.ensemble
    same = (paper.model, paper.stage) == (row.fact("model"), row.stage)
    return paper.reference and same and paper.ensemble in (count, min(count, 2))


def reference(row: Row, papers: Sequence[Published]) -> Published | None:
    """The printed row that ``row`` is set against: of its model, its training data and as many
    models (else two for several). Training data that are not known match where there is one."""
    trained, model = row.fact("trained_on"), row.fact("model")
    trains = {paper.train for paper in papers if paper.reference and paper.model == model}
    if trained is None and len(trains) == 1:
        (trained,) = trains
    fitting = [paper for paper in papers if _alike(row, paper) and paper.train == trained]
    return max(fitting, key=lambda paper: paper.ensemble, default=None)


def chosen(row: Row, known: PublishedResults) -> str | None:
    """On which split the checkpoint was chosen ("val,test" of an ensemble's); of an authors'
    file what is known of them."""
    if not row.fact("official"):
        return row.fact("select_on")
    facts = (row.fact(key) for key in ("official", "model", "trained_on", "select_on"))
    count = row.ensemble
    each = [parts if len(parts := str(f).split(",")) == count else [str(f)] * count for f in facts]
    found = [
        str(known.chosen(model, None if trained == "None" else trained) or UNKNOWN)
        if official == "True"
        else select
        for official, model, trained, select in zip(*each, strict=True)
    ]
    return ",".join(dict.fromkeys(found))


def _paper_line(section: Section, paper: Published, known: PublishedResults) -> Line:
    values = (paper.values.get(metric) for metric in section.kind.metrics)
    cells = ["" if value is None else f"{value:.1f}" for value in values]
    marks = _marks(section, paper.ensemble, paper.selection)
    if paper.evidence == "unverified":
        marks += "?"
        section.note("? not verified against the paper")
    section.note(f"[{paper.source}] {known.sources[paper.source]}")
    stage = ", first stage" if paper.stage else ""
    parts = [paper.backbone, TOLD.get(paper.evidence), paper.note]
    if extra := "; ".join(part for part in parts if part):
        section.note(f"{paper.label}{stage}: {extra}")
    name = f"{paper.label}{stage} [{paper.source}]"
    picked = CHOSEN.get(paper.selection, paper.selection)
    return Line("paper", name, cells, "", picked, _trained(paper), marks)


def _trained(paper: Published) -> str:
    pretrained = paper.pretrain if paper.pretrain != paper.train else ""
    return f"{paper.train} (after {pretrained})" if pretrained else paper.train


def _our_line(section: Section, row: Row, known: PublishedResults) -> Line:
    cells = []
    for metric in section.kind.metrics:
        mean, deviation = row.mean(metric)
        cell = "" if mean is None else f"{mean:.1f}"
        cells.append(cell if deviation is None else f"{cell} ± {deviation:.1f}")
    picked = chosen(row, known)
    marks = _marks(section, row.ensemble, picked)
    depth = row.fact("rerank_k")
    if depth == UNKNOWN:
        section.note(f"{row.name}: scores of a file, which does not say whether they are re-ranked")
    elif depth and not row.variant:
        section.note(f"{row.name}: the {depth} best are re-ranked")
    if row.fact("within") and not row.variant:
        section.note(f"{row.name}: i2i and t2t are of the {row.fact('within')}")
    if skipped := row.fact("directions_skipped"):
        section.note(f"{row.name}: not evaluated: {skipped}")
    if row.variant.rpartition("/")[2].startswith("hubness"):
        section.note(f"{row.name}: corrected by {row.fact('hubness_bank') or 'a bank'}")
    if row.intervals:
        section.note(
            "95 % interval: bootstrap over images with their captions, of the mean over seeds"
        )
    if len(row.runs) > 1:
        section.note("±: standard deviation over seeds")
    seeds = "" if row.seeds == [None] else str(len(row.seeds))
    told = ", ".join(CHOSEN.get(one, one) for one in str(picked or UNKNOWN).split(","))
    told = f"authors: {told}" if row.fact("official") else told
    return Line("ours", f"{row.name} (ours)", cells, seeds, told, row.fact("trained_on") or "?",
                marks)  # fmt: skip


def _marks(section: Section, ensemble: int, selection: str | None) -> str:
    marks = ""
    if ensemble > 1:
        marks += "*"
        section.note("* an ensemble of several models; compare with ensembles only")
    if chosen_on_test(selection):
        marks += "†"
        section.note("† checkpoint chosen on the test split: optimistic")
    return marks


def _delta_line(section: Section, row: Row, paper: Published, known: PublishedResults) -> Line:
    cells = []
    for metric in section.kind.metrics:
        mean, printed = row.mean(metric)[0], paper.values.get(metric)
        cells.append("" if mean is None or printed is None else f"{mean - printed:+.1f}")
    picked, marks = chosen(row, known), ""
    told = UNKNOWN not in (picked, paper.selection)
    if told and chosen_on_test(paper.selection) != chosen_on_test(picked):
        marks = "‡"
        section.note("‡ the two were chosen on different splits: the difference favours test")
    if row.fact("trained_on") is None:
        section.note(f"{row.name}: training data not known; set against {paper.label}")
    if paper.ensemble != row.ensemble:
        section.note(f"{row.name}: {row.ensemble} models, set against {paper.ensemble}")
    captions = row.fact("n_captions")
    if paper.captions and captions and paper.captions != captions:
        section.note(f"{row.name}: {captions:,} captions, {paper.label}: {paper.captions:,}")
    return Line("delta", f"ours - {paper.label}", cells, marks=marks)


def _misprints(section: Section, models: dict[str, None], known: PublishedResults) -> None:
    shown = {note.partition("]")[0].removeprefix("[") for note in section.notes}
    for one in known.misprints:
        if one["test"] == section.data and (one["model"] in models or one["where"] in shown):
            section.note(f"misprint [{one['where']}]: {one['what']}")
