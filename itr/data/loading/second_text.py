"""Second texts of an image: a synthetic caption, or another human caption.

They come with the dataset, from a file with one text per image, or (``other_caption``) are another
caption of the same image, drawn anew in every epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itr.data import counter_rng
from itr.data.records import OTHER_CAPTION, Split
from itr.data.text.token_cache import tokenize_cached
from itr.data.text.token_table import CaptionPadder, TokenTable
from itr.data.text.tokenizer import Tokenizer
from itr.errors import ConfigError
from itr.view import TextView, View


@dataclass
class SecondTexts:
    """Token ids of the second texts of a split: one row per image, or one per caption."""

    table: TokenTable
    split: Split
    view: TextView

    def __post_init__(self) -> None:
        self.padder = CaptionPadder(self.table, self.view)

    def rows(self, seed: int, epoch: int, captions: np.ndarray) -> np.ndarray:
        """The rows of ``table`` that go with ``captions`` [B]; int64 [B].

        An image with a single caption has no other one and gets it twice.
        """
        images = self.split.text_to_image[captions]
        if self.split.second != OTHER_CAPTION:
            return images
        first, count = self.split.first_caption[images], self.split.captions_per_image[images]
        draws = counter_rng.uniform(seed, epoch, counter_rng.SECOND, captions)
        step = 1 + (draws * (count - 1)).astype(np.int64)  # 1 .. count - 1: never the same caption
        return first + (captions - first + step) % count

    def fields(self, seed: int, epoch: int, captions: np.ndarray) -> dict[str, Any]:
        """The second-text fields of a `Batch` of ``captions`` [B]."""
        positions, lengths = self.table.positions(self.rows(seed, epoch, captions))
        fields = self.padder.fields(self.table.flat[positions], lengths)
        return {"second_tokens": fields["tokens"], "second_mask": fields["token_mask"]}


def open_second_texts(
    split: Split, view: View, tokenizer: Tokenizer, cache: str | Path | None
) -> SecondTexts | None:
    """The second texts that ``view`` requires; None if it requires none.

    Raises ConfigError for a split without second texts.
    """
    if view.second_text is None:
        return None
    if split.second is None:
        raise ConfigError(
            f"{split.source}: the model requires a second text of each image, but this dataset has "
            f"none; pass data.second_text={OTHER_CAPTION} (another caption of the same image) or "
            "data.second_text=FILE (JSON: image id -> caption)"
        )
    texts = split.texts if split.second == OTHER_CAPTION else split.second
    table = tokenize_cached(tokenizer, texts, view.second_text, cache)
    return SecondTexts(table, split, view.second_text)
