"""Tars as people write them: members in any order, dots in names, junk, bytes behind pictures."""

import io
import itertools
import json
import tarfile

import pytest

from itr.data.images.decode import read_bytes
from itr.data.layouts import DataConfig, open_split
from itr.data.tools.convert import main as convert
from itr.errors import DataError
from tests.data.image_files import encoded, photo
from tests.data.worlds import make_items

JPEGS = [encoded(photo(seed=n)) for n in range(6)]


def sample(number, key="{:06d}", jpg=None):
    name = key.format(number)
    return [
        (f"{name}.jpg", JPEGS[number] if jpg is None else jpg),
        (f"{name}.txt", f"text {number}".encode()),
        (f"{name}.json", json.dumps({"image_id": 10 + number}).encode()),
    ]


def opened(path, members, encoding="utf-8", **options):
    """The records of a tar of ``members``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding=encoding) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return open_split(DataConfig("t", "", shards=str(path), **options), "train", "pixels")


def require_samples(split, count=6):
    assert [record.captions for record in split.records] == [(f"text {n}",) for n in range(count)]
    for number, record in enumerate(split.records):
        assert read_bytes(record.image).startswith(JPEGS[number])


ORDERS = {
    "by kind": lambda members: sorted(members, key=lambda m: (m[0][-3:] != "jpg", m[0][-3:])),
    "text first": lambda members: sorted(members, key=lambda m: m[0][-3:] != "txt"),
    "interleaved": lambda members: members[::3] + members[2::3][::-1] + members[1::3],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_members_in_any_order(tmp_path, order):
    members = order([part for n in range(6) for part in sample(n)])
    split = opened(tmp_path / "a.tar", members)
    require_samples(split)
    assert [record.image_id for record in split.records] == list(range(10, 16))


NAMES = {
    "roles": ("s{:03d}.input.jpg", "s{:03d}.outputs.txt", "s{:03d}.meta.json"),
    "dots": ("IMG_{:03d}.HDR.jpg", "IMG_{:03d}.HDR.txt", "IMG_{:03d}.HDR.json"),
    "numbers": ("photo.{}.jpg", "photo.{}.txt", "photo.{}.json"),
    "decimals": ("{}.5kg apple.JPG", "{}.5kg apple.TXT", "{}.5kg apple.Json"),
    "shared json": ("p{}.a.jpg", "p{}.a.txt", "p{}.json"),
    "folders": ("./a/{}.jpg", "./a/{}.txt", "./a/{}.json"),
    "accents": ("caf\u00e9 {}.jpg", "caf\u00e9 {}.txt", "caf\u00e9 {}.json"),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_names(tmp_path, names, encoding):
    members = [
        (name.format(n), content)
        for n in range(6)
        for name, (_, content) in zip(names, sample(n), strict=True)
    ]
    split = opened(tmp_path / "a.tar", members, encoding)
    require_samples(split)
    assert [record.image_id for record in split.records] == list(range(10, 16))
    assert len({record.extra["key"] for record in split.records}) == 6


def test_further_members(tmp_path):
    """A mask beside the image is no sample; two images without one of them are ambiguous."""
    members = [part for n in range(6) for part in [*sample(n), (f"{n:06d}.mask.png", b"x")]]
    require_samples(opened(tmp_path / "a.tar", members))
    two = [("k.left.jpg", JPEGS[0]), ("k.right.jpg", JPEGS[1]), ("k.txt", b"a")]
    split = opened(tmp_path / "b.tar", [*sample(0), *two], max_broken=0.5)
    assert split.n_images == 1
    assert any("several members for its image (left.jpg, right.jpg)" in n for n in split.notes)
    only = [(f"{n}.pdf", b"x") for n in range(3)] + [("1.txt", b"a")]
    with pytest.raises(DataError, match=r"no image \(but pdf\)"):
        opened(tmp_path / "c.tar", only)


def test_what_systems_add_is_no_sample(tmp_path):
    apple = b"\0\5\x16\7\0\2\0\0Mac OS X"
    members = [
        part
        for n in range(6)
        for name, content in sample(n)
        for part in ((f"./._{name}", apple), (f"./{name}", content), (f"__MACOSX/{name}", apple))
    ]
    require_samples(opened(tmp_path / "a.tar", [*members, (".DS_Store", b"\0\0\0\1Bud1")]))


TRAILERS = {"phone": b"\0\0\1\n\x0e" + b"SEFT" * 9, "zeros": bytes(4096), "second": JPEGS[5]}


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
def test_bytes_behind_a_jpeg(tmp_path, trailer):
    members = [part for n in range(6) for part in sample(n, jpg=JPEGS[n] + trailer)]
    require_samples(opened(tmp_path / "a.tar", members))
    cut = [part for n in range(2) for part in sample(n, jpg=JPEGS[n][: len(JPEGS[n]) // 2])]
    for end in (b"", trailer[:64] if trailer[:1] == b"\0" else b""):
        with pytest.raises(DataError, match="2 with a truncated JPEG"):
            opened(tmp_path / f"b{len(end)}.tar", [(n, c + end) for n, c in cut])


CAPTIONS = {
    "a list": (None, ["a", "b"], ("a", "b")),
    "captions": (None, {"captions": ["a", "b"]}, ("a", "b")),
    "caption": (None, {"caption": "a"}, ("a",)),
    "text": (None, {"text": ["a", "b"]}, ("a", "b")),
    "one text in JSON": (None, {"captions": "a"}, ("a",)),
    "the .txt wins": (b"t", {"caption": "a"}, ("t",)),
    "captions win": (b"t", {"captions": ["a", "b"]}, ("a", "b")),
}


@pytest.mark.parametrize("kind", CAPTIONS)
def test_captions_in_json(tmp_path, kind):
    text, meta, expected = CAPTIONS[kind]
    parts = [("1.jpg", JPEGS[0]), ("1.txt", text), ("1.json", json.dumps(meta).encode())]
    split = opened(tmp_path / "a.tar", [(n, c) for n, c in parts if c is not None])
    assert split.records[0].captions == expected


@pytest.mark.parametrize("where", itertools.product(["captions", "second"], ["tar", "jsonl"]))
def test_half_characters(tmp_path, where):
    """JSON may hold half of an emoji, which no UTF-8 can."""
    what, layout = where
    texts = [f"text {n}" for n in range(6)]
    odd = [*texts[:3], "nice \ud83d!", *texts[4:]]
    first, second = (odd, texts) if what == "captions" else (texts, odd)
    if layout == "tar":
        members = []
        for n in range(6):
            meta = {"captions": [first[n]], "synthetic_caption": second[n]}
            members += [*sample(n)[:2], (f"{n:06d}.json", json.dumps(meta).encode())]
        split = opened(tmp_path / "a.tar", members)
    else:
        rows = []
        for n, item in enumerate(make_items((6, 0, 0))):
            (tmp_path / item.file).write_bytes(item.jpeg)
            row = {"image": item.file, "caption": first[n], "synthetic_caption": second[n]}
            rows.append(json.dumps(row) + "\n")
        (tmp_path / "pairs.jsonl").write_text("".join(rows))
        data = DataConfig("t", "", train=str(tmp_path / "pairs.jsonl"))
        split = open_split(data, "train", "pixels")
    mended = [*texts[:3], "nice \ufffd!", *texts[4:]]
    assert list(split.texts) == (mended if what == "captions" else texts)
    assert list(split.second) == (mended if what == "second" else texts)
    assert any("half a character" in note for note in split.notes)


def test_convert_writes_what_is_read(tmp_path):
    """From Latin-1 names, half characters and bytes behind a JPEG."""
    members = []
    for n in range(6):
        meta = json.dumps({"captions": ["nice \ud83d"]}).encode()
        jpg = JPEGS[n] + bytes(100)
        members += [(f"caf\u00e9{n}.jpg", jpg), (f"caf\u00e9{n}.txt", b"t")]
        members += [(f"caf\u00e9{n}.json", meta)]
    opened(tmp_path / "a.tar", members, "latin-1")
    for target in ("dataset_x.json", "x.csv", "wds", "arrow", "x.jsonl"):
        arguments = [str(tmp_path / "a.tar"), str(tmp_path / target[:4] / target)]
        assert convert([*arguments, "--held-out", "0"]) == 0
    data = DataConfig("x", "", shards=str(tmp_path / "wds" / "wds"))
    split = open_split(data, "train", "pixels")
    assert list(split.texts) == ["nice \ufffd"] * 6
    assert split.records[0].extra["file"] == "caf\u00e90.jpg"
