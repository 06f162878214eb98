"""The style of the figures, and how they are written."""

from __future__ import annotations

import csv
import importlib
import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr.errors import ConfigError
from itr.files import atomic_write, explain_write_error
from itr.results.escapes import csv_cell, one_line

# Okabe and Ito (2008): can be told apart with any color vision, and in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLUMN, PAGE = 3.4, 7.0  # inches, of a two-column paper
STYLE: Any = {
    "font.family": "serif",
    "font.serif": ["STIXGeneral", "DejaVu Serif"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "text.parse_math": False,  # a name may hold a $
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "savefig.dpi": 300,
}


@dataclass
class Plot:
    """A figure with its numbers. ``caption`` says what it is of."""

    name: str  # of the files
    figure: Any
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


def pyplot_free() -> Any:
    """``matplotlib.figure.Figure``, without a window system. Raises ConfigError if missing."""
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise ConfigError(
            "itr results plot: matplotlib is not installed; run pip install 'itr-suite[plots]'"
        ) from error


@contextmanager
def in_style() -> Iterator[None]:
    """The style, for what is drawn and saved in the block."""
    pyplot_free()
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the CSV has the name
        yield


def shown(name: str, width: int = 34) -> str:
    """A name of ours in a figure, on as many lines as it needs."""
    return "\n".join(textwrap.wrap(one_line(name), width)) or "?"


def save(plot: Plot, folder: Path) -> list[Path]:
    """Write the PNG, the PDF and the CSV of ``plot``; returns the paths."""
    width, height = plot.figure.get_size_inches()
    lines = textwrap.wrap(one_line(plot.caption), int(width * 22))
    below = 0.13 * len(lines) + 0.08  # inches
    plot.figure.set_size_inches(width, height + below)
    share = below / (height + below)  # of the caption
    plot.figure.set_layout_engine("constrained", rect=(0, share, 1, 1 - share))
    plot.figure.text(
        0.01, 0.04 / (height + below), "\n".join(lines), fontsize=6, color="#444444", va="bottom"
    )
    paths = [folder / f"{plot.name}{ending}" for ending in (".png", ".pdf", ".csv")]
    with explain_write_error(folder, "the figures", "pass another --out"):
        for path in paths[:2]:
            content = io.BytesIO()
            metadata = {"Title": one_line(plot.caption)}
            plot.figure.savefig(content, format=path.suffix[1:], metadata=metadata)
            with atomic_write(path) as file:
                file.write(content.getvalue())
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(plot.header)
        writer.writerows([csv_cell(cell) for cell in row] for row in plot.rows)
        with atomic_write(paths[2]) as file:
            file.write(text.getvalue().encode())
    return paths
