"""Messages that recommend something: passing it works. And names that files have on disk."""

import io
import shlex
import unicodedata

import pytest
from rich.console import Console

from itr.data.__main__ import main as data_command
from itr.data.doctor.cli import examine, parse_options
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.scenes.make import prepare
from itr.data.tools.arguments import compose, data_config
from itr.errors import ConfigError, DataError
from tests.data import worlds
from tests.data.worlds import PARTS, make_items


def write_pairs(folder, count=40):
    worlds.write_image_files(folder, items := make_items((count, 0, 0), captions=2))
    rows = [f"{item.file},{text!r}\n" for item in items for text in ("a cat", "a dog")]
    (folder / "pairs.csv").write_text("image,caption\n" + "".join(rows))
    return folder / "pairs.csv"


def as_training_opens(*arguments):
    """The files and captions of each split that train.py would open with ``arguments``."""
    data = data_config(compose([*arguments, "model=alip"]))
    splits = (open_split(data, part, "pixels") for part in PARTS)
    return [sorted((r.captions, r.image) for r in split.records) for split in splits]


@pytest.mark.parametrize("target", ["out/dataset_mine.json", "out/mine.csv", "out/mine.parquet",
                                    "arrow", "wds", "out/dataset_coco.json"])  # fmt: skip
def test_what_convert_recommends_trains_on_the_same_splits(tmp_path, target, capsys):
    pairs = write_pairs(tmp_path / "begin")
    assert data_command(["convert", str(pairs), str(tmp_path / target)]) == 0
    lines = capsys.readouterr().out.splitlines()
    hint = next(line for line in lines if line.startswith("train with: "))
    found = as_training_opens(*shlex.split(hint.removeprefix("train with: ")))
    expected = as_training_opens("data=table", f"data.train={pairs}")
    assert [len(split) for split in found] == [len(split) for split in expected] == [36, 2, 2]
    if target.startswith("out"):  # images stay where they are
        names = [[(c, str(image).rpartition("/")[2]) for c, image in s] for s in found]
        assert names == [[(c, str(image).rpartition("/")[2]) for c, image in s] for s in expected]


def test_options_in_messages_about_splits(tmp_path):
    worlds.write("coco", tmp_path, make_items())
    for path in tmp_path.rglob("captions_test2014.json"):
        path.unlink()
    given = ["data=coco", f"data.root={tmp_path}"]
    with pytest.raises(DataError, match="no split 'testall' for test.*data.splits.test=NAME"):
        as_training_opens(*given)
    assert [len(s) for s in as_training_opens(*given, "data.splits.test=val")] == [6, 3, 3]
    pairs = write_pairs(tmp_path / "t")
    text = pairs.read_text().replace("caption\n", "caption,split\n").replace("'\n", "',train\n")
    pairs.write_text(text[: text.rindex("train")] + "train\n")
    given = ["data=table", f"data.train={pairs}", "data.held_out=0"]
    with pytest.raises(DataError, match="data.held_out=0.05"):
        as_training_opens(*given)
    assert [len(s) for s in as_training_opens(*given[:2], "data.held_out=0.1")] == [32, 4, 4]


def test_a_table_that_is_misspelt_or_a_folder(tmp_path):
    pairs = write_pairs(tmp_path)
    for kind in ("pixels", "regions"):
        data = DataConfig("t", "nowhere", train=str(tmp_path / "pears.csv"))
        with pytest.raises(DataError, match="pears.csv: no such file; nearest: pairs.csv"):
            open_split(data, "train", kind)
    with pytest.raises(DataError, match="is a folder.*data.root="):
        open_split(DataConfig("t", "", train=str(tmp_path)), "train", "pixels")
    assert open_split(DataConfig("t", str(tmp_path)), "train", "pixels").n_images == 40
    with pytest.raises(ConfigError, match="data.train=.*holds images.*itr data features"):
        open_split(DataConfig("t", "", train=str(pairs)), "train", "regions")


def composed(name):
    return unicodedata.normalize("NFC", name)


def decomposed(name):
    return unicodedata.normalize("NFD", name)


SPELLINGS = {
    "composed": ("caf\u00e9/\u017ce {}.jpg", decomposed),
    "decomposed": (decomposed("caf\u00e9/\u017ce {}.jpg"), composed),
    "case": ("a/b {}.JPG", str.lower),
    "folder's case": ("A/b {}.jpg", lambda name: name.replace("A/", "a/")),
    "windows": ("a\\b\\c {}.jpg", lambda name: name.replace("\\", "/")),
}


@pytest.mark.parametrize("given, on_disk", SPELLINGS.values(), ids=SPELLINGS)
def test_names_that_are_spelled_differently_on_disk(tmp_path, given, on_disk):
    items = make_items((4, 0, 0))
    rows = []
    for number, item in enumerate(items):
        path = tmp_path / "images" / on_disk(given.format(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.jpeg)
        rows.append(f"{given.format(number)},a cat {number}\n")
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "".join(rows), "utf-8")
    split = open_split(DataConfig("t", str(tmp_path)), "train", "pixels")
    for record, item in zip(split.records, items, strict=True):
        with open(record.image, "rb") as file:
            assert file.read() == item.jpeg
    assert any("4 image names are spelled differently" in note for note in split.notes)


def test_a_name_that_could_be_two_files_is_missing(tmp_path):
    for name in ("A.jpg", "a.jpg"):
        (tmp_path / name).write_bytes(make_items((1, 0, 0))[0].jpeg)
    (tmp_path / "pairs.csv").write_text("image,caption\nA.JPG,a cat\n")
    with pytest.raises(DataError, match="1 of 1 images are missing"):
        open_split(DataConfig("t", str(tmp_path)), "train", "pixels")


def test_a_check_writes_nothing_into_a_scenes_set(tmp_path):
    folder = prepare(tmp_path, 4, 2, 2)
    before = sorted(tmp_path.rglob("*"))
    options = parse_options(["data=scenes", f"data.root={folder}"])
    report = examine(options, Console(file=io.StringIO()))
    assert {split.images for split in report.splits} == {4, 2}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_shortfall_of_a_published_dataset_is_no_clean_set(tmp_path):
    worlds.write("karpathy", tmp_path, make_items())
    arguments = [
        "data=coco",
        f"data.root={tmp_path}",
        "data.splits={train: train, val: val, test: test}",
    ]
    report = examine(parse_options(arguments), Console(file=io.StringIO()))
    assert report.exit_code == 1
    assert any("113,287" in finding.message for finding in report.findings)
    split = open_split(DataConfig("coco", str(tmp_path)), "train", "pixels")
    assert any("113,287" in note for note in split.notes)
    assert not any(
        "113,287" in n for n in open_split(DataConfig("x", str(tmp_path)), "train", "pixels").notes
    )
