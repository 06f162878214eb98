"""Evaluation protocols: which images and captions of a split are ranked, and what counts as a
match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from itr.errors import ConfigError, nearest


@dataclass(frozen=True)
class Protocol:
    """A named way to evaluate a split.

    ``images``: the number of images that the split must have (None: any). ``fold``: rank
    contiguous blocks of this many images and average their metrics (None: rank the whole split).
    ``captions``: use only the first so many captions of each image (None: all). ``ground_truth``:
    take the matches from ``cxc`` or ``eccv`` (None: a caption matches its own image).
    """

    name: str
    images: int | None = None
    fold: int | None = None
    captions: int | None = None
    ground_truth: str | None = None

    @property
    def caption_policy(self) -> str:
        """Which captions of an image are ranked, as results report it."""
        if self.ground_truth is not None:
            return f"those of {self.ground_truth}"
        return "all" if self.captions is None else f"first {self.captions}"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("full"),
        Protocol("f30k_1k", images=1000),
        Protocol("coco_5k", images=5000),
        Protocol("coco_5k_first5", images=5000, captions=5),
        Protocol("coco_1k_5fold", images=5000, fold=1000),
        Protocol("coco_1k_5fold_first5", images=5000, fold=1000, captions=5),
        Protocol("cxc", ground_truth="cxc"),
        Protocol("eccv", ground_truth="eccv"),
    )
}


def find_protocols(names: Sequence[str]) -> list[Protocol]:
    """Look up protocols by name, without duplicates.

    Raises ConfigError for an unknown name or an empty list.
    """
    if not names:
        raise ConfigError(f"protocol: the list is empty; pass some of {', '.join(PROTOCOLS)}")
    for name in names:
        if name not in PROTOCOLS:
            raise ConfigError(
                f"protocol: '{name}' is unknown{nearest(name, PROTOCOLS)}; expected one of "
                f"{', '.join(PROTOCOLS)}"
            )
    return [PROTOCOLS[name] for name in dict.fromkeys(names)]
