"""The front door of everything about captions."""

from __future__ import annotations

from collections.abc import Iterable

from itr.data.text.caption_augment import DELETE, KEEP, MASK, RANDOM, augment, fates
from itr.data.text.token_cache import build_table
from itr.data.text.token_table import TokenTable
from itr.data.text.tokenizer import BytePairs, Tokenizer, cleaner_of
from itr.data.text.tokenizer_backends import SPECIALS
from itr.view import View

__all__ = [
    "DELETE",
    "KEEP",
    "MASK",
    "RANDOM",
    "SPECIALS",
    "BytePairs",
    "TokenTable",
    "Tokenizer",
    "augment",
    "build_table",
    "fates",
    "open_tokenizer",
]

FROM_CAPTIONS = {"clip-from-captions": "clip", "roberta-from-captions": "roberta"}


def open_tokenizer(view: View, captions: Iterable[str]) -> Tokenizer:
    """The tokenizer that ``view.tokenizer`` names; some are learnt from ``captions`` (training),
    which the others do not ask for.

    Raises ConfigError when it cannot be found or used.
    """
    if view.tokenizer not in ("wordpiece", *FROM_CAPTIONS):
        return Tokenizer.from_files(view.tokenizer)
    clean = cleaner_of(view.text)
    captions = [clean(caption) for caption in captions]
    if style := FROM_CAPTIONS.get(view.tokenizer):
        return BytePairs.learn(captions, view.vocabulary_size, style)
    return Tokenizer.from_captions(captions, view.vocabulary_size)
