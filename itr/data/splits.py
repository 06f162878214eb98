"""The words for splits in names of files, folders, columns and annotations.

``validation``, ``Dev`` and ``val2014`` are all the validation split; ``cc3m-train-0001.tar`` is a
tar of the training split. A split keeps its name on disk; its role is what it is used for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from itr.errors import ConfigError, DataError, nearest

ROLES = ("train", "val", "test")
WORDS = {
    "train": ("train", "training", "trn", "restval"),  # restval: of COCO, used for training
    "val": ("val", "valid", "validation", "dev", "development", "minival"),
    "test": ("test", "testing", "tst", "testall"),
}
ROLE_OF_WORD = {word: role for role, words in WORDS.items() for word in words}
# A split in a file name, such as val2014; to be compiled without regard to case.
PATTERN = rf"(?:{'|'.join(sorted(ROLE_OF_WORD, key=len, reverse=True))})(?:20\d\d)?"
YEAR = re.compile(r"[_-]?\d+$")
TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
NESTED = {"test": "testall"}  # a split that is contained in another one
AUTO = "auto"  # of data.held_out, as None
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 1000  # what data.held_out=auto holds out


def role_of(split: str) -> str:
    """The role (train, val, test) of a split name; names that are no such word stay as they are."""
    return ROLE_OF_WORD.get(YEAR.sub("", split.strip().lower()), split)


def split_roles(names: Iterable[str]) -> dict[str, str]:
    """Role -> name of each of ``names``; names that share a role with another stay as they are."""
    roles = Counter(map(role_of, (names := list(names))))
    return {role if roles[role := role_of(name)] == 1 else name: name for name in names}


def split_key(value: str) -> str:
    """A split as annotations name it, without differences of case; ``restval`` is train."""
    key = value.strip().lower()
    return {"restval": "train"}.get(key, key)


def roles_in(name: str) -> set[str]:
    """The roles of the words in a file or folder name: {"val"} for ``cc3m-validation-0001``."""
    words = (word.lower() for word in TOKEN.findall(name))
    return {ROLE_OF_WORD[word] for word in words if word in ROLE_OF_WORD}


def match_split(split: str, known: Iterable[str]) -> list[str]:
    """The names in ``known`` that ``split`` may mean: itself, or those with the same role."""
    names = list(known)
    if split in names:
        return [split]
    if same := [name for name in names if name.lower() == split.lower()]:
        return same
    role = role_of(split)
    if role not in ROLES:
        return []
    # COCO's testall holds five times the images of test, and is read only where it is named.
    names = [name for name in names if name.lower() not in NESTED.values()]
    return [name for name in names if role_of(name) == role] or [
        name for name in names if roles_in(name) == {role}
    ]


def resolve_split(
    split: str, known: Mapping[str, object] | Sequence[str], where: str, advice: str = ""
) -> str:
    """The name of ``split`` in ``known``, under this name or another word for it.

    Raises DataError, prefixed with ``where``, if there is no such split, or several. ``advice``
    names further options that provide it.
    """
    matches = match_split(split, known)
    if len(matches) == 1:
        return matches[0]
    role = role_of(split)
    option = f"data.splits.{role if role in ROLES else '|'.join(ROLES)}"
    use = f" for {role}" if role != split else ""
    if matches:
        raise DataError(
            f"{where}: split '{split}' is ambiguous: {' and '.join(matches)}. Pass "
            f"{option}={matches[0]} to choose one"
        )
    sizes = (
        {key: f"{key} ({len(value)})" for key, value in known.items() if hasattr(value, "__len__")}
        if isinstance(known, Mapping)
        else {}
    )
    raise DataError(
        f"{where}: no split '{split}'{use}{nearest(split, known)}; its splits: "
        f"{', '.join(sizes.get(key, key) for key in known)}. Pass {option}=NAME{advice}"
    )


def unused_splits(known: Iterable[str], chosen: Mapping[str, str]) -> list[str]:
    """The splits in ``known`` that neither training nor evaluation reads.

    ``chosen`` is ``data.splits``. A split that is part of another one, such as COCO's ``test`` of
    ``testall``, counts as read.
    """
    names = list(known)
    used: set[str] = set()
    for role in ROLES:
        for name in chosen.get(role, role).split("+"):
            used.update(match_split(name, names))
    for inner, outer in NESTED.items():
        used |= {inner, outer} if outer in names else set()
    return [name for name in names if name not in used]


def held_out_roles(known: Iterable[str], held_out: float | str | None) -> list[str]:
    """The roles to hold out of the training split of a dataset with the splits ``known``.

    With ``held_out`` None or ``auto``, nothing is held out beside a split that exists. Otherwise,
    all missing ones are.
    """
    names = list(known)
    if not match_split("train", names) or held_out == 0:
        return []
    missing = [role for role in ROLES[1:] if not match_split(role, names)]
    return missing if held_out not in (None, AUTO) or len(names) == 1 else []


def held_out_count(
    held_out: float | str | None, total: int, roles: Sequence[str], where: str
) -> int:
    """How many of ``total`` images (or samples) of ``where`` are held out for each of ``roles``.

    Raises ConfigError if nothing is left for training.
    """
    if held_out in (None, AUTO):
        count = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * total)))
    elif held_out is None or isinstance(held_out, str):
        raise ConfigError(f"data.held_out={held_out}: expected a number, or {AUTO}")
    else:
        count = int(held_out) if held_out >= 1 else max(1, round(held_out * total))
    if count * len(roles) >= total:
        shown = AUTO if held_out is None or isinstance(held_out, str) else f"{held_out:g}"
        raise ConfigError(
            f"data.held_out={shown}: {' and '.join(roles)} would take all {total} images of "
            f"{where}; pass a smaller data.held_out, or data.held_out=0 to hold out nothing"
        )
    return count
