"""Ids as people have them: long numbers, numbers written as text or floats, names, gaps."""

import json

import pytest

from itr.data.ids import whole_number
from itr.data.layouts.registry import DataConfig, open_split
from itr.errors import DataError
from tests.data import worlds

ITEMS = worlds.make_items((4, 0, 0))
NAMES = [f"p{n}.jpg" for n in range(4)]
LONG = 123456789012345678  # floats do not hold it

NUMBERS = {
    "18 digits": ([LONG, LONG + 1, LONG + 2, LONG + 3],) * 2,
    "the largest": ([2**63 - 1, 0, -5, 7],) * 2,
    "text": (["7", "8", " 9", "10"], [7, 8, 9, 10]),
    "floats": ([391895.0, 391896.0, 3.0, 4.0], [391895, 391896, 3, 4]),
    "floats as text": (["391895.0", "391896.", "3.0", "4.0"], [391895, 391896, 3, 4]),
    "gaps": ([1, None, 0, None], [1, 4, 0, 3]),
    "none": ([None] * 4, [0, 1, 2, 3]),
}
TEXTS = {
    "file names": ["p000_a", "p001_a", "p002_a", "p003_a"],
    "one name": [5, 6, 7, "a3f0-11ee"],
    "beyond 64 bits": [1, 2, 2**63, 4],
    "30 digits": ["1" * 30, "2" * 30, "3" * 30, "4" * 30],
    "a name and gaps": ["x", None, "y", None],
}


@pytest.fixture
def folder(tmp_path):
    for item, name in zip(ITEMS, NAMES, strict=True):
        worlds.write_image_files(tmp_path / "written", [item])
        next((tmp_path / "written").rglob("*.jpg")).replace(tmp_path / name)
    return tmp_path


def write_csv(folder, ids, caption_ids):
    rows = [f"{'' if i is None else i},{'' if c is None else c},{n},a {n}\n"
            for i, c, n in zip(ids, caption_ids, NAMES, strict=True)]  # fmt: skip
    (folder / "train.csv").write_text("image_id,caption_id,image,caption\n" + "".join(rows))


def write_jsonl(folder, ids, caption_ids):
    rows = [{"image_id": i, "caption_id": c, "image": n, "caption": f"a {n}"}
            for i, c, n in zip(ids, caption_ids, NAMES, strict=True)]  # fmt: skip
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_karpathy(folder, ids, caption_ids):
    images = [
        {"filename": n, "split": "train", "imgid": i, "sentences": [{"raw": f"a {n}", "sentid": c}]}
        for i, c, n in zip(ids, caption_ids, NAMES, strict=True)
    ]
    (folder / "dataset_t.json").write_text(json.dumps({"images": images}))


def write_coco(folder, ids, caption_ids):
    images = [{"id": i, "file_name": n} for i, n in zip(ids, NAMES, strict=True)]
    captions = [{"id": c, "image_id": i, "caption": f"a {n}"}
                for i, c, n in zip(ids, caption_ids, NAMES, strict=True)]  # fmt: skip
    content = {"images": images, "annotations": captions}
    (folder / "captions_train.json").write_text(json.dumps(content))


def write_lists(folder, ids, caption_ids):
    items = [{"image": n, "caption": f"a {n}", "image_id": i}
             for i, n in zip(ids, NAMES, strict=True)]  # fmt: skip
    (folder / "t_train.json").write_text(json.dumps(items))


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "karpathy": write_karpathy,
           "coco": write_coco, "lists": write_lists}  # fmt: skip


def opened(folder):
    split = open_split(DataConfig("t", str(folder)), "train", "pixels")
    assert [(r.image.rsplit("/", 1)[1], r.captions) for r in split.records] == [
        (name, (f"a {name}",)) for name in NAMES
    ]
    return split


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("layout", WRITERS)
def test_numbers_are_read_exactly(folder, layout, kind):
    written, expected = NUMBERS[kind]
    if None in written and layout == "coco":
        pytest.skip("COCO's images have ids")
    WRITERS[layout](folder, written, written)
    split = opened(folder)
    assert [record.image_id for record in split.records] == expected
    if layout != "lists":
        assert [record.caption_ids for record in split.records] == [(n,) for n in expected]
    assert split.notes == ()


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("layout", WRITERS)
def test_ids_that_are_no_numbers_are_kept_as_names(folder, layout, kind):
    written = TEXTS[kind]
    if None in written and layout == "coco":
        pytest.skip("COCO's images have ids")
    WRITERS[layout](folder, written, written)
    split = opened(folder)
    assert [record.image_id for record in split.records] == [0, 1, 2, 3]
    names = [None if i is None else str(i) for i in written]
    assert [record.extra.get("id") for record in split.records] == names
    odd = next(n for n, i in enumerate(written) if i is not None and whole_number(i) is None)
    place = {"csv": f"line {odd + 2}", "jsonl": f"line {odd + 1}"}.get(layout, f"[{odd}]")
    assert place in split.notes[0] and str(written[odd])[:30] in split.notes[0]


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("ids", [["x", "y", "x", "z"], [1, 2, 1, 3], ["1", "2", "1.0", "3"]])
def test_an_id_of_two_images_is_refused(folder, layout, ids):
    WRITERS[layout](folder, ids, [0, 1, 2, 3])
    with pytest.raises(DataError, match=r"(image id|duplicate image id) '?(x|1)"):
        opened(folder)


@pytest.mark.parametrize("layout", ["jsonl", "karpathy", "coco", "lists"])
def test_a_float_that_lost_digits_is_refused(folder, layout):
    WRITERS[layout](folder, [1, float(LONG), 3, 4], [0, 1, 2, 3])
    with pytest.raises(DataError, match=r"(line 2|\[1\]).*lost digits.*Write the ids as integers"):
        opened(folder)


@pytest.mark.parametrize("value, number", [
    (7, 7), ("7", 7), (" 7 ", 7), ("7.0", 7), (7.0, 7), ("-3", -3), (str(LONG), LONG),
    (2**63 - 1, 2**63 - 1), (2**63, None), (str(2**63), None), (True, None), ("7.5", None),
    (7.5, None), ("x7", None), ("", None), (None, None), ("7e3", None), ("\u0667", None),
])  # fmt: skip
def test_whole_number(value, number):
    assert whole_number(value) == number


def test_tars_with_every_kind_of_id(tmp_path):
    picture = (worlds.write_image_files(tmp_path, ITEMS), next(tmp_path.rglob("*.jpg")))[1]
    ids = ["391895", 391896.0, "a-name", 2**63, LONG]
    members = []
    for n, value in enumerate(ids):
        meta = {"image_id": value, "captions": [f"a {n}"], "caption_ids": [value]}
        members += [(f"{n}.jpg", picture.read_bytes()), (f"{n}.txt", b"a"),
                    (f"{n}.json", json.dumps(meta).encode())]  # fmt: skip
    worlds.write_tar(tmp_path / "wds" / "0.tar", members)
    data = DataConfig("t", "", shards=str(tmp_path / "wds"))
    records = open_split(data, "train", "pixels").records
    assert [r.captions for r in records] == [(f"a {n}",) for n in range(5)]
    assert [r.image_id for r in records][:2] == [391895, 391896] and records[4].image_id == LONG
    assert ["sequential_id" in r.extra for r in records] == [False, False, True, True, False]
