"""Position embeddings of a vision transformer at another resolution. G patches a side, D width."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from itr.errors import CheckpointError


def resize_positions(
    table: Tensor, grid: int | tuple[int, int], align_corners: bool = False
) -> Tensor:
    """``table`` [1 + G*G, D] (or [1, 1 + G*G, D]) for ``grid`` (rows, columns) of patches.

    The first row belongs to the class token and is copied; the others, row by row a square of
    patches, are interpolated bicubically without antialiasing. ``align_corners``: False is what
    ALBEF and Multi-SEA do, True what ALIP's code does. The same table where the grids agree.
    Raises CheckpointError for a table that is no class token and a square.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    patches, width = table.shape[-2] - 1, table.shape[-1]
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not patches:
        raise CheckpointError(
            f"a position embedding of shape {tuple(table.shape)}: expected one row for the class "
            "token and a square number of patches; it is of another architecture"
        )
    if (side, side) == (rows, columns):
        return table
    first, rest = table[..., :1, :], table[..., 1:, :]
    square = rest.reshape(1, side, side, width).permute(0, 3, 1, 2).float()
    square = F.interpolate(
        square, size=(rows, columns), mode="bicubic", align_corners=align_corners
    )
    rest = square.permute(0, 2, 3, 1).reshape(*table.shape[:-2], rows * columns, width)
    return torch.cat([first, rest.to(table.dtype)], dim=-2)
