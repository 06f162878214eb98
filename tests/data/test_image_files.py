"""Folders as people have them: every ending that Pillow reads, junk of systems, odd text files."""

from pathlib import Path

import pytest

from itr.data.classification.dataset import ClassificationConfig, ClassificationDataset
from itr.data.image_files import files_below, is_image
from itr.errors import DataError
from itr.jobs.commands.embed_search_cli import read_texts
from itr.jobs.retriever import find_images
from tests.data.image_files import encoded, photo

KINDS = {
    "jpg": "JPEG", "JPG": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "avif": "AVIF", "gif": "GIF",
    "webp": "WEBP", "jp2": "JPEG2000", "tga": "TGA", "tif": "TIFF", "": "PNG", "dat": "JPEG",
}  # fmt: skip
APPLE = b"\0\5\x16\7\0\2\0\0Mac OS X"


def write_images(folder: Path, extensions=KINDS) -> None:
    folder.mkdir(parents=True)
    for number, extension in enumerate(extensions):
        data = encoded(photo(seed=number), KINDS[extension])
        (folder / (f"p{number}.{extension}" if extension else f"p{number}")).write_bytes(data)
        (folder / f"._p{number}.jpg").write_bytes(APPLE)
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def test_every_image_below_a_folder_is_found(tmp_path):
    write_images(tmp_path / "a" / "b")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "p0.jpg").write_bytes(APPLE)
    for name in ("notes.txt", "x.h5", "v.mpg", "empty"):
        (tmp_path / name).write_bytes(b"\x89HDF" if name == "x.h5" else b"")
    images, others = find_images(tmp_path)
    assert [path.name for path in images] == sorted(path.name for path in images)
    assert len(images) == len(KINDS)
    assert [Path(path).name for path in others] == ["empty", "notes.txt", "v.mpg", "x.h5"]
    assert len(list(files_below(tmp_path))) == len(KINDS) + 4
    with pytest.raises(DataError, match="contains no images.*1 files are of other kinds.*notes"):
        (tmp_path / "none").mkdir()
        (tmp_path / "none" / "notes.txt").write_text("a")
        find_images(tmp_path / "none")
    assert not is_image(tmp_path / "nowhere")


def test_classes_of_any_ending(tmp_path):
    write_images(tmp_path / "cat", ("avif", "jfif"))
    write_images(tmp_path / "dog", ("gif", "", "tga"))
    (tmp_path / "__MACOSX" / "cat").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "cat" / "._0.jpg").write_bytes(APPLE)
    (tmp_path / "cat" / "Read me.txt").write_text("a")
    config = ClassificationConfig("x", str(tmp_path), set="folder", templates=["a {}"])
    classes = ClassificationDataset(config)
    assert classes.names == ["cat", "dog"] and len(classes) == 5
    assert [target for _, target in map(classes._read_image, range(5))] == [0, 0, 1, 1, 1]
    assert classes.notes and "1 files are no images" in classes.notes[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="data.root=.*no image in empty"):
        ClassificationDataset(config)


@pytest.mark.parametrize("content, texts, blank", [
    (b"a\nb\n", ["a", "b"], []),
    (b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"], []),
    ("a\u2028b\nc\x85d\ne\x0cf".encode(), ["a\u2028b", "c\x85d", "e\x0cf"], []),
    (b"a\n\nb\n\n", ["a", "b"], [2, 4]),
])  # fmt: skip
def test_texts_a_line(tmp_path, content, texts, blank):
    (tmp_path / "t.txt").write_bytes(content)
    assert read_texts(tmp_path / "t.txt") == (texts, blank)
