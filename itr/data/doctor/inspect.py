"""Examines an open split: captions, images, and duplicates within and between splits."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from itr.data.doctor.report import NOTE, REFUSED, WARNING, DatasetReport
from itr.data.images.decode import decode, formats, image_name, read_bytes
from itr.data.layouts.shards.samples import ShardSamples
from itr.data.records import Slice, Split
from itr.data.splits import role_of
from itr.data.text.known_tokenizers import open_tokenizer
from itr.errors import ConfigError, DataError, first_of
from itr.view import View

MAX_LISTED = 3
BLOCK = 64  # images decoded concurrently
MAX_ASPECT_RATIO = 16
MIN_SIDE = 8  # pixels
EXIF_ORIENTATION = 0x0112
Advance = Callable[[int], None]  # moves the progress bar


# Captions


def caption_statistics(split: Split) -> dict[str, Any]:
    """Caption lengths in words, captions per image, and the number of distinct captions."""
    captions = (caption for record in split.records for caption in record.captions)
    rows = np.fromiter(((len(c.split()), hash(c)) for c in captions), np.dtype((np.int64, 2)))
    words: np.ndarray = rows[:, 0]
    counts = split.captions_per_image
    return {
        "captions_per_image": [int(counts.min()), int(counts.max())],
        "words_mean": round(float(words.mean()), 2),
        "words_p95": int(np.percentile(words.astype(np.float64), 95)),
        "words_longest": int(words.max()),
        "distinct_captions": len(np.unique(rows[:, 1])),
    }


def check_captions(split: Split, report: DatasetReport) -> None:
    """Report images with the same caption more than once."""
    image_ids = [
        record.image_id
        for record in split.records
        if len(set(record.captions)) < len(record.captions)
    ]
    if image_ids:
        report.add(
            NOTE,
            split.layout,
            split.name,
            f"{split.source}: {len(image_ids)} images have the same caption more than once (image "
            f"ids {first_of(image_ids)})",
        )


def check_lengths(split: Split, view: View, report: DatasetReport) -> int | None:
    """Report captions that the model truncates; the longest caption in ids (None: no tokenizer)."""
    captions = split.captions()
    limit = view.text_eval.max_length or view.text_eval.pad_to
    try:
        tokenizer = open_tokenizer(view, captions)
    except ConfigError as error:
        message = f"caption lengths in token ids are unknown: {error}"
        report.add(NOTE, split.layout, split.name, message)
        return None
    untruncated = dataclasses.replace(view.text_eval, max_length=None, pad_to=None)
    lengths = tokenizer.tokenize(captions, untruncated).lengths
    truncated = np.flatnonzero(lengths > limit) if limit else np.zeros(0, np.int64)
    if len(truncated):
        example = repr(captions[int(truncated[0])][:40])
        message = (
            f"{len(truncated)} of {len(captions)} captions exceed the model's {limit} token ids "
            f"and are truncated, e.g. {example}..."
        )
        report.add(NOTE, split.layout, split.name, message)
    return int(lengths.max())


# Images


class ImageCheck(NamedTuple):
    """The result of decoding one image."""

    digest: int  # of its bytes; 0: it cannot be decoded
    fault: str  # why it cannot be decoded; empty if it can
    oddities: tuple[str, ...]  # unusual properties
    pixels: int


def digest(data: bytes) -> int:
    """A 64-bit hash of ``data``; never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) or 1


def check_image(image: int | str | Slice, decoder: str) -> ImageCheck:
    """Read and decode one image, as training does."""
    name = image_name(image)
    try:
        data = read_bytes(image)
        decoded = decode(data, name, decoder)
    except DataError as error:
        return ImageCheck(0, str(error), (), 0)
    height, width = decoded.shape[-2:]
    return ImageCheck(digest(data), "", tuple(_oddities(data, name)), height * width)


