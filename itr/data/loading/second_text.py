"""A second text of the same picture: a synthetic caption, or another human one.

It comes with the data set, from a file that gives one to each image, or (``other_caption``) is
another caption of the same image, drawn anew in every epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from itr.data import counter_rng
from itr.data.records import OTHER_CAPTION, Split
from itr.data.text.open import Tokenizer, TokenTable, build_table
from itr.errors import ConfigError
from itr.view import View


@dataclass
class SecondTexts:
    """The second texts of a split as token ids: one an image, or one a caption."""

    table: TokenTable
    split: Split

    def rows(self, seed: int, epoch: int, captions: np.ndarray) -> np.ndarray:
        """Which rows of ``table`` go with ``captions`` [B]; int64 [B].

        An image with one caption has no other: it comes twice.
        """
        images = self.split.text_to_image[captions]
        if self.split.second != OTHER_CAPTION:
            return images
        first, count = self.split.first_caption[images], self.split.captions_per_image[images]
        draws = counter_rng.uniform(seed, epoch, counter_rng.SECOND, captions)
        step = 1 + (draws * (count - 1)).astype(np.int64)  # 1 .. count - 1: never itself
        return first + (captions - first + step) % count


def open_second(
    split: Split, view: View, tokenizer: Tokenizer, cache: str | Path | None
) -> SecondTexts | None:
    """The second texts that ``view`` asks for; None if it asks for none.

    Raises ConfigError for a split that has none.
    """
    if view.second_text is None:
        return None
    if split.second is None:
        raise ConfigError(
            f"{split.source}: the model wants a second text of each image, and this data set has "
            f"none; type data.second_text={OTHER_CAPTION} (another caption of the image) or "
            "data.second_text=FILE (JSON: image id -> caption)"
        )
    texts = split.texts if split.second == OTHER_CAPTION else split.second
    return SecondTexts(build_table(tokenizer, texts, view.second_text, cache), split)
