"""Position embeddings at another resolution, against a bicubic kernel written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from itr.errors import CheckpointError
from itr.nn.position import resize_positions


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75, torch's bicubic."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def weights(old: int, new: int, align_corners: bool) -> Tensor:
    """[new, old]: how much each old place counts for each new one; edges are repeated."""
    table = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        at = i * (old - 1) / (new - 1) if align_corners else (i + 0.5) * old / new - 0.5
        first = int(at // 1) - 1
        for j in range(first, first + 4):
            table[i, min(max(j, 0), old - 1)] += cubic(at - j)
    return table


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("grid", [(3, 3), (6, 6), (5, 7)])
def test_resizing_equals_the_reference(grid: tuple[int, int], align_corners: bool) -> None:
    table = torch.randn(17, 5, generator=torch.Generator().manual_seed(0))
    found = resize_positions(table, grid, align_corners)
    square = table[1:].double().view(4, 4, 5)
    rows, columns = (weights(4, size, align_corners) for size in grid)
    expected = torch.einsum("ai,bj,ijd->abd", rows, columns, square).flatten(0, 1)
    assert torch.equal(found[0], table[0])
    torch.testing.assert_close(found[1:].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(resize_positions(table[None], grid, align_corners)[0], found)


def test_an_equal_grid_returns_the_same_table() -> None:
    table = torch.randn(1, 10, 4).half()
    assert resize_positions(table, 3) is table
    assert resize_positions(table, 4).dtype == torch.float16


@pytest.mark.parametrize("rows", [1, 4, 18])
def test_tables_without_a_square_grid_are_rejected(rows: int) -> None:
    with pytest.raises(CheckpointError, match="square number of patches"):
        resize_positions(torch.zeros(1, rows, 4), 3)
