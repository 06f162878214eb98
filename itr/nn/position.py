"""Resizes the position embeddings of vision transformers. G patches per side, D width."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from itr.errors import CheckpointError


def resize_positions(
    table: Tensor, grid: int | tuple[int, int], align_corners: bool = False
) -> Tensor:
    """``table`` [1 + G*G, D] (or [1, 1 + G*G, D]) resized to ``grid`` (rows, columns) of patches.

    The first row, of the class token, is copied; the square of patches is interpolated bicubically
    without antialiasing. ``align_corners`` is False in ALBEF and Multi-SEA, True in ALIP's code.
    Returns ``table`` if the grids are equal. Raises CheckpointError unless ``table`` is a class
    token and a square.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    patches, width = table.shape[-2] - 1, table.shape[-1]
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not patches:
        raise CheckpointError(
            f"a position embedding of shape {tuple(table.shape)}: expected one row for the class "
            "token and a square number of patches; the checkpoint has another architecture"
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
