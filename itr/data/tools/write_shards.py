"""Writes splits as tar shards, for ``itr data convert``."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path

from itr.data.image_files import image_extensions
from itr.data.images.decode import read_bytes
from itr.data.records import Record, Split
from itr.data.tools.writers import WriteOptions, image_names, iterate, training_hint


def write_shards(target: Path, splits: dict[str, Split], options: WriteOptions) -> list[str]:
    """Write ``<split>/00000.tar``, ... in the folder ``target``; the .json holds all captions."""
    names, number = image_names(splits), 0
    for part, split in splits.items():
        (target / part).mkdir(parents=True)
        samples = zip(iterate(split), names[part], strict=True)
        for shard in range(-(-split.n_images // options.shard_size)):
            path = target / part / f"{shard:05d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for (record, second), name in itertools.islice(samples, options.shard_size):
                    _add_sample(tar, f"{number:09d}", record, name, {options.second_key: second})
                    number += 1
    return [training_hint(f"data.shards={target}", options.name)]


def _add_sample(
    tar: tarfile.TarFile, key: str, record: Record, name: str, second: dict[str, str | None]
) -> None:
    meta = {
        "image_id": record.image_id,
        "file": name,
        "captions": list(record.captions),
        "caption_ids": list(record.caption_ids),
        **{field: text for field, text in second.items() if text is not None},
    }
    extension = Path(name).suffix.lower().lstrip(".")
    if extension not in image_extensions():  # the reader recognizes images by extension
        extension = "jpg"
    _add(tar, f"{key}.{extension}", read_bytes(record.image))
    _add(tar, f"{key}.txt", record.captions[0].encode())
    _add(tar, f"{key}.json", json.dumps(meta, ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # time and owner stay 0, so that the output is reproducible
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
