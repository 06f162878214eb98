"""What the doctor looks at in an open split: captions, pictures, regions, and what splits share."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from itr.data.doctor.report import NOTE, REFUSED, WARNING, Report
from itr.data.images.decode import decode, name_of, read_bytes
from itr.data.layouts.shards.samples import ShardSamples
from itr.data.records import Slice, Split
from itr.errors import DataError

SHOWN = 3  # names in a message
AHEAD = 64  # pictures in flight
LONG_SIDE = 16  # times the short one: worth a note
TINY = 8  # pixels: worth a note
CHUNK_BYTES = 32 << 20
EXIF_ORIENTATION = 0x0112
Advance = Callable[[int], None]


def listed(names: Sequence[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# Captions


def caption_statistics(split: Split) -> dict[str, Any]:
    """Lengths in words, captions an image, and how many strings occur more than once."""
    captions = (caption for record in split.records for caption in record.captions)
    found = np.fromiter(((len(c.split()), hash(c)) for c in captions), np.dtype((np.int64, 2)))
    words: np.ndarray = found[:, 0]
    counts = split.captions_per_image
    return {
        "captions_per_image": [int(counts.min()), int(counts.max())],
        "words_mean": round(float(words.mean()), 2),
        "words_p95": int(np.percentile(words.astype(np.float64), 95)),
        "words_longest": int(words.max()),
        "distinct_captions": len(np.unique(found[:, 1])),
    }


def check_captions(split: Split, report: Report) -> None:
    """Notes on captions that an image has twice."""
    twice = [
        record.image_id
        for record in split.records
        if len(set(record.captions)) < len(record.captions)
    ]
    if twice:
        report.say(
            NOTE,
            split.layout,
            split.name,
            f"{split.source}: {len(twice)} images have the same caption more than once (image ids "
            f"{listed([str(number) for number in twice])})",
        )


# Pictures


class Picture(NamedTuple):
    """What decoding one picture told."""

    digest: int  # of its bytes; 0: it cannot be decoded
    fault: str  # why it cannot be decoded; empty: it can
    oddities: tuple[str, ...]
    pixels: int


def digest(data: bytes) -> int:
    """64 bits that name ``data``; never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) or 1


def look(image: int | str | Slice, decoder: str) -> Picture:
    """Read and decode one picture, as training does."""
    name = name_of(image)
    try:
        data = read_bytes(image)
        decoded = decode(data, name, decoder)
    except DataError as error:
        return Picture(0, str(error), (), 0)
    height, width = decoded.shape[-2:]
    return Picture(digest(data), "", tuple(_oddities(data, name)), height * width)


