"""The report of ``itr data check``: counts and findings, as tables or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from itr.data.checks.fingerprint import content_hash
from itr.data.records import Split
from itr.terminal import PlainConsole, printable

NOTE, WARNING, REFUSED = 0, 1, 2  # levels; the exit code is the highest one
FAILED = 3  # exit code if the check itself failed
LEVELS = ("note", "warning", "refused")
VERDICTS = (
    "clean",
    "faults that training skips, converts or warns about",
    "training would refuse this data",
)
COLORS = ("cyan", "yellow", "red")


@dataclass(frozen=True)
class Finding:
    """A note or fault; ``message`` names the file and what is wrong."""

    level: int
    layout: str
    split: str
    message: str


@dataclass
class SplitReport:
    """Counts, statistics and content hash of one split of a layout."""

    layout: str
    split: str
    source: str
    images: int
    captions: int
    hash: str
    statistics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, split: Split, statistics: dict[str, Any]) -> SplitReport:
        """The report of ``split`` with its ``statistics``."""
        return cls(
            split.layout,
            split.name,
            split.source,
            split.n_images,
            split.n_captions,
            content_hash(split),
            statistics,
        )


@dataclass
class DatasetReport:
    """The splits of one folder, and the findings about them."""

    root: str
    splits: list[SplitReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, level: int, layout: str, split: str, message: str) -> None:
        """Add a finding, unless another split of the layout has the same one."""
        if not any(f.message == message and f.layout == layout for f in self.findings):
            self.findings.append(Finding(level, layout, split, message))

    @property
    def exit_code(self) -> int:
        """The highest level: 0 clean, 1 tolerated by training, 2 refused by training."""
        return max((finding.level for finding in self.findings), default=NOTE)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "root": self.root,
            "exit_code": self.exit_code,
            "verdict": VERDICTS[self.exit_code],
            "splits": [vars(split) for split in self.splits],
            "findings": [{**vars(f), "level": LEVELS[f.level]} for f in self.findings],
        }

    def show(self, console: PlainConsole) -> None:
        """Print the tables, the findings (worst last) and the verdict."""
        for table in self._tables():
            console.print(table)
        for line in self._feature_lines():
            console.print(line, soft_wrap=True)
        for finding in sorted(self.findings, key=lambda f: f.level):
            where = " ".join(name for name in (finding.layout, finding.split) if name)
            label = (f"{LEVELS[finding.level]:>8}", COLORS[finding.level])
            text = f"  {printable(where)}: {printable(finding.message)}"
            console.print(Text.assemble(label, text), soft_wrap=True)
        verdict = (VERDICTS[self.exit_code], COLORS[self.exit_code])
        console.print(Text.assemble(f"{printable(self.root)}: ", verdict), soft_wrap=True)

    def _tables(self) -> Iterator[Table]:
        """One table per layout, for 80 columns."""
        for layout in dict.fromkeys(split.layout for split in self.splits):
            table = Table(
                title=layout, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
            )
            table.add_column("split")
            for name in ("images", "captions", "each", "words", "max"):
                table.add_column(name, justify="right")
            table.add_column("usable", no_wrap=True)
            table.add_column("content", no_wrap=True)
            for split in self.splits:
                if split.layout == layout:
                    table.add_row(*_row(split))
            yield table

    def _feature_lines(self) -> Iterator[str]:
        """One line per region array."""
        for split in self.splits:
            values = split.statistics
            if "rows_not_finite" in values:
                yield (
                    f"{split.layout} {split.split}: features from {values['min']:.4g} to "
                    f"{values['max']:.4g}, mean {values['mean']:.4g}, std {values['std']:.4g}, "
                    f"{100 * values['zeros']:.1f} % zeros"
                )


def _row(split: SplitReport) -> list[str]:
    values = split.statistics
    low, high = values["captions_per_image"]
    return [
        split.split,
        f"{split.images:,}",
        f"{split.captions:,}",
        str(low) if low == high else f"{low}-{high}",
        f"{values['words_mean']:.1f}",
        str(values["words_longest"]),
        values.get("summary", ""),
        split.hash,
    ]
