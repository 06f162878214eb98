"""Pictures that training shares with the splits it is judged on."""

from __future__ import annotations

from collections.abc import Mapping

from itr.data.records import Record, Split
from itr.data.samples import Samples
from itr.errors import DataError

SHOWN = 3


def check_leaks(splits: Mapping[str, Split]) -> None:
    """Raise DataError if a picture of ``splits["train"]`` is also in another of ``splits``.

    Pictures are compared by their files; content is left to the doctor. Where the training split
    was joined from others by name (``train+val``), those may overlap: a note says so.
    """
    train = splits["train"]
    if isinstance(train.records, Samples):  # its parts never overlap
        return
    names = {name for record in train.records if (name := _file(record))}
    for role, split in splits.items():
        if role == "train":
            continue
        shared = sorted(names & {name for record in split.records if (name := _file(record))})
        if not shared:
            continue
        told = f"{len(shared)} of {split.n_images} pictures of {split.source} ({role})"
        if split.name in train.name.split("+"):
            note = f"{told} are trained on, as data.splits.train={train.name} says"
            splits[role].notes = (*split.notes, note)
            continue
        shown = ", ".join(shared[:SHOWN]) + (", ..." if len(shared) > SHOWN else "")
        raise DataError(
            f"{told} are also in {train.source} (train): {shown}. Results on them would mean "
            "nothing: remove them from one of the two"
        )


def _file(record: Record) -> str:
    """What tells a picture from others: its path, or its name inside a file (empty: no name)."""
    if isinstance(record.image, str):
        return record.image
    return str(record.extra.get("file", ""))
