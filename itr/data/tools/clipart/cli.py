"""The command ``itr data clipart``: real pictures with human captions."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from itr.command import command
from itr.data.tools.clipart.captioning import clean, write_captions
from itr.data.tools.clipart.choice import choose, fraction
from itr.data.tools.clipart.metadata import Drawing, read_drawing, xml_library
from itr.data.tools.clipart.packages import PACKAGES, drawings_folder
from itr.data.tools.clipart.picture import read_picture
from itr.data.tools.clipart.wording import words
from itr.errors import ConfigError, DataError
from itr.files import atomic_folder, explain_write_error
from itr.terminal import PlainConsole, say

NAME = "openclipart"
DESCRIPTION = f"""\
Write a dataset of real pictures with human captions: some 4,200 drawings of the Open Clip Art
Library (public domain) with the titles, descriptions and keywords of their contributors.

They come from Debian's packages {" and ".join(PACKAGES)} (150 MB), which are downloaded with
apt-get and unpacked with dpkg-deb; nothing is installed. OUT holds dataset_{NAME}.json and
images/; itr data convert and itr data features write other layouts."""


@command
def main(arguments: Sequence[str]) -> None:
    """Write the dataset."""
    parser = argparse.ArgumentParser(
        prog="itr data clipart",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("out", metavar="OUT", help="folder to write; must not exist")
    add("--packages", help="folder with the two .deb files, or with what they hold")
    add("--cache", help="folder that keeps the packages (default: ~/.cache/itr/clipart)")
    add("--limit", type=int, help="about this many images (default: all)")
    args = parser.parse_args(arguments)
    target = Path(args.out).expanduser()
    if target.exists():
        raise ConfigError(f"{target}: already exists; pass an OUT that does not")
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: expected 1 or more; pass a number of images")
    etree = xml_library()
    cache = Path(args.cache or "~/.cache/itr/clipart").expanduser()
    with explain_write_error(cache, "the packages", "pass --cache elsewhere"):
        root = drawings_folder(args.packages, cache)
    left_out: Counter[str] = Counter()
    drawings = read(etree, root, args.limit, left_out)
    with explain_write_error(target, "the dataset", "pass an OUT elsewhere"):
        with atomic_folder(target) as draft:
            write(draft, drawings)
    for line in _report(target, drawings, left_out):
        say(line)


def read(etree: Any, root: Path, limit: int | None, left_out: Counter[str]) -> list[Drawing]:
    """The drawings of the dataset. Raises DataError if none is left."""
    files = _files(root)
    if limit:
        left_out["beyond --limit"] += len(files) - len(files[: 2 * limit])
        files = files[: 2 * limit]
    found = [read_drawing(etree, root, file) for file in _shown(files, "reading captions")]
    drawings = [drawing for drawing in found if drawing is not None]
    left_out["unreadable SVG file"] += len(found) - len(drawings)
    public = [d for d in drawings if not d.license or re.search("public ?domain", d.license, re.I)]
    left_out["not marked public domain"] += len(drawings) - len(public)
    clean(public)
    pictured = _with_pictures(public, root, left_out)
    write_captions(pictured)
    left_out["title that says nothing"] += sum(not drawing.concept for drawing in pictured)
    if not (chosen := choose(pictured, limit, left_out)):
        raise DataError(
            f"{root}: no drawing is left ({_counts(left_out) or 'it is empty'}); expected "
            "svg/NAME.svg and png/NAME.png. Pass other --packages or a larger --limit"
        )
    return chosen


def _files(root: Path) -> list[str]:
    """SVG files with a PNG file of the same name, in a pseudo-random order; links are skipped."""
    files, folder = [], root / "svg"
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(parent) / name
            file = path.relative_to(folder).as_posix()
            if name.endswith(".svg") and not path.is_symlink():
                if (root / "png" / file).with_suffix(".png").exists():
                    files.append(file)
    return sorted(files, key=fraction)


def _with_pictures(
    drawings: Sequence[Drawing], root: Path, left_out: Counter[str]
) -> list[Drawing]:
    """Drawings with their pictures; of equal pictures the first, with the keywords of all."""
    kept: dict[str, Drawing] = {}
    for drawing in _shown(drawings, "drawing pictures"):
        drawing.picture = read_picture((root / "png" / drawing.file).with_suffix(".png"))
        if drawing.picture is None:
            left_out["picture unreadable, blank, tiny, huge or very long"] += 1
        elif (first := kept.setdefault(drawing.picture.digest, drawing)) is not drawing:
            left_out["the same picture filed twice"] += 1
            first.keywords += [word for word in drawing.keywords if word not in first.keywords]
    return list(kept.values())


def _shown(items: Sequence[Any], what: str) -> Iterator[Any]:
    console = PlainConsole(stderr=True)
    yield from track(items, what, console=console, disable=not console.is_terminal)


def write(folder: Path, drawings: Sequence[Drawing]) -> None:
    """Write images and Karpathy annotations. Raises OSError."""
    (folder / "images").mkdir()
    images: list[dict[str, Any]] = []
    number = 0
    for image, drawing in enumerate(drawings):
        assert drawing.picture is not None
        (folder / "images" / drawing.name).write_bytes(drawing.picture.jpeg)
        ids = list(range(number, number + len(drawing.captions)))
        number += len(ids)
        sentences = [
            {"raw": text, "tokens": words(text), "sentid": sentence, "imgid": image}
            for text, sentence in zip(drawing.captions, ids, strict=True)
        ]
        entry = {"filename": drawing.name, "imgid": image, "sentids": ids, "split": drawing.split}
        images.append({**entry, "sentences": sentences, "author": drawing.author})
    content = json.dumps({"images": images, "dataset": NAME}, ensure_ascii=False)
    (folder / f"dataset_{NAME}.json").write_text(content, encoding="utf-8")


def _report(target: Path, drawings: Sequence[Drawing], left_out: Counter[str]) -> list[str]:
    captions = sum(len(drawing.captions) for drawing in drawings)
    splits = Counter(drawing.split for drawing in drawings)
    parts = ", ".join(f"{name} {splits[name]:,}" for name in ("train", "val", "test"))
    return [
        f"wrote {target}: {len(drawings):,} images ({parts}), {captions:,} captions",
        f"left out: {_counts(left_out) or 'nothing'}",
        f"train with: data=table data.name={NAME} data.root={target} data.layout=karpathy",
    ]


def _counts(left_out: Counter[str]) -> str:
    return "; ".join(f"{number:,} {why}" for why, number in left_out.items() if number)
