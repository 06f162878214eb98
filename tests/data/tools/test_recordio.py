"""ALIP's MXNet RecordIO files, written here without MXNet, become shards."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import open_clip
import pytest

from itr.data.config import DataConfig
from itr.data.doctor.cli import main as check
from itr.data.images.decode import read_bytes
from itr.data.layouts.registry import open_split
from itr.data.tools.convert import main as convert
from itr.data.tools.recordio import LENGTH_BITS, MAGIC
from itr.errors import DataError
from tests.data.image_files import encoded, photo

TEXTS = [
    ("A dog's tail, 12 cm & «naïve» 日本", "a dog is running in the snow"),
    ("sunset @ the beach!!! #nofilter", "a photo of a beach"),
    ("x " * 100, "a very long text about nothing"),
]


def frame(payload: bytes, part: int = 0) -> bytes:
    word = part << LENGTH_BITS | len(payload)
    return struct.pack("<II", MAGIC, word) + payload + bytes(-len(payload) % 4)


def packed(labels: list[float], image: bytes, number: int = 0) -> bytes:
    head = struct.pack("<IfQQ", len(labels), 0.0, number, 0)
    return head + np.array(labels, "<f4").tobytes() + image


def labels_of(*texts: str) -> list[float]:
    return open_clip.get_tokenizer("ViT-B-32")(list(texts)).flatten().tolist()


@pytest.fixture
def records() -> list[bytes]:
    images = [encoded(photo(40, 32 + n, seed=n)) for n in range(len(TEXTS))]
    return [
        frame(packed(labels_of(*pair), image, n))
        for n, (pair, image) in enumerate(zip(TEXTS, images, strict=True))
    ]


def write(folder: Path, records: list[bytes], name: str = "yfcc15m", listed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    offsets = np.cumsum([0, *map(len, records)])
    (folder / f"{name}.rec").write_bytes(b"".join(records))
    lines = [f"{n}\t{offset}\n" for n, offset in enumerate(offsets[: listed or len(records)])]
    (folder / f"{name}.idx").write_text("".join(lines))
    return folder


def test_shards_with_both_texts_are_written(
    tmp_path: Path, records: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    counts = frame(packed([4.0, 5.0], b""))  # no picture
    parts = frame(records[0][8:], part=1) + frame(b"rest", part=3)
    source = write(tmp_path / "rec", [counts, *records, parts])
    assert convert([str(source), str(source / "wds"), "--held-out", "0"]) in (0, None)
    said = capsys.readouterr()
    assert "1 without a picture, 1 in parts" in " ".join(said.err.split())
    assert "1 texts fill all 77 ids" in " ".join(said.err.split())
    assert "train: 3 images, 3 captions" in said.out
    data = DataConfig("yfcc", "", shards=str(source / "wds"), held_out=0)
    split = open_split(data, "train", "pixels", second=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    for number, (raw, caption) in enumerate(TEXTS):
        assert np.array_equal(tokenizer([split.texts[number]]), tokenizer([raw]))
        assert split.second_texts()[number] == caption
        image = encoded(photo(40, 32 + number, seed=number))
        assert read_bytes(split.records[number].image) == image


def test_training_and_check_say_that_they_are_to_be_converted(
    tmp_path: Path, records: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "rec", records)
    with pytest.raises(DataError, match=f"itr data convert {source} {source}/wds"):
        open_split(DataConfig("yfcc", str(source)), "train", "pixels")
    assert check([f"data.root={source}"]) == 2
    assert f"itr data convert {source}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: [r[0], r[1][:-40]], r"yfcc15m\.rec: cut short .* byte \d+"),
        (lambda r: [r[0], bytes(64), r[1]], r"no record at byte \d+ \(expected 0xced7230a"),
        (lambda r: [r[0], frame(b"tiny")], "4 bytes has no header"),
        (lambda r: [frame(packed([7.0], b"jpeg"))], "record 0 has 1 labels; expected 154"),
        (lambda r: [frame(packed([7.0] * 76 + [60000.0] * 78, b"jpeg"))], "the id 60000"),
        (lambda r: [b""], "is empty"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, records: list[bytes], damage, message: str, capsys
) -> None:
    source = write(tmp_path / "rec", damage(records))
    assert convert([str(source), str(tmp_path / "wds")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "wds").exists()


def test_a_file_that_ends_early_is_found_by_its_index(
    tmp_path: Path, records: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "rec", records)
    whole = (source / "yfcc15m.rec").read_bytes()
    (source / "yfcc15m.rec").write_bytes(whole[: -len(records[-1])])
    assert convert([str(source), str(tmp_path / "wds")]) == 2
    assert "holds 2 records, yfcc15m.idx lists 3" in capsys.readouterr().err
