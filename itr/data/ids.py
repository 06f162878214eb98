"""The data set's own ids beside SCAN's arrays: CxC and ECCV Caption speak of COCO's.

``<split>_ids.txt`` holds an image id a line (one an image, or one a caption) and
``<split>_capids.txt`` a caption id a line; both in the folder of the arrays or in its
``cxc_annots/``.
"""

from __future__ import annotations

from pathlib import Path

from itr.errors import DataError

IMAGE_IDS, CAPTION_IDS, ANNOTATIONS = "_ids.txt", "_capids.txt", "cxc_annots"


def read_ids(
    folder: Path, split: str, images: int, captions: int
) -> tuple[list[int] | None, list[int] | None]:
    """Ids of ``images`` images and ``captions`` captions, each None where there are none.

    Raises DataError for another number of lines. Lines that are no numbers (file names) are no ids.
    """
    share = captions // images
    by_image = _read(folder, f"{split}{IMAGE_IDS}", {images: 1, captions: share})
    return by_image, _read(folder, f"{split}{CAPTION_IDS}", {captions: 1})


def _read(folder: Path, name: str, steps: dict[int, int]) -> list[int] | None:
    """Every n-th line of the file, where ``steps`` maps its number of lines to n."""
    path = next((p for p in (folder / name, folder / ANNOTATIONS / name) if p.is_file()), None)
    if path is None:
        return None
    lines = path.read_text(encoding="utf-8").split()
    if not all(line.isdigit() for line in lines):
        return None
    if len(lines) not in steps:
        expected = " or ".join(str(count) for count in steps)
        raise DataError(f"{path}: {len(lines)} ids; expected {expected}, as the captions file says")
    return [int(line) for line in lines[:: steps[len(lines)]]]