def _oddities(data: bytes, name: str) -> Iterator[str]:
    """What is unusual about a picture that was decoded."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            (short, long), kind = sorted(picture.size), picture.format or ""
            if picture.mode != "RGB":
                yield f"mode {picture.mode}"
            if "transparency" in picture.info:
                yield "transparency"
            yield from _exif(picture)
    except Image.DecompressionBombError:
        yield "more pixels than Pillow opens"
        return
    except (OSError, SyntaxError, ValueError):
        yield "a header that Pillow cannot read"
        return
    ending = name.rpartition(".")[2].lower()
    if ending in ("jpg", "jpeg", "png") and ending.replace("jpg", "jpeg") != kind.lower():
        yield f"{kind} bytes under a name ending in .{ending}"
    if long > LONG_SIDE * short:
        yield f"longer than {LONG_SIDE} times their short side"
    if short < TINY:
        yield f"under {TINY} pixels"


def _exif(picture: Image.Image) -> Iterator[str]:
    try:
        turned = picture.getexif().get(EXIF_ORIENTATION, 1) != 1
    except Exception:  # noqa: BLE001  whatever Pillow's parser trips over; pixels need no EXIF
        yield "EXIF that cannot be read"
        return
    if turned:
        yield "EXIF orientation (left alone, as the authors' code does)"


def check_pictures(split: Split, report: Report, workers: int, advance: Advance) -> np.ndarray:
    """Decode every picture of ``split``; their digests, uint64 [N], 0 for what is broken."""
    digests = np.zeros(split.n_images, np.uint64)
    broken: list[str] = []
    odd: Counter[str] = Counter()
    first_odd: dict[str, str] = {}
    pixels = 0
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, split.n_images, AHEAD):
            part = [record.image for record in split.records[first : first + AHEAD]]
            for number, found in enumerate(
                pool.map(look, part, itertools.repeat(split.decoder)), first
            ):
                if found.fault:
                    broken.append(found.fault)
                    continue
                digests[number] = found.digest
                pixels += found.pixels
                for oddity in found.oddities:
                    odd[oddity] += 1
                    first_odd.setdefault(oddity, name_of_image(split, number))
            advance(len(part))
    _report_broken(split, broken, report)
    for oddity, count in odd.most_common():
        message = f"{count} pictures: {oddity}; the first is {first_odd[oddity]}"
        report.say(NOTE, split.layout, split.name, f"{message}; they are read")
    usable = split.n_images - len(broken)
    statistics = report.splits[-1].statistics
    statistics |= {"broken_pictures": len(broken), "mean_pixels": pixels // max(1, usable)}
    statistics["summary"] = f"{usable:,}" + (f", {len(broken)} broken" if broken else "")
    return digests


def _report_broken(split: Split, broken: list[str], report: Report) -> None:
    if not broken:
        return
    left_out = split.name.startswith("train") or isinstance(split.records, ShardSamples)
    level = WARNING if left_out and len(broken) <= split.broken_limit else REFUSED
    fate = (
        "they are left out"
        if level == WARNING
        else f"more than the {split.broken_limit} that data.max_broken allows; training stops"
        if left_out
        else "evaluation needs every picture and refuses"
    )
    shown = "; ".join(broken[:SHOWN]) + (
        f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    )
    message = f"{len(broken)} of {split.n_images} pictures cannot be used ({fate}): {shown}"
    report.say(level, split.layout, split.name, message)


# Regions


def check_regions(split: Split, report: Report, advance: Advance) -> np.ndarray:
    """Look at every value of the array of ``split``; a digest of each image, uint64 [N]."""
    assert split.regions is not None
    array = split.regions
    rows, size = len(array), max(1, CHUNK_BYTES // max(1, array[0].nbytes))
    bad: list[int] = []
    flat: list[int] = []
    by_row: list[int] = []
    total = squares = zeros = 0.0
    low, high = np.inf, -np.inf
    for first in range(0, rows, size):
        chunk = _mapped(array)[first : first + size].astype(np.float32)
        finite = np.isfinite(chunk).all(axis=(1, 2))
        spread = np.ptp(np.where(np.isfinite(chunk), chunk, 0), axis=(1, 2))
        bad += (first + np.flatnonzero(~finite)).tolist()
        flat += (first + np.flatnonzero(finite & (spread == 0))).tolist()
        by_row += [digest(row.tobytes()) for row in chunk]
        if finite.any():
            good = chunk[finite]
            total += float(good.sum(dtype=np.float64))
            squares += float(np.einsum("ijk,ijk->", good, good, dtype=np.float64))
            zeros += int((good == 0).sum())
            low, high = min(low, float(good.min())), max(high, float(good.max()))
        advance(len(chunk))
    _report_rows(split, bad, flat, report)
    count = max(1, (rows - len(bad)) * array[0].size)
    mean = total / count
    report.splits[-1].statistics |= {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "mean": mean,
        "std": max(0.0, squares / count - mean**2) ** 0.5,
        "min": low,
        "max": high,
        "zeros": zeros / count,
        "rows_not_finite": len(bad),
        "rows_flat": len(flat),
        "summary": f"{array.shape[1]}x{array.shape[2]} {array.dtype.name}",
    }
    places = [record.image for record in split.records if isinstance(record.image, int)]
    return np.array(by_row, np.uint64)[np.array(places, np.int64)]


def _mapped(array: np.ndarray) -> np.ndarray:
    """Mapped anew: what an old mapping has touched would count as ours."""
    if isinstance(array, np.memmap):
        return np.load(str(array.filename), mmap_mode="r", allow_pickle=False)
    return array


def _report_rows(split: Split, bad: list[int], flat: list[int], report: Report) -> None:
    for level, rows, what in (
        (REFUSED, bad, "hold NaN or infinity: extract these images again"),
        (WARNING, flat, "hold one value only, as if their images had not been extracted"),
    ):
        if rows:
            numbers = listed([str(row) for row in rows])
            message = f"{split.source}: {len(rows)} of {len(split.regions)} rows {what} ({numbers})"  # type: ignore[arg-type]
            report.say(level, split.layout, split.name, message)


# Between and within splits


def check_repeats(
    layout: str, splits: dict[str, Split], digests: dict[str, np.ndarray], report: Report
) -> None:
    """Pictures (or region rows) that stand twice in a split, or in two splits."""
    firsts = {}
    for name, found in digests.items():
        values, first, counts = np.unique(found, return_index=True, return_counts=True)
        firsts[name] = dict(zip(values.tolist(), first.tolist(), strict=True))
        firsts[name].pop(0, None)
        if repeated := values[(counts > 1) & (values > 0)].tolist():
            same = np.flatnonzero(found == repeated[0]).tolist()
            example = listed([name_of_image(splits[name], number) for number in same])
            message = f"{len(repeated)} pictures stand more than once, such as {example}"
            report.say(NOTE, layout, name, message)
    for one, other in itertools.combinations(digests, 2):
        shared = [value for value in firsts[one] if value in firsts[other]]
        if not shared or other == f"{one}all":  # testall holds test by design
            continue
        pairs = [
            " = ".join(name_of_image(splits[name], firsts[name][value]) for name in (one, other))
            for value in shared[:SHOWN]
        ]
        message = (
            f"{len(shared)} pictures are in both splits, by their content: results on '{other}' "
            f"would be flattered ({'; '.join(pairs)})"
        )
        report.say(WARNING, layout, f"{one}/{other}", message)


def name_of_image(split: Split, number: int) -> str:
    """What to call an image of ``split`` in a message."""
    record = split.records[number]
    if isinstance(record.image, int):
        return f"{split.source} row {record.image}"
    return name_of(record.image)
