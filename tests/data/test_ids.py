"""The data set's own ids beside precomp arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from itr.data.manifest import manifest
from itr.data.precomp import read_split
from itr.errors import DataError
from itr.evaluation.protocols import Gallery


def write(folder: Path, rows: int = 3, value: float = 1.0) -> None:
    np.save(folder / "testall_ims.npy", np.full((rows, 2, 4), value, np.float32))
    (folder / "testall_caps.txt").write_text("".join(f"caption {n}\n" for n in range(5 * rows)))


@pytest.mark.parametrize("place", ["", "cxc_annots"])
@pytest.mark.parametrize("each", [1, 5])
def test_ids_of_images_and_captions(tmp_path: Path, place: str, each: int) -> None:
    write(tmp_path)
    (tmp_path / place).mkdir(exist_ok=True)
    lines = [f"{image}\n" for image in (391895, 60623, 483108) for _ in range(each)]
    (tmp_path / place / "testall_ids.txt").write_text("".join(lines))
    (tmp_path / place / "testall_capids.txt").write_text("\n".join(map(str, range(700, 715))))
    split = read_split(tmp_path, "testall")
    assert [record.image_id for record in split.records] == [391895, 60623, 483108]
    gallery = Gallery.of(split)
    assert gallery.caption_ids is not None and gallery.caption_ids.tolist() == list(range(700, 715))
    assert (gallery.annotations is not None) == bool(place)


def test_without_ids_and_with_wrong_ones(tmp_path: Path) -> None:
    write(tmp_path)
    assert [record.image_id for record in read_split(tmp_path, "testall").records] == [0, 1, 2]
    (tmp_path / "testall_ids.txt").write_text("a.jpg\nb.jpg\nc.jpg\n")  # names are no ids
    assert [record.image_id for record in read_split(tmp_path, "testall").records] == [0, 1, 2]
    (tmp_path / "testall_ids.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match="testall_ids.txt: 2 ids; expected 3 or 15"):
        read_split(tmp_path, "testall")


def test_the_manifest_changes_with_content_not_with_place(tmp_path: Path) -> None:
    found = []
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, value=value)
        found.append(manifest(read_split(tmp_path / name, "testall")))
    assert found[0] == found[1] != found[2]
    caps = tmp_path / "b" / "testall_caps.txt"
    caps.write_text(caps.read_text().replace("caption 3", "caption three"))
    assert manifest(read_split(tmp_path / "b", "testall")) != found[0]
