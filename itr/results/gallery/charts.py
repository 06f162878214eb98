"""Draws small SVG charts without scripts; colors come from the page's style sheet.

They follow the reader's light or dark mode and need no extra package, unlike the figures for papers
(`itr.results.plots`), which a page cannot restyle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 10, 40  # room for ticks such as 0.0025


@dataclass(frozen=True)
class Curve:
    """A named line, with the area below it if ``filled``; ``style`` is a CSS class of the page."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str
    filled: bool = False


def chart(curves: Sequence[Curve], x_label: str, y_label: str, log_x: bool = False) -> str:
    """An SVG of ``curves`` over common axes, with a legend."""
    x = np.concatenate([curve.x for curve in curves])
    y = np.concatenate([curve.y for curve in curves])
    low_x, high_x = float(x.min()), float(x.max())
    low_y = min(0.0, float(y.min())) if any(c.filled for c in curves) else float(y.min())
    high_y = float(y.max())
    high_x, high_y = max(high_x, low_x + 1e-9), max(high_y, low_y + 1e-9)

    def place(values: np.ndarray) -> np.ndarray:
        if log_x:
            part = np.log(values / low_x) / np.log(high_x / low_x)
        else:
            part = (values - low_x) / (high_x - low_x)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def height(values: np.ndarray) -> np.ndarray:
        return HEIGHT - BOTTOM - (values - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts = [*_axes(low_x, high_x, low_y, high_y, place, height, log_x)]
    for curve in curves:
        points = list(zip(place(curve.x), height(curve.y), strict=True))
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        if curve.filled:
            floor = float(height(np.array([low_y]))[0])
            area = f"{points[0][0]:.1f},{floor:.1f} {line} {points[-1][0]:.1f},{floor:.1f}"
            parts.append(f'<polygon class="area {curve.style}" points="{area}"/>')
        parts.append(f'<polyline class="line {curve.style}" points="{line}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 4, x_label, "middle"))
    upright = (TOP + HEIGHT - BOTTOM) / 2
    turn = f'transform="rotate(-90 11 {upright})"'
    parts.append(f'<text x="11" y="{upright}" text-anchor="middle" {turn}>{y_label}</text>')
    names = ", ".join(curve.name for curve in curves)
    body = "".join(parts)
    legend = "".join(f'<span class="key {curve.style}">{curve.name}</span>' for curve in curves)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{y_label} over {x_label}: '
        f'{names}">{body}</svg><div class="legend">{legend}</div>'
    )


def _axes(low_x, high_x, low_y, high_y, place, height, log_x):  # noqa: ANN001, ANN202
    left, right, floor = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    yield f'<line class="axis" x1="{left}" y1="{floor}" x2="{right}" y2="{floor}"/>'
    for value in _ticks(low_y, high_y):
        y = float(height(np.array([value]))[0])
        yield f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield _text(left - 5, y + 4, f"{value:g}", "end")
    ticks = [v for v in (1, 2, 5, 10, 20, 50, 100) if low_x <= v <= high_x] if log_x else None
    for value in ticks or _ticks(low_x, high_x):
        yield _text(float(place(np.array([value]))[0]), floor + 15, f"{value:g}", "middle")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers between ``low`` and ``high``."""
    step = 10 ** np.floor(np.log10((high - low) / count))
    step *= next(f for f in (1, 2, 2.5, 5, 10) if (high - low) / (step * f) <= count)
    first = np.ceil(low / step - 1e-9)
    return [
        round(float(k * step), 10) + 0.0 for k in np.arange(first, np.floor(high / step + 1e-9) + 1)
    ]


def density(counts: np.ndarray, edges: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Bin centers and percentages of a histogram, merged into at most ``bins`` bins."""
    width = max(1, -(-len(counts) // bins))
    padding = -len(counts) % width
    merged = np.pad(counts, (0, padding)).reshape(-1, width).sum(axis=1)
    step = edges[1] - edges[0]
    centers = edges[0] + step * width * (np.arange(len(merged)) + 0.5)
    return centers, 100 * merged / max(1, merged.sum())
