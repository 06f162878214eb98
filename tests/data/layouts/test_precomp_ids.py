"""Dataset ids beside precomp arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from itr.data.checks.fingerprint import content_hash
from itr.data.layouts.precomp import read_split
from itr.errors import DataError
from itr.evaluation.retrieval_set import RetrievalSet


def write(folder: Path, rows: int = 3, value: float = 1.0) -> None:
    np.save(folder / "testall_ims.npy", np.full((rows, 2, 4), value, np.float32))
    (folder / "testall_caps.txt").write_text("".join(f"caption {n}\n" for n in range(5 * rows)))


@pytest.mark.parametrize("subfolder", ["", "cxc_annots"])
@pytest.mark.parametrize("repeats", [1, 5])
def test_ids_of_images_and_captions(tmp_path: Path, subfolder: str, repeats: int) -> None:
    write(tmp_path)
    (tmp_path / subfolder).mkdir(exist_ok=True)
    lines = [f"{image}\n" for image in (391895, 60623, 483108) for _ in range(repeats)]
    (tmp_path / subfolder / "testall_ids.txt").write_text("".join(lines))
    (tmp_path / subfolder / "testall_capids.txt").write_text("\n".join(map(str, range(700, 715))))
    split = read_split(tmp_path, "testall")
    assert [record.image_id for record in split.records] == [391895, 60623, 483108]
    gallery = RetrievalSet.from_split(split)
    assert gallery.caption_ids is not None and gallery.caption_ids.tolist() == list(range(700, 715))
    assert (gallery.annotations is not None) == bool(subfolder)


def test_missing_and_wrong_ids(tmp_path: Path) -> None:
    write(tmp_path)
    assert [record.image_id for record in read_split(tmp_path, "testall").records] == [0, 1, 2]
    for name, text, words in (
        ("testall_ids.txt", "a.jpg\nb.jpg\nc.jpg\n", "testall_ids.txt, line 1: 'a.jpg'"),
        ("testall_ids.txt", "1\n2\n", "testall_ids.txt: 2 ids for 3 images"),
        ("testall_capids.txt", "1\n2\n", "testall_capids.txt: 2 ids for 15 captions"),
        ("testall_capids.txt", "7\n" * 15, "testall_capids.txt: duplicate caption id 7"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=words):
            read_split(tmp_path, "testall")
        (tmp_path / name).unlink()


def test_the_hash_depends_on_the_content_not_on_the_folder(tmp_path: Path) -> None:
    hashes = []
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, value=value)
        hashes.append(content_hash(read_split(tmp_path / name, "testall")))
    assert hashes[0] == hashes[1] != hashes[2]
    caps = tmp_path / "b" / "testall_caps.txt"
    caps.write_text(caps.read_text().replace("caption 3", "caption three"))
    assert content_hash(read_split(tmp_path / "b", "testall")) != hashes[0]
    np.save(tmp_path / "a" / "testall_clip.npy", np.ones((3, 4), np.float32))
    assert content_hash(read_split(tmp_path / "a", "testall")) != hashes[0]
