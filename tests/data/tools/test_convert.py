"""`itr data convert`: a round trip through every layout preserves the dataset."""

import dataclasses
import itertools

import numpy as np
import pytest

from itr.data.__main__ import main
from itr.data.checks.leaks import check_leaks
from itr.data.images.decode import read_bytes
from itr.data.layouts.registry import DataConfig, open_split
from tests.data import worlds
from tests.data.image_files import encoded, photo
from tests.data.worlds import PARTS, make_items

TARGETS = {
    "karpathy": "out/dataset_coco.json",
    "arrow": "out/arrow",
    "shards": "out/wds",
    "table": "out/pairs.jsonl",
}


def config(path, layout, **options):
    data = DataConfig("coco", str(path), layout=layout, cache=str(path.parent / "cache"), **options)
    if layout == "table":
        return dataclasses.replace(data, train=str(path))
    return dataclasses.replace(data, root=str(path.parent if path.suffix == ".json" else path))


def contents(data, ids=True):
    parts = {part: open_split(data, part, "pixels") for part in PARTS}
    return {
        part: [
            (r.image_id, r.caption_ids if ids else (), r.captions, read_bytes(r.image))
            for r in split.records
        ]
        for part, split in parts.items()
    }


def convert(*arguments, fails=False):
    assert main(["convert", *map(str, arguments)]) == (2 if fails else 0)


@pytest.mark.parametrize("source, target", itertools.permutations(TARGETS, 2))
def test_round_trip(tmp_path, source, target, capsys):
    items = make_items()
    begin = tmp_path / "begin"
    worlds.write(source, begin, items)
    ids = source != "arrow"  # as published, it holds no caption ids
    expected = {
        part: [
            (i.cocoid, tuple(i.sentids) if ids else (), i.captions, i.jpeg)
            for i in items
            if i.part == part
        ]
        for part in PARTS
    }
    path = tmp_path / TARGETS[target]
    convert(begin, path)
    assert contents(config(path, target), ids) == expected
    output = capsys.readouterr().out
    assert f"wrote {target} layout" in output and "train with" in output
    assert "train: 6 images, 21 captions" in output
    back = tmp_path / "back" / TARGETS[source]
    convert(path, back)
    assert contents(config(back, source), ids) == expected
    convert(path, path, fails=True)
    assert "already exists" in capsys.readouterr().err


def test_second_texts_are_converted_or_written_to_a_file(tmp_path, capsys):
    items = make_items()
    worlds.write("shards", tmp_path / "begin", items)
    convert(tmp_path / "begin", tmp_path / "pairs.csv")
    convert(tmp_path / "begin", tmp_path / "arrow")
    assert f"data.second_text={tmp_path / 'arrow' / 'second.json'}" in capsys.readouterr().out
    expected = [item.second for item in items if item.part == "train"]
    table = config(tmp_path / "pairs.csv", "table")
    assert list(open_split(table, "train", "pixels", second=True).second) == expected
    arrow = config(tmp_path / "arrow", "arrow", second_text=str(tmp_path / "arrow" / "second.json"))
    assert list(open_split(arrow, "train", "pixels", second=True).second) == expected


def test_shards_preserve_any_image_format(tmp_path):
    """Including files whose extension does not identify an image."""
    rows, kinds = [], {"a.gif": "GIF", "b.bmp": "BMP", "c.tif": "TIFF", "d.dat": "PNG", "e": "JPEG"}
    for number, (name, kind) in enumerate(kinds.items()):
        (tmp_path / name).write_bytes(encoded(photo(seed=number), kind))
        rows.append(f"{name},picture {number},train\n")
    (tmp_path / "pairs.csv").write_text("image,caption,split\n" + "".join(rows))
    convert(tmp_path / "pairs.csv", tmp_path / "wds", "--held-out", 0)
    convert(tmp_path / "wds", tmp_path / "back" / "pairs.csv", "--held-out", 0)
    for data in (config(tmp_path / "wds", "shards"), config(tmp_path / "back/pairs.csv", "table")):
        split = open_split(data, "train", "pixels")
        for number, (record, name) in enumerate(zip(split.records, kinds, strict=True)):
            assert record.captions == (f"picture {number}",)
            assert read_bytes(record.image) == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("target", ["karpathy", "table", "arrow", "shards"])
