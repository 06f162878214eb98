"""Random damage to files: bytes that are lost, changed or forged, as a seed says."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

Damage = Callable[[random.Random, bytes], bytes]
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
NUMBERS = (b"-1", b"0", b"1e400", b"NaN", b"9" * 30, b"9223372036854775808", b"4294967296", b"1.5")
WORDS = ("${oc.env:HOME}", "\ud83d", "[/x]", "\x1b[2J", "../../etc/passwd", "", "\0", "=1+1")
BEGINNINGS = (b"version https://git-lfs\n", b"<!doctype html>", b"\x1f\x8b", b"PK\x03\x04", b"")
INTEGERS = (0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63)
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 7, 2**31, 2**63, 10**30, 1.5, float("inf"), float("nan"), "", "a", *WORDS,
    [], {}, [[]], {"a": 1}, [1, 2], ["a"], "9" * 5000,
)  # fmt: skip


def flip_bits(chance: random.Random, data: bytes) -> bytes:
    """One to eight bits are flipped."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwrite(chance: random.Random, data: bytes) -> bytes:
    """A stretch becomes zeros, ones or noise, as on a failing disk."""
    start, size = _stretch(chance, data)
    fill = chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))
    return data[:start] + fill + data[start + size :]


def truncate(chance: random.Random, data: bytes) -> bytes:
    """The end is missing."""
    return data[: chance.randrange(len(data))]


def remove(chance: random.Random, data: bytes) -> bytes:
    """A stretch is missing."""
    start, size = _stretch(chance, data)
    return data[:start] + data[start + size :]


def repeat(chance: random.Random, data: bytes) -> bytes:
    """A stretch comes twice."""
    start, size = _stretch(chance, data)
    return data[: start + size] + data[start:]


def replace_number(chance: random.Random, data: bytes) -> bytes:
    """A number in the text becomes another one."""
    found = list(NUMBER.finditer(data[:200_000]))
    if not found:
        return flip_bits(chance, data)
    match = chance.choice(found)
    return data[: match.start()] + chance.choice(NUMBERS) + data[match.end() :]


def replace_integer(chance: random.Random, data: bytes) -> bytes:
    """Four or eight bytes become an extreme number."""
    size, order = chance.choice((4, 8)), chance.choice(("little", "big"))
    value = chance.choice(INTEGERS) % (1 << 8 * size)
    start = chance.randrange(max(1, len(data) - size))
    return data[:start] + value.to_bytes(size, order) + data[start + size :]


def insert(chance: random.Random, data: bytes) -> bytes:
    """Something that does not belong there."""
    start = chance.randrange(len(data) + 1)
    word = chance.choice(WORDS).encode("utf-8", "surrogatepass")
    nested = chance.choice((b"[", b'{"a":', b"- ")) * chance.choice((50, 100_000))
    return data[:start] + chance.choice((word, nested, chance.randbytes(9))) + data[start:]


def other_kind(chance: random.Random, data: bytes) -> bytes:
    """The file begins as another kind of file, or is empty."""
    beginning = chance.choice(BEGINNINGS)
    return beginning + data[:64] if beginning else b""


BYTES: tuple[Damage, ...] = (
    flip_bits, overwrite, truncate, remove, repeat, replace_number, replace_integer, insert,
    other_kind,
)  # fmt: skip


def damaged(chance: random.Random, data: bytes) -> bytes:
    """``data`` with one kind of damage, never the same bytes."""
    while True:
        changed = chance.choice(BYTES)(chance, data)
        if changed != data:
            return changed


def forged(chance: random.Random, content: Any) -> Any:
    """``content`` of JSON with one value replaced, left out or renamed."""
    content = json.loads(json.dumps(content))
    places = list(_places(content))
    if not places:
        return chance.choice(VALUES)
    holder, key = chance.choice(places)
    act = chance.randrange(4)
    if act == 0 and isinstance(holder, dict):
        holder[chance.choice(("x", "", *WORDS))] = holder.pop(key)
    elif act == 1:
        del holder[key]
    else:
        holder[key] = chance.choice(VALUES)
    return content


def _places(node: Any) -> Any:
    """Every (container, key) of a value inside ``node``; long lists only in part."""
    items = node.items() if isinstance(node, dict) else enumerate(node[:40])
    for key, value in list(items):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _stretch(chance: random.Random, data: bytes) -> tuple[int, int]:
    size = min(len(data), 2 ** chance.randint(0, 12))
    return chance.randrange(len(data) - size + 1), size
