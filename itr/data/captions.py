"""Separates captions that share a cell of a table, a ``.txt`` or a JSON value.

Several captions of an image are also stored as a list written as text (``["a cat", "a dog"]``, as
JSON, Python or NumPy writes it) or as lines. A set is separated if all of its captions are so.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import tokenize
from collections.abc import Sequence
from typing import Any

import numpy as np

from itr.data.packed_strings import PackedStrings
from itr.data.records import Record, Split
from itr.errors import DataError
from itr.files import parse_json

FORMS = ("auto", "text", "lines", "list")  # of data.caption_form
BRACKETS = {"[": "]", "(": ")"}
ARRAY = re.compile(r"array\((.*?)(?:,\s*dtype=\w+)?\)", re.DOTALL)
HALF = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"
MANY = 0.5  # from this share of captions with line breaks on, they are not taken for one each
SHOWN = 60  # characters of a caption in a message


def separate_captions(split: Split, form: str) -> Split:
    """``split`` with the captions separated that are stored as one text.

    ``form`` is ``data.caption_form``: ``text`` separates nothing; ``lines`` and ``list`` require
    what they name; ``auto`` separates where the whole split is one of them.

    Raises DataError that names the file and an image if only some captions are lists, or have
    several lines.
    """
    lists = {row: parse_list(text) for row, text in _bracketed(split.texts)}
    listed = {row: parts for row, parts in lists.items() if parts is not None}
    lines = {row: lines_of(text) for row, text in _of_lines(split.texts)}
    broken = {row: parts for row, parts in lines.items() if len(parts) > 1 and row not in listed}
    total, one_each = split.n_captions, bool((split.captions_per_image <= 1).all())
    if form == "list" or (form == "auto" and len(listed) == total):
        return _separated(split, _require_lists(split, listed), "lists written as text")
    if form == "auto" and listed:
        raise _mixed(split, listed, f"{len(listed)} of {total} captions are lists written as text")
    if form == "lines" or (form == "auto" and one_each and len(broken) == total):
        every = {row: broken.get(row) or [text] for row, text in enumerate(split.texts)}
        return _separated(split, every, "lines")
    if form == "auto" and one_each and len(broken) > MANY * total:
        raise _mixed(split, broken, f"{len(broken)} of {total} captions have several lines")
    return dataclasses.replace(split, notes=(*split.notes, *_odd_notes(split, listed, broken)))


def with_whole_characters(split: Split) -> Split:
    """``split`` with U+FFFD for half characters (lone surrogates), which no tokenizer reads.

    Scrapers write them into JSON when they cut a text inside an emoji. A note counts them.
    """
    records, texts, rows = split.records, split.texts, np.zeros(0, np.int64)
    if isinstance(texts, PackedStrings):
        whole, rows = texts.with_whole_characters()
        if len(rows):
            records = dataclasses.replace(records, texts=whole)  # type: ignore[type-var]
    elif halves := [row for row, text in enumerate(texts) if HALF.search(text)]:
        rows = np.array(halves)
        records = list(records)
        for image in np.unique(split.text_to_image[rows]).tolist():
            captions = tuple(map(whole_characters, records[image].captions))
            records[image] = dataclasses.replace(records[image], captions=captions)
    second = _whole_texts(split.second)
    if not len(rows) and second is split.second:
        return split
    what = [f"{len(rows)} captions ({_place(split, int(rows[0]))})"] if len(rows) else []
    if second is not split.second:
        what.append("second texts")
    note = f"{split.source}: {' and '.join(what)} hold half a character, read as U+FFFD"
    note = note.encode("utf-8", "backslashreplace").decode()
    return dataclasses.replace(split, records=records, second=second, notes=(*split.notes, note))


def whole_characters(text: str) -> str:
    """``text`` with U+FFFD for half characters."""
    return HALF.sub(REPLACEMENT, text)


def _whole_texts(texts: Sequence[str] | None) -> Sequence[str] | None:
    """``texts`` with U+FFFD for half characters; the same object if there are none."""
    if texts is None or isinstance(texts, str):
        return texts
    if isinstance(texts, PackedStrings):
        return texts.with_whole_characters()[0]
    if not any(map(HALF.search, texts)):
        return texts
    return [whole_characters(text) for text in texts]


def parse_list(text: str) -> list[str] | None:
    """The texts of a list that ``text`` writes down; None if it is no list of texts."""
    text = text.strip()
    if match := ARRAY.fullmatch(text):
        text = match[1].strip()
    if len(text) < 4 or BRACKETS.get(text[0]) != text[-1]:
        return None
    try:
        values: Any = parse_json(text)
    except ValueError:
        values = _python_strings(text)
    if not isinstance(values, list) or not values:
        return None
    if not all(isinstance(value, str) and value.strip() for value in values):
        return None
    return [value.strip() for value in values]


def lines_of(text: str) -> list[str]:
    """The lines of ``text`` that are not blank. Only line feeds end a line."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def _python_strings(text: str) -> list[str] | None:
    """The strings between the brackets of ``text``; NumPy writes no commas between them."""
    strings = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text[1:-1]).readline):
            if token.type == tokenize.STRING:
                strings.append(ast.literal_eval(token.string))
            elif token.type == tokenize.OP and token.string == ",":
                continue
            elif token.string.strip() and token.type != tokenize.COMMENT:
                return None
            elif token.type == tokenize.COMMENT:
                return None
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    return strings


