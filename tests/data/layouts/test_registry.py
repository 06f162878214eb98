"""All layouts of a dataset give the same records; which layout is read; what is refused."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from itr.data.images.decode import read_bytes
from itr.data.layouts.registry import DataConfig, find_layouts, open_split
from itr.errors import ConfigError, DataError
from tests.data import worlds
from tests.data.worlds import PARTS, PIXEL_LAYOUTS, make_items

COCO_SPLITS = {"train": "train", "val": "dev", "test": "testall"}


def config(root, name="coco", **options):
    merged = {"splits": COCO_SPLITS, "cache": str(root / "cache"), **options}
    return DataConfig(name=name, root=str(root), **merged)


def contents(split, ids=True):
    """Image id, captions and image bytes of each record."""
    return [
        (
            record.image_id if ids else None,
            record.captions,
            read_bytes(record.image) if split.regions is None else None,
        )
        for record in split.records
    ]


def expected(items, part):
    return [(item.cocoid, item.captions, item.jpeg) for item in items if item.part == part]


@pytest.mark.parametrize("layout", PIXEL_LAYOUTS)
def test_every_layout_gives_the_same_records(tmp_path, layout):
    items = make_items()
    worlds.write(layout, tmp_path, items)
    for part in PARTS:
        split = open_split(config(tmp_path), part, "pixels")
        assert split.layout == layout
        assert contents(split) == expected(items, part)
        if layout not in ("lists", "arrow", "folder"):  # these hold no caption ids
            ids = [item.sentids for item in items if item.part == part]
            assert [list(record.caption_ids) for record in split.records] == ids
    (found,) = find_layouts(config(tmp_path)).values()
    parts = sorted(name.rstrip("2014") for name in found.splits())
    assert parts == sorted(PARTS)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_table_format(tmp_path, ending):
    items = make_items()
    path = worlds.write_table(tmp_path, items, ending)
    data = DataConfig("table", "", train=str(path))
    for part in PARTS:
        split = open_split(data, part, "pixels", second=True)
        assert contents(split) == expected(items, part)
        assert list(split.second) == [item.second for item in items if item.part == part]


def test_regions_have_the_same_ids_and_captions(tmp_path):
    items = make_items(captions=5)
    worlds.write("precomp", tmp_path, items)
    worlds.write("karpathy", tmp_path, items)
    for part in PARTS:
        regions = open_split(config(tmp_path), part, "regions")
        pixels = open_split(config(tmp_path), part, "pixels")
        assert (regions.layout, pixels.layout) == ("precomp", "karpathy")
        assert [(r.image_id, r.captions) for r in regions.records] == [
            (r.image_id, r.captions) for r in pixels.records
        ]
        assert [Path(r.extra["file"]).name for r in regions.records] == [
            Path(r.image).name for r in pixels.records
        ]


def test_the_first_of_several_layouts_is_read(tmp_path):
    items = make_items()
    for layout in PIXEL_LAYOUTS:
        worlds.write(layout, tmp_path, items)
    split = open_split(config(tmp_path), "train", "pixels")
    assert split.layout == "karpathy"
    others = "lists, coco, arrow, table, shards, folder"
    assert any("not read" in note and others in note for note in split.notes)
    for layout in PIXEL_LAYOUTS:
        chosen = open_split(config(tmp_path, layout=layout), "val", "pixels")
        assert chosen.layout == layout and contents(chosen) == expected(items, "val")
        assert not any("layouts there are not read" in note for note in chosen.notes)
    assert open_split(config(tmp_path), "train", "pixels", second=True).layout == "table"
    assert list(find_layouts(config(tmp_path))) == list(PIXEL_LAYOUTS)


@pytest.mark.parametrize("layout", ["karpathy", "lists", "arrow", "precomp"])
def test_files_are_found_under_any_prefix(tmp_path, layout):
    items = make_items(captions=5)
    worlds.write(layout, tmp_path, items)
    kind = "regions" if layout == "precomp" else "pixels"
    split = open_split(config(tmp_path, "mine"), "train", kind)
    assert split.n_images == 6
    assert any("data.name=mine" in note for note in split.notes)
    for path in tmp_path.rglob("*"):
        if path.name.startswith(("coco_", "dataset_coco")):
            other = path.with_name(path.name.replace("coco", "other"))
            os.system(f"cp -r '{path}' '{other}'")
    with pytest.raises(DataError, match="data.name=coco"):
        open_split(config(tmp_path, "mine"), "train", kind)
    assert open_split(config(tmp_path, "other"), "train", kind).n_images == 6


def test_joined_splits_and_repeated_captions(tmp_path):
    items = make_items()
    worlds.write("arrow", tmp_path, items)
    data = config(tmp_path, splits={"train": "train+val", "val": "test", "test": "test"})
    split = open_split(data, "train", "pixels")
    assert contents(split) == expected(items, "train") + expected(items, "val")
    twice = [worlds.Item(i.number, i.part, i.captions * 2, i.jpeg, "") for i in items]
    worlds.write("karpathy", tmp_path / "twice", twice)
    unique = open_split(config(tmp_path / "twice", unique_captions=True), "train", "pixels")
    assert contents(unique) == expected(items, "train")
    assert any("21 repeated captions" in note for note in unique.notes)
    worlds.write("precomp", tmp_path, make_items(captions=5))
    with pytest.raises(ConfigError, match=r"data.splits: 'train\+val'"):
        open_split(data, "train", "regions")


def test_two_years_of_coco_are_ambiguous(tmp_path):
    worlds.write("coco", tmp_path, make_items())
    other = tmp_path / "annotations" / "captions_train2017.json"
    other.write_bytes((tmp_path / "annotations" / "captions_train2014.json").read_bytes())
    with pytest.raises(DataError, match=r"train2014 and train2017.*data.splits.train=train2014"):
        open_split(config(tmp_path), "train", "pixels")
    chosen = {**COCO_SPLITS, "train": "train2014"}
    assert open_split(config(tmp_path, splits=chosen), "train", "pixels").n_images == 6


# Tables


def table(tmp_path, text, name="pairs.csv", **options):
    (tmp_path / name).write_text(text)
    worlds.write_image_files(tmp_path, make_items((12, 0, 0)))
    return DataConfig("table", "", train=str(tmp_path / name), **options)


def lines(count=12):
    return "".join(f"{i.file},{text}\n" for i in make_items((count, 0, 0)) for text in ("a", "b"))


def test_images_are_held_out_without_a_split_column(tmp_path):
    data = table(tmp_path, "image,caption\n" + lines(), held_out=0.25)
    parts = {part: open_split(data, part, "pixels") for part in PARTS}
    assert [split.n_images for split in parts.values()] == [6, 3, 3]
    files = [record.image for split in parts.values() for record in split.records]
    assert len(set(files)) == 12 and all(len(r.captions) == 2 for r in parts["val"].records)
    fewer = table(tmp_path, "image,caption\n" + lines(11), "fewer.csv", held_out=3)
    ids = {r.image_id for r in open_split(fewer, "test", "pixels").records}
    assert (
        len(ids & {r.image_id for r in parts["test"].records}) >= 2
    )  # a larger table keeps most of the assignment
    with pytest.raises(DataError, match="data.val=FILE.*data.held_out=0.05"):
        open_split(table(tmp_path, "image,caption\n" + lines()), "val", "pixels")
    with pytest.raises(ConfigError, match="would take all 12"):
        open_split(table(tmp_path, "image,caption\n" + lines(), held_out=6), "val", "pixels")


def test_one_table_per_split_and_custom_column_names(tmp_path):
    rows = [line.split(",") for line in lines().splitlines()]
    for name, part in (("train", rows[:16]), ("val", rows[16:20]), ("test", rows[20:])):
        text = "photo\twords\n" + "".join(f"{image}\t{words}\n" for image, words in part)
        (tmp_path / f"{name}.tsv").write_text(text)
    worlds.write_image_files(tmp_path / "deep", make_items((12, 0, 0)))
    options = {"images": str(tmp_path / "deep"), "columns": {"image": "photo", "caption": "words"}}
    data = DataConfig("table", str(tmp_path), **options)
    sizes = [open_split(data, part, "pixels").n_images for part in PARTS]
    assert sizes == [8, 2, 2]
    assert list(find_layouts(data)["table"].splits()) == ["test", "train", "val"]
    with pytest.raises(DataError, match=r"no column image or filepath.*its columns: photo, words"):
        open_split(DataConfig("table", str(tmp_path)), "train", "pixels")


FAULTY_TABLES = {
    "": "column names",
    "image\n": "column names",
    "image,caption\n": "holds no row",
    "image,caption\na.jpg\n": "line 2: 1 cells, but 2 columns",
    "image,caption\na.jpg,one, two\n": "line 2: 3 cells.*quote",
    "image,caption\na.jpg,\n": "line 2: 'caption' is an empty str",
    "image,caption\n,a\n": "line 2: 'image' is an empty str",
    'image,caption\na.jpg,"one\n': "line 2: unexpected end of data",
    "image,caption,image_id\na.jpg,a,1\na.jpg,b,2\n": "image id 2 of a.jpg .* 1 ",
    "image,caption,image_id\na.jpg,a,1\nb.jpg,b,1\n": "image id 1 .*line 2",
    "image,caption,split\na.jpg,a,train\na.jpg,b,test\n": "a.jpg .*'train' and 'test'",
    "image,caption\na.jpg,a\n": "1 of 1 images",
}


@pytest.mark.parametrize("text", FAULTY_TABLES)
def test_unusable_tables(tmp_path, text):
    with pytest.raises(DataError, match=FAULTY_TABLES[text]):
        open_split(table(tmp_path, text), "train", "pixels")


def test_unreadable_tables(tmp_path):
    data = table(tmp_path, '{"image": "a.jpg", "caption": "a"}\n{"image": "a.j', "pairs.jsonl")
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        open_split(data, "train", "pixels")
    (tmp_path / "pairs.csv").write_bytes("image,caption\na.jpg,caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        open_split(DataConfig("t", "", train=str(tmp_path / "pairs.csv")), "train", "pixels")
    path = worlds.write_table(tmp_path, make_items(), ".parquet")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="not a valid Parquet file"):
        open_split(DataConfig("t", "", train=str(path)), "train", "pixels")
    with pytest.raises(DataError, match="data.train=.*no such file"):
        open_split(DataConfig("t", "", train="nowhere.csv"), "train", "pixels")


# COCO, arrow, ids


def change_coco(change):
    def make(root):
        path = root / "annotations" / "captions_train2014.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return make


@pytest.mark.parametrize("change, words", [
    (lambda c: c.pop("annotations"), "'annotations' is missing"),
    (lambda c: c.update(images={}), "'images' is an empty dict"),
    (lambda c: c["annotations"][1].update(caption=" \n"), r"annotations\[1\]: empty caption"),
    (lambda c: c["annotations"][1].update(image_id=5), r"image_id 5 "),
    (lambda c: c["images"][1].update(id=c["images"][0]["id"]), "duplicate image id 391895"),
    (lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]), "twice"),
    (lambda c: c["images"][1].pop("file_name"), "'file_name' is missing"),
])  # fmt: skip
def test_unusable_coco_files(tmp_path, change, words):
    worlds.write("coco", tmp_path, make_items())
    change_coco(change)(tmp_path)
    with pytest.raises(DataError, match=f"captions_train2014.json.*{words}"):
        open_split(config(tmp_path), "train", "pixels")


@pytest.mark.parametrize("layout", ["coco", "karpathy", "arrow"])
def test_images_without_a_caption_are_counted(tmp_path, layout):
    items = make_items()
    items[0] = dataclasses.replace(items[0], captions=())
    worlds.write(layout, tmp_path, items)
    split = open_split(config(tmp_path), "train", "pixels")
    assert split.n_images == 5
    assert any("1 of 6 images have no caption (left out of training)" in n for n in split.notes)
    evaluated = dataclasses.replace(config(tmp_path), splits={"val": "train"})
    split = open_split(evaluated, "val", "pixels")
    assert split.captions_per_image.tolist()[:3] == [0, 2, 3] and len(split.text_to_image) == 20
    assert any("1 of 6 images have no caption (candidates in" in n for n in split.notes)


@pytest.mark.parametrize("layout", ["coco", "karpathy", "arrow"])
def test_a_split_without_any_caption_is_refused(tmp_path, layout):
    items = [dataclasses.replace(item, captions=()) for item in make_items()]
    worlds.write(layout, tmp_path, items)
    with pytest.raises(DataError, match=r"none of the (6|3) images of split|'annotations' is an"):
        open_split(config(tmp_path), "train", "pixels")


def rewrite_arrow(path, change):
    import pyarrow as pa

    table = change(pa.ipc.open_file(str(path)).read_all())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def test_unusable_arrow_files(tmp_path):
    import pyarrow as pa

    worlds.write("arrow", tmp_path, make_items())
    path = tmp_path / "coco_caption_karpathy_val.arrow"
    whole = path.read_bytes()

    def fails(words):
        with pytest.raises(DataError, match=f"val.arrow.*{words}"):
            open_split(config(tmp_path), "val", "pixels")
        path.write_bytes(whole)

    for size in (0, 4, 9, 200, len(whole) - 30):
        path.write_bytes(whole[:size])
        fails("not an Arrow IPC file|not a valid Arrow file")
    rewrite_arrow(path, lambda t: t.rename_columns(["picture", "caption", "image_id", "split"]))
    fails("no column 'image'; its columns: picture, caption")
    rewrite_arrow(path, lambda t: t.set_column(1, "caption", [["a", "b", "c"]]))
    fails("column 'caption' is string; expected list<string>")
    rewrite_arrow(path, lambda t: t.set_column(1, "caption", [[["a"], ["b", " "], ["c"]]]))
    fails("row 1: caption 1 is empty")
    rewrite_arrow(path, lambda t: t.set_column(0, "image", [pa.array([b"a", None, b"c"])]))
    fails("row 1: the image is empty")
    rewrite_arrow(path, lambda t: t.slice(0, 0))
    fails("holds no row")
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    table = pa.ipc.open_file(pa.BufferReader(whole)).read_all()
    with pa.OSFile(str(path), "wb") as sink:
        with pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table)
    fails("is compressed")
    assert open_split(config(tmp_path), "val", "pixels").n_images == 3


@pytest.mark.parametrize("ids, words", [
    ("1\n2\n", "2 ids for 6 images"),
    ("1\n2\n3\n4\nx5\n6\n", "line 5: 'x5'"),
    ("1\n2\n3\n4\n5\n5\n", "duplicate image id 5"),
])  # fmt: skip
def test_unusable_region_ids(tmp_path, ids, words):
    worlds.write("precomp", tmp_path, make_items(captions=5))
    (tmp_path / "coco_precomp" / "train_ids.txt").write_text(ids)
    with pytest.raises(DataError, match=f"train_ids.txt.*{words}"):
        open_split(config(tmp_path), "train", "regions")


def test_duplicate_images_and_ids_are_refused(tmp_path):
    worlds.write("karpathy", tmp_path, make_items())
    path = tmp_path / "dataset_coco.json"
    whole = json.loads(path.read_text())
    for changes, words in (
        ({"filename": whole["images"][0]["filename"]}, "'train' and 'test'"),
        ({"cocoid": whole["images"][0]["cocoid"]}, "image id 391895 .*images"),
    ):
        images = [*whole["images"][:-1], {**whole["images"][-1], **changes}]
        path.write_text(json.dumps({"images": images}))
        with pytest.raises(DataError, match=words):
            open_split(config(tmp_path), "train", "pixels")


def test_unknown_splits_are_noted(tmp_path):
    worlds.write("karpathy", tmp_path, make_items())
    path = tmp_path / "dataset_coco.json"
    path.write_text(path.read_text().replace('"split": "test"', '"split": "tset"', 1))
    split = open_split(config(tmp_path), "train", "pixels")
    assert any("tset (1 images)" in note for note in split.notes)
