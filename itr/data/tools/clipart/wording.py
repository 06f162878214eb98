"""Cleans what contributors wrote: titles, file names, keywords and descriptions."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable

NOISE_KEYWORDS = set(
    "hash|unsorted|theme|magick|unknown|none|clipart|clip art|misc|etc|signs and symbols|"
    "lemon theme icon|special|openclipart|svg|png|duplicates|public domain".split("|")
)
NOISE_IN_FILES = set(
    "aiga bb ganson mimooh openclipart openclip clipart md xx v bwh architetto francesco rollandin "
    "gnome svg final new untitled copy".split()
)
NOT_A_CONCEPT = set(
    "b w bw and the a an of with in on simple icon icons clipart outline shaded black white color "
    "colour colored sign symbol flag flags".split()
)
SHORT_WORDS = {"tv", "cd", "pc", "ufo", "dvd", "usb", "abc"}
VOWEL = re.compile(r"[aeiouyáàâäãåéèêëíìîïóòôöõøúùûüýæœ]", re.I)
BOILERPLATE = re.compile(
    r"inkscape|sodipodi|\bsvg\b|clip ?art|upload|submi|licen[sc]e|copyright|public domain|"
    r"\bcontact\b|converted|http|www\.|adobe|illustrator|vectori[sz]ed? (by|from)|\bpng\b|"
    r"\bbitmap\b",
    re.I,
)
MAX_CAPTIONS, MAX_WORDS, MAX_KEYWORDS, MAX_KEYWORD = 5, 60, 12, 40


def words(text: str) -> list[str]:
    """Lowercase words, without punctuation."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def squash(text: str) -> str:
    """``text`` with single spaces."""
    return re.sub(r"\s+", " ", text).strip()


def slug(text: str) -> str:
    """``text`` as a file name of ASCII letters, digits and underscores."""
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_")


def meaningful(text: str) -> bool:
    """Whether a word of ``text`` says something."""
    return any(
        (len(re.sub(r"[\d_]", "", word)) >= 3 and VOWEL.search(word)) or word in SHORT_WORDS
        for word in words(text)
    )


def _split_camel_case(text: str) -> str:
    return re.sub(r"(?<=[a-zà-ÿ])(?=[A-Z][a-z])", " ", text)


def _without_numbers(parts: Iterable[str]) -> list[str]:
    kept = []
    for part in parts:
        if re.fullmatch(r"[\d.,x#]+", part):
            continue
        numbered = re.fullmatch(r"([^\W\d]{3,})\d{1,3}[a-z]?", part)
        kept.append(numbered.group(1) if numbered else part)
    return kept


def clean_title(raw: str) -> str:
    """A title without markup, file endings, numbers and the collection's name."""
    text = html.unescape(html.unescape(raw))
    text = re.sub(r"^\s*clip ?art by [^-]{3,40} - ", "", text, flags=re.I)
    text = re.sub(r"\.(svg|png|jpe?g)\b", "", text, flags=re.I)
    text = re.sub(r"#\s*\d+", " ", text.replace("_", " "))
    if " " not in text.strip():
        text = _split_camel_case(text.replace("-", " "))
    text = " ".join(_without_numbers(text.split()))
    text = re.sub(r"\b(openclipart|openclip)\b", "", text, flags=re.I)
    edges = " -.,;:*\"'" + ("()[]" if text.count("(") != text.count(")") else "")
    return squash(text.strip(edges))


def file_phrase(file: str, author: str) -> str:
    """The words of a file's name, without numbers and the author's name at its end."""
    stem = file.rsplit("/", 1)[-1][:-4]
    parts = _split_camel_case(re.sub(r"[_\-.+()]+", " ", stem)).split()
    parts = [part for part in _without_numbers(parts) if not re.search(r"\d", part)]
    names = [word for word in words(author) if len(word) > 1]
    while len(parts) > 1 and len(parts[-1]) > 1:
        if not any(name.startswith(parts[-1].lower()) for name in names):
            break
        parts.pop()
    return squash(" ".join(part for part in parts if part.lower() not in NOISE_IN_FILES))


def clean_keywords(raw: Iterable[str]) -> list[str]:
    """Keywords in lowercase, each once, without those that say nothing about a drawing."""
    kept: list[str] = []
    for line in raw:
        for part in re.split(r"[;,/\n]", html.unescape(line)):
            word = squash(part.replace("_", " ").strip(" .\"'")).lower()
            if not word or word in NOISE_KEYWORDS or word in kept or len(word) > MAX_KEYWORD:
                continue
            if re.search(r"0x[0-9a-f]{4,}|@|http", word) or not re.search(r"[^\W\d_]{2,}", word):
                continue
            kept.append(word)
    return kept[:MAX_KEYWORDS]


def clean_description(raw: str) -> str:
    """A description without addresses and sentences about tools; at most `MAX_WORDS` words."""
    text = squash(html.unescape(html.unescape(raw)).replace("_", " "))
    text = re.sub(r"\S+@\S+|https?://\S+|www\.\S+", "", text)
    parts = [part.strip() for part in re.split(r"(?<=[.!?])\s+", text)]
    parts = [part for part in parts if part and not BOILERPLATE.search(part) and meaningful(part)]
    return squash(" ".join(" ".join(parts).split()[:MAX_WORDS]).strip(" -;:,"))


def concept(text: str) -> str:
    """The words that say what a drawing shows, in order of the alphabet."""
    stems = [re.sub(r"\d+", "", word) for word in words(text)]
    stems = [
        stem[:-1] if len(stem) > 3 and stem.endswith("s") and not stem.endswith("ss") else stem
        for stem in stems
    ]
    kept = [stem for stem in stems if stem and stem not in NOT_A_CONCEPT]
    return " ".join(sorted(set(kept or stems)))


def distinct(captions: Iterable[str]) -> list[str]:
    """The first `MAX_CAPTIONS` that are not the same words in another order."""
    kept: dict[str, str] = {}
    for caption in map(squash, captions):
        singular = {w[:-1] if len(w) > 3 and w.endswith("s") else w for w in words(caption)}
        if key := " ".join(sorted(singular)):
            kept.setdefault(key, caption)
    return list(kept.values())[:MAX_CAPTIONS]
