"""Finds the tars that ``data.shards`` names, and the split of each from the words in its path."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from itr.data.layout import is_junk, list_folder
from itr.data.splits import ROLES, role_of, roles_in
from itr.errors import ConfigError, DataError, first_of

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")  # 00000..01505; the number of digits matters
SPECIAL = re.compile(r"[{*?\[]")
SEPARATOR = "::"
URL = re.compile(r"(?:pipe:|[a-z0-9]+://)", re.IGNORECASE)
PATTERNS = (
    "a folder, a tar, 'DIR/{00000..01505}.tar', 'DIR/{a,b}/*.tar', several of them joined by '::' "
    "or in a list, or one for each split: '{train: ..., val: ...}'"
)


@dataclass
class SplitTars:
    """Tars by role (train, val, test), and log lines about the choice."""

    by_role: dict[str, list[Path]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def tars_of(shards: Any) -> SplitTars:
    """The tars that ``data.shards`` names; `PATTERNS` lists its forms.

    Raises DataError if a pattern matches no tar or a tar does not exist, ConfigError for another
    form.
    """
    if isinstance(shards, Mapping):
        return _by_given_split(shards)
    notes: list[str] = []
    found = [tar for pattern in _patterns(shards) for tar in _expand(pattern)]
    unique = {os.path.abspath(tar): (tar, base) for tar, base in reversed(found)}
    if repeated := len(found) - len(unique):
        notes.append(f"data.shards: {repeated} tars are named more than once and read once")
    found = [(tar, base) for tar, base in found if unique.pop(os.path.abspath(tar), None)]
    return _by_words(found, notes)


def tars_below(root: Path) -> SplitTars:
    """The tars in ``root`` and in its folders that are named after a split."""
    folders = [root, *(path for path in _folders(root) if roles_in(path.name))]
    return _by_words([(tar, root) for folder in folders for tar in _tars_in(folder)], [])


def first_folder(shards: Any) -> Path:
    """The folder that messages name: the one before the first brace or asterisk."""
    if isinstance(shards, Mapping):
        shards = list(shards.values())
    return _base(_patterns(shards)[0])


def _by_given_split(shards: Mapping[str, Any]) -> SplitTars:
    by_role: dict[str, list[Path]] = {}
    for split, value in shards.items():
        if (role := role_of(str(split))) not in ROLES or role in by_role:
            raise ConfigError(
                f"data.shards={dict(shards)}: '{split}' is no split; expected train, val or test, "
                "each once"
            )
        tars = (tar for pattern in _patterns(value) for tar, _ in _expand(pattern))
        by_role[role] = list(dict.fromkeys(tars))
    for one, other in itertools.combinations(by_role, 2):
        if common := set(by_role[one]) & set(by_role[other]):
            raise ConfigError(
                f"data.shards: {min(common)} is in both {one} and {other}; name it once"
            )
    return SplitTars({role: by_role[role] for role in ROLES if role in by_role})


def _patterns(shards: Any) -> list[str]:
    values = shards if isinstance(shards, Sequence) and not isinstance(shards, str) else [shards]
    patterns = [part for value in values for part in str(value).split(SEPARATOR) if part]
    if not patterns:
        raise ConfigError(f"data.shards={shards}: names nothing; expected {PATTERNS}")
    return patterns


def _expand(pattern: str) -> list[tuple[Path, Path]]:
    """(tar, folder below which words count) of each tar that ``pattern`` matches."""
    if URL.match(pattern):
        raise ConfigError(
            f"data.shards={pattern}: only files are read; download the tars and pass their folder"
        )
    base, path = _base(pattern), Path(pattern).expanduser()
    if path.is_dir():
        tars = list(_walk(path))
    elif not SPECIAL.search(pattern):
        tars = [path]
    else:
        tars = [tar for one in _braces(str(path)) for tar in _glob(one)]
    if missing := [tar for tar in tars if not tar.is_file()]:
        there = base if base.is_dir() else base.parent
        held = f"; {there} holds {list_folder(there)}" if there.is_dir() else ""
        raise DataError(
            f"data.shards={pattern}: {len(missing)} of {len(tars)} tars do not exist (first: "
            f"{missing[0]}){held}. Correct the range, or pass the folder: data.shards={there}"
        )
    if not tars:
        held = f"{base} holds {list_folder(base)}" if base.is_dir() else f"{base} does not exist"
        raise DataError(f"data.shards={pattern}: matches no .tar file; {held}. Expected {PATTERNS}")
    return [(tar, base) for tar in tars]


def _base(pattern: str) -> Path:
    """The folder in front of the first special character of ``pattern``."""
    path = Path(pattern).expanduser()
    if match := SPECIAL.search(pattern):
        return Path(pattern[: match.start()] + "x").expanduser().parent
    return path if path.is_dir() else path.parent


def _braces(pattern: str) -> Iterator[str]:
    """``pattern`` with every ``{a,b}`` and ``{first..last}`` replaced by each of its values."""
    match = BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for value in _values(match[1]):
        yield from _braces(pattern[: match.start()] + value + pattern[match.end() :])


def _values(content: str) -> Iterator[str]:
    for part in content.split(","):
        if match := RANGE.fullmatch(part.strip()):
            first, last = match.groups()
            yield from (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
        else:
            yield part.strip()


def _glob(pattern: str) -> list[Path]:
    """The files that match; the path itself without an asterisk, whether it exists or not."""
    if not re.search(r"[*?\[]", pattern):
        return [Path(pattern)]
    base = _base(pattern)
    relative = os.path.relpath(pattern, base)
    matches = base.glob(relative) if base.is_dir() else ()
    return sorted(path for path in matches if not _is_junk(path, base) and path.is_file())


def _walk(folder: Path) -> Iterator[Path]:
    """All tars below ``folder``, folder by folder."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_junk(name))
        names = (name for name in sorted(files) if name.endswith(".tar") and not is_junk(name))
        yield from (Path(here) / name for name in names)


