"""Holds images out of a training split whose dataset has no validation or test split."""

from __future__ import annotations

import hashlib

from itr.data.records import Record
from itr.data.splits import held_out_count


def hold_out(
    train: list[Record], roles: list[str], held_out: float | str | None, where: str
) -> dict[str, list[Record]]:
    """Split ``train`` into train and ``roles``, in the order of a hash of the image paths.

    A hash rather than a shuffle: a table that grows keeps most of its assignment.
    """
    size = held_out_count(held_out, len(train), roles, where)
    order = sorted(range(len(train)), key=lambda n: _path_hash(train[n]))
    splits = {}
    for index, role in enumerate(reversed(roles)):
        chosen = sorted(order[index * size : (index + 1) * size])
        splits[role] = [train[n] for n in chosen]
    rest = sorted(order[len(roles) * size :])
    return {"train": [train[n] for n in rest], **dict(reversed(splits.items()))}


def _path_hash(record: Record) -> bytes:
    return hashlib.sha1(str(record.extra.get("file", record.image)).encode()).digest()
