"""Overlays a coarse heat map on an image. H, W: size of the image; g: size of the map."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Knots (position, value) of the jet color map; 256 levels in between, as in plotting libraries.
JET = (
    ((0, 0), (0.35, 0), (0.66, 1), (0.89, 1), (1, 0.5)),
    ((0, 0), (0.125, 0), (0.375, 1), (0.64, 1), (0.91, 0), (1, 0)),
    ((0, 0.5), (0.11, 1), (0.34, 1), (0.65, 0), (1, 0)),
)
LEVELS = 256
COLORS = np.stack(
    [np.interp(np.linspace(0, 1, LEVELS), *np.array(knots).T) for knots in JET], axis=1
)
BLUR = 0.02  # standard deviation, relative to the longer side
STRENGTH = 0.7


def smooth_map(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Upscale ``coarse`` [g, g] to [H, W] in 0 to 1: cubic splines, then a Gaussian blur.

    As in ALBEF's visualization notebook. A constant map becomes zeros.
    """
    values = _unit(coarse.astype(np.float64))
    factors = height / values.shape[0], width / values.shape[1]
    large = ndimage.zoom(values, factors, order=3, mode="grid-constant", grid_mode=True)
    large = np.clip(large, values.min(), values.max())
    return _unit(ndimage.gaussian_filter(large, BLUR * max(height, width), mode="reflect"))


def _unit(values: np.ndarray) -> np.ndarray:
    values = values - values.min()
    top = values.max()
    return values / top if top > 0 else values


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend ``image`` [H, W, 3] in 0 to 1 with the colors of ``heat`` [H, W]; hot is opaque."""
    color = COLORS[np.minimum((heat * LEVELS).astype(int), LEVELS - 1)]
    share = (heat**STRENGTH)[..., None]
    return (1 - share) * image + share * color
