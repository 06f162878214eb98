"""Groups the members of a tar into samples by their names.

As in WebDataset, the key of ``a/0001.jpg`` is the name up to its first dot. Members of a sample
need not follow each other. Names with further dots are ``KEY.input.jpg`` with
``KEY.outputs.txt``, or file names (``IMG_2019.HDR.jpg`` with ``IMG_2019.HDR.txt``): the members
decide.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from itr.data.image_files import image_extensions
from itr.data.layout import is_junk

TEXT = "txt"
Parts = dict[str, tarfile.TarInfo]  # extension in lower case -> member


@dataclass
class SampleMembers:
    """The tar members that share a key, by extension."""

    key: str
    members: Parts = field(default_factory=dict)
    fault: str = ""  # why the members form no sample


@dataclass
class _Group:
    """The members with the same name up to the first dot: (rest of the name, extension)."""

    key: str
    members: dict[tuple[str, str], tarfile.TarInfo] = field(default_factory=dict)


class Grouping:
    """The members of a tar, added one by one."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []
        self._latest: dict[str, _Group] = {}
        self._last: _Group | None = None  # the one that was added to last

    def add(self, member: tarfile.TarInfo) -> None:
        """Add a file; those that systems add are passed over.

        A name that is there already begins a new sample: tars may be concatenated.
        """
        path = PurePosixPath(readable_name(member.name))
        if any(map(is_junk, path.parts)):
            return
        stem, _, rest = path.name.partition(".")
        middle, _, extension = rest.rpartition(".")
        key, kind = f"{'' if path.parent == PurePosixPath('.') else path.parent}/{stem}", extension
        part = (middle, kind.lower())
        group = self._latest.get(key)
        if group is None or part in group.members:
            group = self._latest[key] = _Group(key)
            self._groups.append(group)
        group.members[part] = member
        self._last = group

    def samples(self, cut: bool) -> Iterator[SampleMembers]:
        """The samples in the order of their first members.

        If the tar was ``cut``, the last one is left out, since members of it may be missing.
        """
        for group in self._groups:
            if not (cut and group is self._last):
                yield from _samples_of(group)


def readable_name(name: str) -> str:
    """``name``, which `tarfile` decoded as UTF-8, read as Latin-1 if it is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("latin-1")
    return name


def _samples_of(group: _Group) -> list[SampleMembers]:
    by_middle: dict[str, Parts] = {}
    for (middle, kind), member in group.members.items():
        by_middle.setdefault(middle, {})[kind] = member
    if by_middle.keys() == {""}:
        return [SampleMembers(group.key, by_middle[""])]
    whole = [middle for middle, parts in by_middle.items() if TEXT in parts and _images(parts)]
    if not whole:
        return [_merged(group, by_middle)]
    shared = {k: m for k, m in by_middle.get("", {}).items() if k not in image_extensions()}
    samples = []
    for middle, parts in by_middle.items():
        # An image beside a whole KEY.jpg, KEY.txt, such as KEY.mask.png, is no sample.
        if middle in whole or (_images(parts) and "" not in whole):
            extra = shared if whole == [middle] else {}
            key = f"{group.key}.{middle}" if middle else group.key
            samples.append(SampleMembers(key, {**extra, **parts}))
    return samples


def _merged(group: _Group, by_middle: dict[str, Parts]) -> SampleMembers:
    """One sample of members whose names differ: ``KEY.input.jpg``, ``KEY.outputs.txt``."""
    members: Parts = {}
    doubled: dict[str, list[str]] = {}
    for middle, parts in sorted(by_middle.items()):  # "" comes first
        for kind, member in parts.items():
            what = "image" if kind in image_extensions() else kind
            doubled.setdefault(what, []).append(f"{middle}.{kind}".lstrip("."))
            if what != "image" or len(doubled["image"]) == 1:
                members.setdefault(kind, member)
    several = {what: names for what, names in doubled.items() if len(names) > 1 and what != "json"}
    fault = ""
    for what, names in several.items():
        if what in ("image", TEXT) and "." in names[0]:  # otherwise KEY.jpg is the image
            fault = f"several members for its {what} ({', '.join(names)})"
    return SampleMembers(group.key, members, fault)


def _images(parts: Parts) -> list[str]:
    return [kind for kind in parts if kind in image_extensions()]
