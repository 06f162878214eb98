"""Captions of drawings: only words of their own metadata, cleaned or joined by commas."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from itr.data.tools.clipart.metadata import Drawing
from itr.data.tools.clipart.wording import (
    clean_description,
    clean_keywords,
    clean_title,
    concept,
    distinct,
    file_phrase,
    meaningful,
    squash,
    words,
)

COMMON = 0.04  # share of the drawings beyond which a keyword alone says nothing
SHARED = 3  # drawings with one phrase, beyond which it stands after the title
COLLECTION = re.compile(r"collection|icon ?set|\btheme\b|various")
UNFILED = ("unsorted", "duplicates", "examples")


def clean(drawings: Sequence[Drawing]) -> None:
    """Set title, description, keywords, folders and concept of ``drawings``."""
    by_title = defaultdict(list)
    for drawing in drawings:
        drawing.keywords = clean_keywords(drawing.raw_keywords)
        drawing.file_phrase = file_phrase(drawing.file, drawing.author)
        by_title[clean_title(drawing.raw_title).lower()].append(drawing)
    for title, same in by_title.items():
        collection = _names_a_collection(title, same)
        for drawing in same:
            own = clean_title(drawing.raw_title)
            drawing.title_is_file_name = collection or not meaningful(own)
            drawing.title = drawing.file_phrase if drawing.title_is_file_name else own
    concepts = defaultdict(set)
    for drawing in drawings:
        drawing.description = clean_description(drawing.raw_description)
        concepts[drawing.description].add(concept(drawing.title))
    for drawing in drawings:
        if len(concepts[drawing.description]) > 10:  # of a collection
            drawing.description = ""
        drawing.concept = concept(drawing.title) if meaningful(drawing.title) else ""
        folders = [part for part in drawing.file.split("/")[:-1] if part not in UNFILED]
        drawing.folders = [squash(re.sub(r"^\d+", "", f.replace("_", " "))) for f in folders]


def _names_a_collection(title: str, drawings: Sequence[Drawing]) -> bool:
    """Whether ``title``, of all ``drawings``, is that of a collection and not of a drawing."""
    if not title or COLLECTION.search(title):
        return True
    if any(title in drawing.keywords for drawing in drawings):
        return False
    stems = {concept(drawing.file_phrase) for drawing in drawings}
    number = len(drawings)
    return number > 40 or (number >= 6 and len(stems) >= max(2, 0.3 * number))


def write_captions(drawings: Sequence[Drawing]) -> None:
    """Set the captions: title, description, keywords, folders, file name."""
    number_of = Counter(word for drawing in drawings for word in set(drawing.keywords))
    common = {word for word, n in number_of.items() if n > COMMON * len(drawings)}
    phrases = Counter(", ".join(drawing.keywords).lower() for drawing in drawings)
    phrases += Counter(drawing.description.lower() for drawing in drawings)
    for drawing in drawings:
        texts = [drawing.description]
        if len(drawing.keywords) > 1 and any(word not in common for word in drawing.keywords):
            texts.append(", ".join(drawing.keywords))
        # A phrase that many drawings have says which one it is only together with the title.
        texts = [
            f"{drawing.title}, {text}" if phrases[text.lower()] > SHARED else text
            for text in texts
            if text
        ]
        drawing.captions = distinct([drawing.title, *texts, *_of_its_place(drawing)])


def _of_its_place(drawing: Drawing) -> list[str]:
    """Captions from the folders and the file's name."""
    texts, title = [], drawing.title.lower()
    folders = [
        f for f in reversed(drawing.folders) if not f.endswith("-theme") and f.lower() != title
    ]
    if folders:
        texts.append(", ".join([drawing.title, *folders[:2]]))
    named = words(drawing.file_phrase)
    numbered = re.search(r"_\d\d[a-z]?\.svg$|_\.svg$", drawing.file)
    if not drawing.title_is_file_name and not numbered and len(named) > 1:
        if not set(named) <= set(words(drawing.title)):
            texts.append(drawing.file_phrase)
    return texts
