"""Caption cleaners, applied before tokenization; a `TextView` selects one by name."""

from __future__ import annotations

import functools
import html
import re
import string
from collections.abc import Callable

ALBEF_WORDS = 30  # maximum
ALBEF_TEST_WORDS = 50  # maximum of a question at test

_ALBEF_DELETED = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
SPACE = "\u2581"  # SentencePiece's sign
_SIGLIP_SPECIAL = re.compile("(</s>|<unk>)")
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
    return whitespace(caption).lower()


def siglip(caption: str, lowercase: bool = True) -> str:
    """SigLIP's ``canonicalize_text``: lower case, no ASCII punctuation, single spaces.

    SentencePiece's sign for a space goes before the caption. Special tokens written in it stay.
    Source: transformers' SiglipTokenizer, from Google's big_vision.
    """
    caption = caption.replace(SPACE, " ")
    parts = _SIGLIP_SPECIAL.split(caption)  # every second one is a special token
    for place in range(0, len(parts), 2):
        part = parts[place].lower() if lowercase else parts[place]
        parts[place] = re.sub(r"\s+", " ", part.translate(_PUNCTUATION)).strip()
    return "".join(parts) if len(parts) > 1 and not parts[0] else SPACE + "".join(parts)


def whitespace(caption: str) -> str:
    """open_clip's ``whitespace``: as `clip`, in the given case."""
    if not _PLAIN.fullmatch(caption):
        caption = html.unescape(html.unescape(_fixer()(caption)))
    return " ".join(caption.split())


def canonicalize(caption: str) -> str:
    """open_clip's ``canonicalize``: as `clip`, then underscores are spaces, punctuation goes."""
    caption = whitespace(caption).replace("_", " ").translate(_PUNCTUATION).lower()
    return " ".join(caption.split())


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
    "whitespace": whitespace,
    "canonicalize": canonicalize,
    "siglip": siglip,
    "siglip_cased": functools.partial(siglip, lowercase=False),
}
