"""Training pairs mismatched on purpose: the field's test of robustness to noisy correspondence.

A noise index file (.npy) says of each caption which image it is shown with: int [C], as NCR and
its successors publish them. Images keep their number of captions.
Source: Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS 2021.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from itr.data.config import DataConfig
from itr.data.records import Record, Split
from itr.errors import ConfigError, DataError
from itr.files import atomic_write

SEED = 0  # the noise is the same whatever the seed of a run is
NEAR = (
    0.01  # by how much the share of a file may differ from data.noise: theirs leaves some matched
)


def mismatch(split: Split, data: DataConfig) -> Split:
    """``split`` with the share ``data.noise`` of its pairs mismatched, or as the file says.

    The file is read where it is there, else written. Raises DataError for a file that does not
    fit, ConfigError if nothing can be mismatched.
    """
    if not data.noise and data.noise_file is None:
        return split
    path = _path(split, data)
    if path.is_file():
        shown = _load(path, split)
    elif data.noise:
        shown = shuffle(split.text_to_image, data.noise)
        _save(path, shown)
    else:
        raise DataError(f"data.noise_file={path}: no such file; type data.noise=0.2 to make it")
    share = float((shown != split.text_to_image).mean())
    if data.noise and abs(share - data.noise) > NEAR:
        raise ConfigError(
            f"data.noise={data.noise}: {path} mismatches {share:.3f} of the pairs; type "
            f"data.noise={share:.2f}, or another data.noise_file"
        )
    note = f"noise: {share:.1%} of the training pairs are mismatched, as {path} says"
    return dataclasses.replace(_moved(split, shown), notes=(*split.notes, note))


def shuffle(text_to_image: np.ndarray, share: float) -> np.ndarray:
    """The image that each caption is shown with: exactly ``share`` of [C] with another's.

    Raises ConfigError where there are too few images for that.
    """
    random = np.random.default_rng(SEED)
    chosen = random.permutation(len(text_to_image))[: round(share * len(text_to_image))]
    own = text_to_image[chosen]
    if len(own) < 2 or np.unique(own, return_counts=True)[1].max() * 2 > len(own):
        raise ConfigError(
            f"data.noise={share}: {len(own)} of {len(text_to_image)} pairs are too few to mismatch"
        )
    given = random.permutation(own)
    while len(same := np.flatnonzero(given == own)):
        for place in same.tolist():  # few: swapped with any other until none is left
            other = int(random.integers(len(given)))
            given[[place, other]] = given[[other, place]]
    shown = text_to_image.copy()
    shown[chosen] = given
    return shown


def _moved(split: Split, shown: np.ndarray) -> Split:
    """The captions of ``split``, and their ids, at the images of ``shown`` [C]."""
    texts = split.captions()
    ids = [number for record in split.records for number in record.caption_ids]
    order = np.argsort(shown, kind="stable")
    starts = np.searchsorted(shown[order], np.arange(split.n_images + 1))
    records: list[Record] = []
    for number, record in enumerate(split.records):
        own = order[starts[number] : starts[number + 1]].tolist()
        captions, numbers = tuple(texts[n] for n in own), tuple(ids[n] for n in own)
        records.append(dataclasses.replace(record, captions=captions, caption_ids=numbers))
    return dataclasses.replace(split, records=records)


def _path(split: Split, data: DataConfig) -> Path:
    """The noise index file; where none is named, one in the cache for these very pairs."""
    if data.noise_file is not None:
        return Path(data.noise_file).expanduser()
    key = hashlib.sha256(split.text_to_image.tobytes())
    for caption in split.captions():
        key.update(caption.encode() + b"\n")
    return Path(data.cache) / f"noise-{data.name}-{data.noise:g}-{key.hexdigest()[:12]}.npy"


def _load(path: Path, split: Split) -> np.ndarray:
    try:
        shown = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: no array that can be read ({error})") from error
    fits = isinstance(shown, np.ndarray) and shown.dtype.kind in "iu"
    if not fits or shown.shape != (split.n_captions,):
        raise DataError(
            f"{path}: holds {shown.dtype.name} of shape {shown.shape}; expected whole numbers of "
            f"shape ({split.n_captions},): the image of each training caption, from 0 on"
        )
    counts = np.bincount(shown.clip(0).astype(np.int64), minlength=split.n_images)
    if shown.min() < 0 or len(counts) > split.n_images:
        raise DataError(
            f"{path}: holds images {shown.min()} to {shown.max()}; the split has 0 to "
            f"{split.n_images - 1}"
        )
    if len(empty := np.flatnonzero(counts == 0)):
        raise DataError(f"{path}: leaves {len(empty)} images without a caption ({empty[0]}, ...)")
    return shown.astype(np.int64)


def _save(path: Path, shown: np.ndarray) -> None:
    try:
        with atomic_write(path) as file:
            np.save(file, shown)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); type data.noise_file=FILE"
        ) from error