def _oddities(data: bytes, name: str) -> Iterator[str]:
    """Unusual properties of an image that was decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            (short, long), image_format = sorted(image.size), image.format or ""
            if image.mode != "RGB":
                yield f"mode {image.mode}"
            if "transparency" in image.info:
                yield "transparency"
            yield from _exif_oddities(image)
    except Image.DecompressionBombError:
        yield "more pixels than Pillow opens"
        return
    except (OSError, SyntaxError, ValueError):
        yield "a header that Pillow cannot read"
        return
    extension = name.rpartition(".")[2].lower()
    if extension in ("jpg", "jpeg", "png"):
        if extension.replace("jpg", "jpeg") != image_format.lower():
            yield f"{image_format} bytes in a .{extension} file"
    if long > MAX_ASPECT_RATIO * short:
        yield f"aspect ratio above {MAX_ASPECT_RATIO}"
    if short < MIN_SIDE:
        yield f"under {MIN_SIDE} pixels"


def _exif_oddities(image: Image.Image) -> Iterator[str]:
    try:
        rotated = image.getexif().get(EXIF_ORIENTATION, 1) != 1
    except Exception:  # noqa: BLE001  Pillow's parser raises many types; pixels need no EXIF
        yield "EXIF that cannot be read"
        return
    if rotated:
        yield "EXIF orientation (ignored, as in the authors' code)"


def check_images(split: Split, report: DatasetReport, workers: int, advance: Advance) -> np.ndarray:
    """Decode every image of ``split``; their digests, uint64 [N], 0 for broken images."""
    digests = np.zeros(split.n_images, np.uint64)
    broken: list[str] = []
    oddities: Counter[str] = Counter()
    examples: dict[str, str] = {}
    pixels = 0
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, split.n_images, BLOCK):
            images = [record.image for record in split.records[first : first + BLOCK]]
            results = pool.map(check_image, images, itertools.repeat(split.decoder))
            for number, result in enumerate(results, first):
                if result.fault:
                    broken.append(result.fault)
                    continue
                digests[number] = result.digest
                pixels += result.pixels
                for oddity in result.oddities:
                    oddities[oddity] += 1
                    examples.setdefault(oddity, image_label(split, number))
            advance(len(images))
    _report_broken(split, broken, report)
    for oddity, count in oddities.most_common():
        message = f"{count} images: {oddity} (first: {examples[oddity]}); they are read"
        report.add(NOTE, split.layout, split.name, message)
    usable = split.n_images - len(broken)
    report.splits[-1].statistics |= {
        "broken_images": len(broken),
        "mean_pixels": pixels // max(1, usable),
        "summary": f"{usable:,}" + (f", {len(broken)} broken" if broken else ""),
    }
    return digests


def _report_broken(split: Split, broken: list[str], report: DatasetReport) -> None:
    if not broken:
        return
    tolerated = role_of(split.name) == "train" or isinstance(split.records, ShardSamples)
    level = WARNING if tolerated and len(broken) <= split.broken_limit else REFUSED
    if level == WARNING:
        consequence = "they are left out"
    elif tolerated:
        consequence = f"data.max_broken allows {split.broken_limit}; training stops"
    else:
        consequence = "evaluation refuses, since it needs every image"
    message = (
        f"{len(broken)} of {split.n_images} images cannot be used ({consequence}): "
        f"{first_of(broken, separator='; ')}"
    )
    report.add(level, split.layout, split.name, message)


# Duplicates within and between splits


def check_duplicates(
    layout: str, splits: dict[str, Split], digests: dict[str, np.ndarray], report: DatasetReport
) -> None:
    """Report images (or region rows) that occur twice in a split, or in two splits.

    ``digests`` are those of the images of each split, uint64 [N]; 0 is ignored.
    """
    first_index = {}  # split -> digest -> index of the first such image
    for name, values in digests.items():
        unique, first, counts = np.unique(values, return_index=True, return_counts=True)
        first_index[name] = dict(zip(unique.tolist(), first.tolist(), strict=True))
        first_index[name].pop(0, None)
        if repeated := unique[(counts > 1) & (unique > 0)].tolist():
            same = np.flatnonzero(values == repeated[0]).tolist()
            example = first_of([image_label(splits[name], number) for number in same])
            message = f"{len(repeated)} images occur more than once, e.g. {example}"
            report.add(NOTE, layout, name, message)
    for one, other in itertools.combinations(digests, 2):
        shared = [value for value in first_index[one] if value in first_index[other]]
        if not shared or other == f"{one}all":  # testall contains test by design
            continue
        pairs = [
            " = ".join(image_label(splits[name], first_index[name][value]) for name in (one, other))
            for value in shared[:MAX_LISTED]
        ]
        message = (
            f"{len(shared)} images have the same content in both splits, which inflates results on "
            f"'{other}' ({'; '.join(pairs)})"
        )
        report.add(WARNING, layout, f"{one}/{other}", message)


def image_label(split: Split, number: int) -> str:
    """The name of an image of ``split`` in a message."""
    record = split.records[number]
    if isinstance(record.image, int):
        return f"{split.source} row {record.image}"
    return image_name(record.image)