@pytest.mark.parametrize("tars", ["a split", "a tar"])
def test_images_with_equal_names_are_all_written(tmp_path, target, tars):
    """Keys that start from 0 in each split, or in each tar."""
    items = make_items((4, 2, 2))
    for part in PARTS:
        own = [item for item in items if item.part == part]
        size = len(own) if tars == "a split" else 1
        for tar in range(len(own) // size):
            members = []
            for key, item in enumerate(own[tar * size : (tar + 1) * size]):
                members += [
                    (f"{key:06d}.jpg", item.jpeg),
                    (f"{key:06d}.txt", item.captions[0].encode()),
                ]
            worlds.write_tar(tmp_path / "wds" / part / f"{tar:05d}.tar", members)
    path = tmp_path / TARGETS[target]
    convert(tmp_path / "wds", path)
    converted = contents(config(path, target), ids=False)
    opened = {part: open_split(config(path, target), part, "pixels") for part in PARTS}
    check_leaks(opened)
    for part, rows in converted.items():
        own = [item for item in items if item.part == part]
        assert [row[2:] for row in rows] == [((i.captions[0],), i.jpeg) for i in own]


def test_nothing_is_overwritten(tmp_path, capsys):
    worlds.write("shards", tmp_path / "begin", make_items())
    there = tmp_path / "out" / "images" / make_items()[0].file
    there.parent.mkdir(parents=True)
    there.write_bytes(b"mine")
    target = tmp_path / TARGETS["karpathy"]
    convert(tmp_path / "begin", target)  # to another folder, which is said
    extracted = target.parent / f"{target.stem}_images"
    assert str(extracted) in capsys.readouterr().out
    assert (extracted / there.name).read_bytes() == make_items()[0].jpeg
    target.unlink()
    convert(tmp_path / "begin", target, fails=True)
    assert f"holds images and {extracted.name}" in capsys.readouterr().err
    assert there.read_bytes() == b"mine" and (extracted / there.name).is_file()
    same = [(f"deep/{n}/000000.{end}", data) for n in range(2) for end, data in
            (("jpg", make_items()[n].jpeg), ("txt", b"a"))]  # fmt: skip
    worlds.write_tar(tmp_path / "twice" / "0.tar", same)
    convert(tmp_path / "twice", tmp_path / "pairs.csv", "--held-out", 0, fails=True)
    assert "two images of train are named 000000.jpg" in " ".join(capsys.readouterr().err.split())


def test_regions_round_trip(tmp_path, capsys):
    """Precomp from precomp, and from annotations with regions from another folder."""
    items = make_items(captions=5)
    worlds.write("precomp", tmp_path / "begin", items)
    worlds.write("karpathy", tmp_path / "pixels", items)
    source = tmp_path / "begin" / "coco_precomp"
    splits = {"train": "train", "val": "dev", "test": "testall"}

    def regions(folder):
        data = DataConfig("coco", str(folder), splits=splits)
        opened = [open_split(data, part, "regions") for part in PARTS]
        return [
            [(r.image_id, r.captions, s.regions[r.image].tobytes()) for r in s.records]
            for s in opened
        ]

    convert(source, tmp_path / "a_precomp")
    assert regions(tmp_path / "a_precomp") == regions(source)
    convert(tmp_path / "pixels", tmp_path / "b_precomp", "--regions", source)
    assert np.load(tmp_path / "b_precomp" / "dev_ims.npy").shape == (3, 6, 12)
    splits["test"] = "test"
    found = regions(tmp_path / "b_precomp")
    splits["test"] = "testall"
    assert found == regions(source)
    convert(tmp_path / "pixels", tmp_path / "c_precomp", fails=True)
    assert "--regions DIR" in capsys.readouterr().err


def test_regions_are_converted_to_images_by_file_name(tmp_path, capsys):
    """id_mapping.json maps the rows of precomp to image files."""
    items = make_items(captions=5)
    worlds.write("precomp", tmp_path / "begin", items)
    worlds.write_image_files(tmp_path / "pictures" / "val2014", items)
    convert(tmp_path / "begin", tmp_path / "no.csv", fails=True)
    assert "--images DIR" in capsys.readouterr().err
    convert(tmp_path / "begin", tmp_path / "wds", "--images", tmp_path / "pictures")
    converted = contents(config(tmp_path / "wds", "shards"), ids=False)
    assert converted == {
        part: [(i.cocoid, (), i.captions, i.jpeg) for i in items if i.part == part]
        for part in PARTS
    }
    (tmp_path / "begin" / "coco_precomp" / "id_mapping.json").unlink()
    convert(tmp_path / "begin", tmp_path / "no.csv", "--images", tmp_path, fails=True)
    assert "image names are unknown" in capsys.readouterr().err


def test_errors_are_explained_and_leave_nothing_behind(tmp_path, capsys):
    items = make_items()
    worlds.write("karpathy", tmp_path / "begin", items)
    worlds.write("precomp", tmp_path / "regions", make_items((6, 2, 2), captions=5))
    for arguments, words in (
        ((tmp_path / "begin", tmp_path / "any"), "--to karpathy"),
        ((tmp_path / "nowhere", tmp_path / "arrow"), "no such file or folder"),
        ((tmp_path / "regions", tmp_path / "arrow"), "holds region arrays"),
        ((tmp_path / "begin", tmp_path / "x_precomp", "--regions", tmp_path / "regions" /
          "coco_precomp"), "1 to 6 captions"),
    ):  # fmt: skip
        convert(*arguments, fails=True)
        assert words in capsys.readouterr().err
        assert not arguments[1].exists()
    data = ("--regions", tmp_path / "regions" / "coco_precomp", "--captions", 5)
    convert(tmp_path / "begin", tmp_path / "x_precomp", *data, fails=True)
    assert "no regions for 2 images" in capsys.readouterr().err
    assert not (tmp_path / "x_precomp").exists()
