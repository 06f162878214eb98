"""Folders of images with a caption beside each, and what img2dataset writes."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from itr.data.images.decode import read_bytes
from itr.data.layouts.registry import DataConfig, find_layouts, open_split
from itr.data.tools.convert import main as convert
from itr.errors import DataError
from itr.jobs.train import train
from tests.conftest import compose
from tests.data.test_every_layout_trains import SMALL
from tests.data.worlds import PARTS, make_items

ITEMS = make_items((12, 0, 0), captions=1)


def write(root, items, text=".txt", image=".jpg", folder=""):
    for item in items:
        path = root / folder / f"{item.number:03d}{image}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.jpeg)
        path.with_suffix(text).write_text(item.captions[0] + "\n", "utf-8")


def read(root, role="train", **options):
    return open_split(DataConfig("t", str(root), **options), role, "pixels")


def pairs(split):
    return [(record.captions, read_bytes(record.image)) for record in split.records]


TRUTH = [(item.captions, item.jpeg) for item in ITEMS]


@pytest.mark.parametrize("folder", ["", "00000", "a/b c"])
@pytest.mark.parametrize("text", [".txt", ".caption", ".jpg.txt"])
def test_captions_beside_the_images(tmp_path, text, folder):
    write(tmp_path, ITEMS, text, ".JPG" if text == ".txt" else ".jpg", folder)
    (tmp_path / folder / "._000.txt").write_bytes(b"\0\1")
    (tmp_path / "readme.txt").write_text("not a caption")
    split = read(tmp_path)
    assert split.layout == "folder" and pairs(split) == TRUTH
    assert [note for note in split.notes if "no image beside them: readme.txt" in note]


def test_splits_are_folders_or_held_out(tmp_path):
    for name, part in (("train", ITEMS[:6]), ("Validation", ITEMS[6:9]), ("test2", ITEMS[9:])):
        write(tmp_path, part, folder=f"{name}/00000")
    (layout,) = find_layouts(DataConfig("t", str(tmp_path), held_out="auto")).values()
    assert layout.splits() == {"train": 6, "val": 3, "test": 3}
    assert pairs(read(tmp_path, "val")) == TRUTH[6:9]
    assert pairs(read(tmp_path / "train")) == TRUTH[:6]
    write(tmp_path / "one", ITEMS)
    parts = {role: pairs(read(tmp_path / "one", role, held_out=2)) for role in PARTS}
    assert [len(part) for part in parts.values()] == [8, 2, 2]
    assert sorted(sum(parts.values(), [])) == sorted(TRUTH)


FAULTS = {
    "no text beside it": lambda path: path.with_suffix(".txt").unlink(),
    "an empty text": lambda path: path.with_suffix(".txt").write_text(" \n"),
    "not UTF-8": lambda path: path.with_suffix(".txt").write_bytes(b"caf\xe9"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("number", [0, 5, 11])
def test_an_image_without_a_caption_is_counted(tmp_path, fault, number):
    write(tmp_path, ITEMS)
    FAULTS[fault](tmp_path / f"{number:03d}.jpg")
    place = rf"{number:03d}\.(?:txt|jpg): {fault}"
    with pytest.raises(DataError, match=f"1 of 12 images have no usable caption: .*{place}.*0.01"):
        read(tmp_path)
    split = read(tmp_path, max_broken=0.1)
    assert pairs(split) == TRUTH[:number] + TRUTH[number + 1 :]
    assert any(re.search(f"left out: 1 of 12.*{place}", note) for note in split.notes)


def test_img2dataset_files(tmp_path):
    for item in ITEMS:
        path = tmp_path / f"{item.number // 5:05d}" / f"{item.number:09d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(item.jpeg)
        path.with_suffix(".txt").write_text(item.captions[0])
        meta = {"caption": item.captions[0], "key": path.stem, "synthetic_caption": item.second}
        path.with_suffix(".json").write_text(json.dumps(meta))
        (path.parent.parent / f"{path.parent.name}_stats.json").write_text('{"count": 5}')
        pq.write_table(pa.table({"url": ["x"], "caption": ["y"]}), f"{path.parent}.parquet")
    data = DataConfig("t", str(tmp_path))
    assert list(find_layouts(data)) == ["folder"]
    split = open_split(data, "train", "pixels", second=True)
    assert pairs(split) == TRUTH and list(split.second) == [item.second for item in ITEMS]
    assert convert([str(tmp_path), str(tmp_path / "wds"), "--held-out", "0"]) == 0
    assert pairs(read(tmp_path / "wds")) == TRUTH


@pytest.mark.parametrize("whole", [True, False])
def test_img2dataset_parquet(tmp_path, whole):
    gone = {4, 10} if whole else {3, 4, 10}
    for number in range(2):
        rows = [
            {
                "caption": item.captions[0],
                "key": f"{item.number:09d}",
                "status": "failed_to_download" if item.number % 6 == 4 else "success",
                "jpg": None if item.number in gone else item.jpeg,
            }
            for item in ITEMS[6 * number : 6 * number + 6]
        ]
        path = tmp_path / f"{number:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    truth = [pair for n, pair in enumerate(TRUTH) if n % 6 != 4]
    if not whole:
        with pytest.raises(DataError, match="1 of 12 rows hold no image .*00000.parquet, row 3"):
            read(tmp_path)
        assert pairs(read(tmp_path, max_broken=0.1)) == truth[:3] + truth[4:]
        return
    split = read(tmp_path)
    assert pairs(split) == truth and split.records[0].extra["file"] == "000000000.jpg"
    assert any("left out: 2 of 12 rows, failed downloads" in note for note in split.notes)
    one = open_split(DataConfig("t", "", train=str(tmp_path / "00001.parquet")), "train", "pixels")
    assert pairs(one) == truth[5:]


def test_images_of_one_name_are_not_merged(tmp_path):
    images = [{"bytes": item.jpeg, "path": "image.jpg"} for item in ITEMS]
    table = pa.table({"image": images, "caption": [item.captions[0] for item in ITEMS]})
    pq.write_table(table, tmp_path / "train.parquet")
    split = read(tmp_path)
    assert pairs(split) == TRUTH and any("different images" in note for note in split.notes)
    same = pa.table({"image": [{"bytes": ITEMS[0].jpeg, "path": "a"}] * 3, "text": ["x", "y", "z"]})
    pq.write_table(same, tmp_path / "train.parquet")
    assert pairs(read(tmp_path)) == [(("x", "y", "z"), ITEMS[0].jpeg)]


def test_a_folder_and_nothing_else_is_trained_on(tmp_path):
    write(tmp_path / "mine", ITEMS)
    arguments = [
        *("model=albef", "recipe=albef_scenes_retrieval", "data=captioned_folder"),
        *(f"data.root={tmp_path / 'mine'}", f"data.cache={tmp_path / 'cache'}"),
        *("data.held_out=3", "data.protocols=[full]", f"out={tmp_path / 'run'}", "batch_size=4"),
        *("trainer.max_steps=1", "trainer.validate_every=1", "tracker=none", "device=cpu"),
        *SMALL["albef"],
    ]
    results = train(compose("train", arguments))
    assert results["updates"] == 1 and results["test/n_images"] == 3