def _bracketed(texts: Sequence[str]) -> list[tuple[int, str]]:
    """(index, caption) of the captions that may be lists; fast for the millions of a shard set."""
    starts, ends = "[(a", "])"
    if isinstance(texts, PackedStrings):
        rows = texts.rows_between(starts.encode(), ends.encode()).tolist()
        return [(row, texts[row]) for row in rows]
    return [(n, text) for n, text in enumerate(texts) if text[:1] in starts and text[-1:] in ends]


def _of_lines(texts: Sequence[str]) -> list[tuple[int, str]]:
    """(index, caption) of the captions that hold a line feed."""
    if isinstance(texts, PackedStrings):
        return [(row, texts[row]) for row in texts.rows_with(b"\n").tolist()]
    return [(row, text) for row, text in enumerate(texts) if "\n" in text]


def _require_lists(split: Split, listed: dict[int, list[str]]) -> dict[int, list[str]]:
    if len(listed) < split.n_captions:
        other = next(row for row in range(split.n_captions) if row not in listed)
        raise DataError(
            f"data.caption_form=list: {split.source}: the caption of {_place(split, other)} is no "
            "list of texts; pass data.caption_form=auto"
        )
    return listed


def _separated(split: Split, parts: dict[int, list[str]], what: str) -> Split:
    """``split`` with caption ``row`` replaced by ``parts[row]``; their ids are running numbers."""
    lengths = np.array([len(parts[row]) for row in range(split.n_captions)], np.int64)
    counts = np.diff(np.concatenate([[0], np.cumsum(lengths)])[split.first_caption])
    texts = [text for row in range(split.n_captions) for text in parts[row]]
    note = f"captions are {what}: {split.n_captions} of them are read as {len(texts)}"
    records = split.records
    if hasattr(records, "with_captions"):
        separate: Sequence[Record] = records.with_captions(texts, counts)
    else:
        separate, first = [], 0
        for record, count in zip(records, counts.tolist(), strict=True):
            ids = tuple(range(first, first + count))
            captions = tuple(texts[first : first + count])
            separate.append(dataclasses.replace(record, captions=captions, caption_ids=ids))
            first += count
    return dataclasses.replace(split, records=separate, notes=(*split.notes, note))


def _mixed(split: Split, rows: dict[int, list[str]], fault: str) -> DataError:
    one = next(iter(rows))
    other = next(row for row in range(split.n_captions) if row not in rows)
    form = "lines" if "lines" in fault else "list"
    advice = ", or data.caption_form=lines to read each line as one" if form == "lines" else ""
    return DataError(
        f"{split.source}: {fault}, e.g. that of {_place(split, one)}; others are not, e.g. that of "
        f"{_place(split, other)}. Write them alike, or pass data.caption_form=text to read each "
        f"as one caption{advice}"
    )


def _odd_notes(split: Split, listed: dict[int, Any], broken: dict[int, Any]) -> list[str]:
    """Notes about captions that are read as one each, though they look like several."""
    notes = []
    for rows, what in ((listed, "look like lists"), (broken, "hold line breaks")):
        if rows:
            example = _place(split, next(iter(rows)))
            notes.append(
                f"{split.source}: {len(rows)} of {split.n_captions} captions {what} and are read "
                f"as one each, e.g. that of {example} (data.caption_form)"
            )
    return notes


def _place(split: Split, row: int) -> str:
    """The image and the text of a caption, for a message."""
    record = split.records[int(split.text_to_image[row])]
    image = record.extra.get("key") or record.extra.get("file") or record.image
    text = split.texts[row]
    return f"{image} ({text[:SHOWN]!r}{'...' if len(text) > SHOWN else ''})"
