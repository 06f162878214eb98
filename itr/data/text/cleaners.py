"""Caption cleaners, applied before tokenization; a `TextView` selects one by name."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable

ALBEF_WORDS = 30  # maximum
ALBEF_TEST_WORDS = 50  # maximum of a question at test

_ALBEF_DELETED = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")
_PLAIN = re.compile(r"[\x20-\x25\x27-\x7e]*")  # printable ASCII without &: nothing to repair


def albef(caption: str) -> str:
    """ALBEF's ``pre_caption``: lower case, no punctuation, at most 30 words."""
    caption = caption.lower().translate(_ALBEF_DELETED).replace("<person>", "person")
    caption = re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" ")
    return " ".join(caption.split(" ")[:ALBEF_WORDS])


def albef_question(question: str, words: int = ALBEF_WORDS) -> str:
    """ALBEF's ``pre_question``: as `albef`, but runs of spaces and ``<person>`` stay."""
    question = question.lower().translate(_ALBEF_DELETED).rstrip(" ")
    return " ".join(question.split(" ")[:words])


def clip(caption: str) -> str:
    """CLIP's ``basic_clean``: repair mojibake, unescape HTML twice, collapse spaces, lower case."""
    if not _PLAIN.fullmatch(caption):
        caption = html.unescape(html.unescape(_fixer()(caption)))
    return " ".join(caption.split()).lower()


@functools.cache
def _fixer() -> Callable[[str], str]:
    import ftfy  # slow to import, needed for web text only

    return ftfy.fix_text


CLEANERS: dict[str, Callable[[str], str]] = {
    "none": lambda caption: caption,
    "albef": albef,
    "albef_question": albef_question,
    "albef_question_test": functools.partial(albef_question, words=ALBEF_TEST_WORDS),
    "clip": clip,
}
