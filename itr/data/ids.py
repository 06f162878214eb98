"""Ids of images and captions as files give them: whole numbers, or names such as UUIDs."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from itr.data.records import SEQUENTIAL_ID
from itr.errors import DataError

NAME = "id"  # key of Record.extra: the image id, where it is no number
EXACT_FLOAT = 2**53  # from here on, floats skip whole numbers
WHOLE = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")


class Ids(NamedTuple):
    """The ids of N images or captions of a file."""

    numbers: list[int]
    names: list[str | None]  # as the file gives them, if they are no numbers; None: none
    given: list[bool]  # whether the number is the one in the file
    notes: tuple[str, ...]

    def extra(self, index: int) -> dict[str, Any]:
        """The entries of `Record.extra` about the id of the image ``index``."""
        name = self.names[index]
        extra: dict[str, Any] = {} if self.given[index] else {SEQUENTIAL_ID: True}
        return extra if name is None else {**extra, NAME: name}


def whole_number(value: Any) -> int | None:
    """``value`` as an exact number of 64 bits: 7, "7" and 7.0, but neither True nor "x7"."""
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, float):
        number = int(value) if value.is_integer() and abs(value) < EXACT_FLOAT else None
    elif isinstance(value, str) and (match := WHOLE.fullmatch(value.strip())):
        number = int(match[1]) if len(match[1]) <= 20 else None
    return number if number is not None and -(2**63) <= number < 2**63 else None


def is_missing(value: Any) -> bool:
    """Whether a cell or a JSON value gives no id: null, NaN or blank text."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value) == ""


def require_id(where: str, key: str, value: Any) -> Any:
    """``value`` if it can be an id. Raises DataError, prefixed with ``where``, otherwise."""
    if isinstance(value, float) and not math.isnan(value) and abs(value) >= EXACT_FLOAT:
        raise DataError(
            f"{where}: '{key}' is the float {value!r}, which has lost digits; expected an integer "
            "or text. Write the ids as integers, or leave the column out"
        )
    if isinstance(value, bool | list | dict):
        raise DataError(
            f"{where}: '{key}' is {type(value).__name__} {value!r:.40}; expected a number or text"
        )
    return value


def id_key(value: Any) -> int | str:
    """``value`` in a form in which equal ids are equal: 7 for "7" and 7.0, otherwise text."""
    number = whole_number(value)
    return str(value).strip() if number is None else number


def number_ids(values: Sequence[Any], places: Sequence[str], what: str) -> Ids:
    """Numbers for the ids ``values``, which `require_id` has accepted.

    If one of them is no whole number, or larger than 64 bits hold, all are kept as names and
    counted from 0; a note says so. Images without an id get their
    position in the file, or a free number if that is the id of another.

    Args:
        values: an id per image or caption.
        places: their positions, for the note.
        what: what the ids identify: ``image`` or ``caption``.
    """
    numbers = [whole_number(value) for value in values]
    missing = [is_missing(value) for value in values]
    for place, value, number, absent in zip(places, values, numbers, missing, strict=True):
        if number is None and not absent:
            names = [None if m else str(v).strip() for m, v in zip(missing, values, strict=True)]
            shown = str(value) if len(str(value)) < 40 else f"{str(value)[:36]}..."
            note = f"{place}: {what} id '{shown}' is no number of 64 bits"
            return Ids(
                list(range(len(values))),
                names,
                [False] * len(values),
                (f"{note}; the {len(values)} {what}s of the file are numbered from 0",),
            )
    used = {number for number in numbers if number is not None}
    free = (number for number in itertools.count(len(values)) if number not in used)
    filled = [
        number if number is not None else index if index not in used else next(free)
        for index, number in enumerate(numbers)
    ]
    return Ids(filled, [None] * len(values), [not m for m in missing], ())