def _tars_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tar") if not is_junk(path.name))


def _folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())


def _is_junk(path: Path, base: Path) -> bool:
    return any(map(is_junk, path.relative_to(base).parts))


def _by_words(found: Iterable[tuple[Path, Path]], notes: list[str]) -> SplitTars:
    """Sort tars into splits. Tars that name none are training, unless others name train."""
    named: dict[str, list[Path]] = {role: [] for role in ROLES}
    unnamed: list[Path] = []
    for tar, base in found:
        role = _role_in_path(tar, base)
        (unnamed if role is None else named[role]).append(tar)
    names = first_of([tar.name for tar in unnamed])
    if unnamed and named["train"]:
        notes.append(
            f"{len(unnamed)} tars name no split and are used by nothing: {names}; pass "
            "'data.shards={train: ..., val: ..., test: ...}' to name the tars of each split"
        )
    elif unnamed:
        if named["val"] or named["test"]:
            notes.append(f"{len(unnamed)} tars name no split and are read as train: {names}")
        named["train"] = unnamed
    return SplitTars({role: tars for role, tars in named.items() if tars}, tuple(notes))


def _role_in_path(tar: Path, base: Path) -> str | None:
    """The split that the name of ``tar`` contains, or else a folder between it and ``base``.

    The name of ``base`` itself counts if it is nothing but such a word.
    """
    parts = PurePath(os.path.relpath(tar, base)).parts
    for name in (tar.stem, *reversed(parts[:-1])):
        roles = roles_in(name)
        if len(roles) > 1:
            raise DataError(
                f"{tar}: '{name}' names {' and '.join(sorted(roles))}; rename it, or pass "
                "'data.shards={train: ..., val: ..., test: ...}' with the tars of each split"
            )
        if roles:
            return roles.pop()
    role = role_of(base.resolve().name)
    return role if role in ROLES else None
