"""Mismatches training pairs on purpose, to test robustness to noisy correspondence.

A noise index file (.npy) holds the image index of each caption, int [C], as published with NCR and
its successors. The number of captions per image does not change.
Source: Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS 2021.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from itr.array_files import read_array
from itr.data.config import DataConfig
from itr.data.records import Record, Split
from itr.errors import ConfigError, DataError
from itr.files import atomic_write

SEED = 0  # independent of the seed of the run
# Allowed difference between a file and data.noise: published files leave some pairs matched.
TOLERANCE = 0.01


def mismatch(split: Split, data: DataConfig) -> Split:
    """``split`` with pairs mismatched by ``data.noise_file``, or a random share ``data.noise``.

    The file is read if it exists and written otherwise. Raises DataError for a file that does not
    fit, ConfigError if there are too few pairs to mismatch.
    """
    if not data.noise and data.noise_file is None:
        return split
    path = _index_path(split, data)
    if path.is_file():
        image_of_caption = _load(path, split)
    elif data.noise:
        image_of_caption = shuffle(split.text_to_image, data.noise)
        _save(path, image_of_caption)
    else:
        raise DataError(f"data.noise_file={path}: no such file; pass data.noise=0.2 to create it")
    share = float((image_of_caption != split.text_to_image).mean())
    if data.noise and abs(share - data.noise) > TOLERANCE:
        raise ConfigError(
            f"data.noise={data.noise}: {path} mismatches {share:.3f} of the pairs; pass "
            f"data.noise={share:.2f}, or another data.noise_file"
        )
    note = f"noise: {share:.1%} of the training pairs are mismatched according to {path}"
    return dataclasses.replace(_reassign(split, image_of_caption), notes=(*split.notes, note))


def shuffle(text_to_image: np.ndarray, share: float) -> np.ndarray:
    """A copy of ``text_to_image`` [C] in which exactly ``share`` of the captions change image.

    Raises ConfigError if there are too few images for that.
    """
    random = np.random.default_rng(SEED)
    chosen = random.permutation(len(text_to_image))[: round(share * len(text_to_image))]
    before = text_to_image[chosen]
    if len(before) < 2 or np.unique(before, return_counts=True)[1].max() * 2 > len(before):
        raise ConfigError(
            f"data.noise={share}: {len(before)} of {len(text_to_image)} pairs are too few to "
            "mismatch; pass a larger data.noise"
        )
    after = random.permutation(before)
    while len(fixed := np.flatnonzero(after == before)):
        for index in fixed.tolist():  # few: swap with a random other until none is left
            other = int(random.integers(len(after)))
            after[[index, other]] = after[[other, index]]
    image_of_caption = text_to_image.copy()
    image_of_caption[chosen] = after
    return image_of_caption


def _reassign(split: Split, image_of_caption: np.ndarray) -> Split:
    """``split`` with its captions, and their ids, moved to ``image_of_caption`` [C]."""
    texts = split.captions()
    ids = [number for record in split.records for number in record.caption_ids]
    order = np.argsort(image_of_caption, kind="stable")
    starts = np.searchsorted(image_of_caption[order], np.arange(split.n_images + 1))
    records: list[Record] = []
    for number, record in enumerate(split.records):
        rows = order[starts[number] : starts[number + 1]].tolist()
        captions, caption_ids = tuple(texts[n] for n in rows), tuple(ids[n] for n in rows)
        records.append(dataclasses.replace(record, captions=captions, caption_ids=caption_ids))
    return dataclasses.replace(split, records=records)


def _index_path(split: Split, data: DataConfig) -> Path:
    """``data.noise_file``, by default a file in the cache, named after a hash of the pairs."""
    if data.noise_file is not None:
        return Path(data.noise_file).expanduser()
    key = hashlib.sha256(split.text_to_image.tobytes())
    for caption in split.captions():
        key.update(caption.encode() + b"\n")
    return Path(data.cache) / f"noise-{data.name}-{data.noise:g}-{key.hexdigest()[:12]}.npy"


def _load(path: Path, split: Split) -> np.ndarray:
    try:
        index = read_array(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error}); write it again") from error
    if index.dtype.kind not in "iu" or index.shape != (split.n_captions,):
        raise DataError(
            f"{path}: holds {index.dtype.name} of shape {index.shape}; expected integers of "
            f"shape ({split.n_captions},): the image index of each training caption, from 0"
        )
    counts = np.bincount(index.clip(0).astype(np.int64), minlength=split.n_images)
    if index.min() < 0 or len(counts) > split.n_images:
        raise DataError(
            f"{path}: holds image indices {index.min()} to {index.max()}; expected 0 to "
            f"{split.n_images - 1}"
        )
    if len(empty := np.flatnonzero(counts == 0)):
        raise DataError(
            f"{path}: leaves {len(empty)} images without a caption (first: image {empty[0]}); "
            "expected at least one caption per image"
        )
    return index.astype(np.int64)


def _save(path: Path, index: np.ndarray) -> None:
    try:
        with atomic_write(path) as file:  # two jobs may write at the same time
            np.save(file, index)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); pass data.noise_file=FILE"
        ) from error
