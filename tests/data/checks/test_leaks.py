"""Training images that are also in another split are refused before the first step."""

import json

import pytest

from itr.data.checks import leaks
from itr.data.checks.leaks import check_leaks
from itr.data.layouts.registry import DataConfig, open_split
from itr.errors import DataError
from tests.data import worlds
from tests.data.worlds import make_items


def opened(root, **options):
    data = DataConfig("coco", str(root), cache=str(root / "cache"), **options)
    kind = "regions" if options.get("layout") == "precomp" else "pixels"
    return {part: open_split(data, part, kind) for part in worlds.PARTS}


@pytest.mark.parametrize("layout", ["lists", "arrow", "coco", "precomp"])
def test_an_image_in_two_files_is_named(tmp_path, layout):
    items = make_items(captions=5)
    moved = worlds.Item(items[1].number, "val", items[1].captions, items[1].jpeg, "")
    worlds.write(layout, tmp_path / "apart", items)
    worlds.write(layout, tmp_path / "leaking", [*items, moved])
    splits = {"train": "train", "val": "dev", "test": "testall"}
    check_leaks(opened(tmp_path / "apart", layout=layout, splits=splits))
    with pytest.raises(DataError, match=rf"1 of 4 images of .*\(val\).*{items[1].file}"):
        check_leaks(opened(tmp_path / "leaking", layout=layout, splits=splits))


def test_splits_joined_on_purpose_are_noted(tmp_path):
    worlds.write("lists", tmp_path, make_items())
    splits = opened(tmp_path, splits={"train": "train+val", "val": "val", "test": "test"})
    check_leaks(splits)
    assert any("data.splits.train=train+val" in note for note in splits["val"].notes)
    others = (*splits["test"].notes, *splits["train"].notes)
    assert not any("data.splits" in note for note in others)


@pytest.mark.parametrize("layout", ["coco", "shards"])
def test_equal_names_or_ids_alone_are_not_a_leak(tmp_path, layout):
    items = make_items()
    jpeg = make_items((20, 0, 0))[19].jpeg  # an image of no split
    other = worlds.Item(items[1].number, "val", items[1].captions, jpeg, "a")
    worlds.write(layout, tmp_path, [*items, other])
    check_leaks(opened(tmp_path, layout=layout, splits={"train": "train", "val": "val"}))


@pytest.mark.parametrize("read", [2000, 3])
def test_an_image_in_two_folders_of_tars_is_named(tmp_path, monkeypatch, read):
    """With another key and id; if many images have its size, the text must be equal, too."""
    items = make_items()
    copied = worlds.Item(77, "val", items[1].captions, items[1].jpeg, "a")
    worlds.write("shards", tmp_path, [*items, copied])
    monkeypatch.setattr(leaks, "MAX_READ", read)
    with pytest.raises(DataError, match=r"1 of 4 images of .*\(val\).*0000.*tar: 000077"):
        check_leaks(opened(tmp_path, layout="shards"))


def test_splits_held_out_of_the_same_tars_never_overlap(tmp_path):
    worlds.write("shards", tmp_path, make_items((8, 0, 0)))
    shards = str(tmp_path / "wds" / "train" / "*.tar")
    check_leaks(opened(tmp_path, shards=shards, held_out=2))


def test_unusual_captions_are_read_unchanged(tmp_path):
    """Very long captions, right-to-left text, a byte-order mark, any number of captions."""
    texts = ["word " * 400, "كلب بني يركض", "犬が走る", "\u200fa\u200f dog", "é" * 300]
    items = [
        worlds.Item(n, part, tuple(texts[: 1 + n]), worlds.make_items()[n].jpeg, "a thing")
        for n, part in enumerate(("train", "train", "train", "val", "test"))
    ]
    for layout in worlds.PIXEL_LAYOUTS:
        worlds.write(layout, tmp_path / layout, items)
        for path in (tmp_path / layout).rglob("*.json"):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        train = opened(tmp_path / layout, layout=layout)["train"]
        expected = [tuple(t.strip() for t in texts[: 1 + n]) for n in range(3)]
        assert [record.captions for record in train.records] == expected
        assert json.dumps(train.captions())
