"""The words for splits, wherever they occur: names of files and folders, columns, annotations."""

import io
import itertools
import json

import pytest
from rich.console import Console

from itr.data.doctor.cli import examine, parse_options
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.layouts.shards.find_tars import tars_of
from itr.data.splits import match_split, role_of, unused_splits
from itr.errors import ConfigError, DataError
from tests.data import worlds
from tests.data.worlds import PARTS, make_items

WORDS = {
    "train": ("train", "Training", "train2014", "TRAIN_2017", "restval"),
    "val": ("val", "Val", "valid", "validation", "VALIDATION", "dev", "val2017"),
    "test": ("test", "Test", "testing", "test2015"),
}
CASES = [(role, word) for role, words in WORDS.items() for word in words]


@pytest.mark.parametrize("role, word", CASES)
def test_roles(role, word):
    assert role_of(word) == role and match_split(role, [word, "extra"]) == [word]


def test_what_a_split_may_mean():
    assert match_split("val", ["dev", "val"]) == ["val"]
    assert match_split("dev", ["valid", "val"]) == ["valid", "val"]  # ambiguous
    assert match_split("test", ["testall"]) == [] and match_split("testall", ["test"]) == ["test"]
    assert match_split("val", ["val_seen", "train"]) == ["val_seen"]
    assert match_split("train", ["retrain", "trainer", "strain"]) == []
    assert unused_splits(["train", "dev", "test", "testall"], {"test": "test"}) == []
    assert unused_splits(["train", "val", "dev"], {"val": "val"}) == ["dev"]
    assert unused_splits(["train", "val", "x"], {"train": "train+x"}) == []


def make_tars(root, names):
    """Tars with an image each; name -> its caption."""
    items = make_items((len(names), 0, 0), captions=1)
    for item, name in zip(items, names, strict=True):
        members = [("0.jpg", item.jpeg), ("0.txt", name.encode())]
        worlds.write_tar(root / name, members)
    return root


TARS = {
    "prefix": ("train-0000.tar", "validation-0000.tar", "test-0000.tar"),
    "middle": ("cc3m-train-0001.tar", "cc3m-valid-0001.tar", "cc3m_Test_0001.tar"),
    "folders": ("train/0.tar", "dev/0.tar", "test/0.tar"),
    "deep folders": ("a/Train/x/0.tar", "a/val2014/x/0.tar", "a/testing/x/0.tar"),
    "camel case": ("ccTrain01.tar", "ccVal01.tar", "ccTest01.tar"),
    "upper case": ("CC3M-TRAIN-1.tar", "CC3M-VAL-1.tar", "CC3M-TEST-1.tar"),
    "the rest trains": ("00000.tar", "sub/val/00000.tar", "test/00000.tar"),
}


@pytest.mark.parametrize("names", TARS.values(), ids=TARS)
def test_tars_are_sorted_by_the_words_in_their_paths(tmp_path, names):
    data = DataConfig("x", "", shards=str(make_tars(tmp_path / "set", names)))
    for part, name in zip(PARTS, names, strict=True):
        assert list(open_split(data, part, "pixels").texts) == [name]


def test_tars_below_the_root_and_a_test_set_alone(tmp_path):
    make_tars(tmp_path / "a", ("train-0.tar", "validation/1.tar", "._junk.tar"))
    (tmp_path / "a" / "._junk.tar").write_bytes(b"\0\5\x16\7")
    found = DataConfig("x", str(tmp_path / "a"))
    assert [open_split(found, part, "pixels").n_images for part in ("train", "val")] == [1, 1]
    for shards in (tmp_path / "b", tmp_path / "b" / "test"):
        make_tars(tmp_path / "b", ("test/0.tar",))
        alone = DataConfig("x", "", shards=str(shards), held_out="auto")
        assert open_split(alone, "test", "pixels").n_images == 1
        with pytest.raises(DataError, match="no split 'train'.*its splits: test"):
            open_split(alone, "train", "pixels")


def test_tars_that_could_be_in_two_splits_or_in_none(tmp_path):
    root = make_tars(tmp_path, ("train-0.tar", "val-0.tar", "extra-0.tar"))
    train = open_split(DataConfig("x", "", shards=str(root)), "train", "pixels")
    assert any("1 tars name no split" in note and "extra-0" in note for note in train.notes)
    root = make_tars(tmp_path / "both", ("train-val-0.tar",))
    with pytest.raises(DataError, match="train-val-0.*names train and val.*data.shards="):
        tars_of(str(root))
    given = {"train": [str(root), f"{tmp_path}/extra-{{0..0}}.tar"], "valid": f"{tmp_path}/val-*"}
    tars = tars_of(given).by_role
    assert {role: len(paths) for role, paths in tars.items()} == {"train": 2, "val": 1}
    with pytest.raises(ConfigError, match="val-0.tar is in both train and val"):
        tars_of({"train": f"{tmp_path}/*.tar", "val": f"{tmp_path}/val-0.tar"})


@pytest.mark.parametrize("pattern, count", [
    ("{root}/a/{{0..1}}.tar::{root}/b/{{0..1}}.tar", 4),
    ("{root}/{{a,b}}/{{0..1}}.tar", 4),
    ("{root}/{{a,b}}/{{0,3}}.tar", 4),
    ("{root}/*/*.tar", 6),
    ("{root}/a/{{0..0,3}}.tar", 2),
    ("{root}", 6),
    ("{root}/a::{root}/a/0.tar", 3),
    ("{root}/a/0.tar", 1),
])  # fmt: skip
def test_patterns(tmp_path, pattern, count):
    make_tars(tmp_path, [f"{folder}/{n}.tar" for folder in "ab" for n in (0, 1, 3)])
    one = pattern.format(root=tmp_path)
    for shards in (one, one.split("::")):
        found = tars_of(shards)
        assert len(found.by_role["train"]) == count
        assert bool(found.notes) == ("a/0.tar" in one and "::" in one)


@pytest.mark.parametrize("pattern, words", [
    ("{root}/{{0..4}}.tar", "2 of 5 tars do not exist.*2.tar.*holds 0.tar, 1.tar, 3.tar"),
    ("{root}/none*.tar", "matches no .tar file.*holds 0.tar.*::"),
    ("{root}/nowhere/*.tar", "nowhere does not exist"),
    ("s3://bucket/{{0..4}}.tar", "only files are read"),
    ("pipe:cat x.tar", "only files are read"),
])  # fmt: skip
def test_patterns_that_match_nothing(tmp_path, pattern, words):
    make_tars(tmp_path, ["0.tar", "1.tar", "3.tar"])
    with pytest.raises((DataError, ConfigError), match=words):
        tars_of(pattern.format(root=tmp_path))


def write_column(root, values):
    worlds.write_image_files(root, items := make_items((len(values), 0, 0), captions=1))
    rows = [f"{i.file},a cat,{value}\n" for i, value in zip(items, values, strict=True)]
    (root / "pairs.csv").write_text("image,caption,split\n" + "".join(rows))
    return DataConfig("t", "", train=str(root / "pairs.csv"), held_out="auto")


@pytest.mark.parametrize("words", itertools.zip_longest(*WORDS.values(), fillvalue="test"))
def test_words_in_a_column(tmp_path, words):
    train, val, test = (words[0] if words[0] != "test" else "train"), words[1], words[2]
    data = write_column(tmp_path, [train] * 5 + [val] * 2 + [test] * 3 + ["extra"])
    splits = [open_split(data, part, "pixels") for part in PARTS]
    assert [split.n_images for split in splits] == [5, 2, 3]  # nothing is held out
    assert any("used by nothing" in n and "extra (1 images)" in n for n in splits[0].notes)


def test_nothing_is_held_out_beside_a_split(tmp_path):
    data = write_column(tmp_path, ["train"] * 9 + ["test"] * 3)
    assert open_split(data, "train", "pixels").n_images == 9
    with pytest.raises(DataError, match="no split 'dev' for val.*data.held_out=0.05"):
        open_split(data, "val", "pixels")
    data.held_out = 0.25
    sizes = [open_split(data, part, "pixels").n_images for part in PARTS]
    assert sizes == [7, 2, 3]
    with pytest.raises(DataError, match="line 3: no split, unlike .*line 2"):
        open_split(write_column(tmp_path, ["train", "", "val"]), "train", "pixels")


def test_what_data_held_out_null_holds_out(tmp_path):
    data = write_column(tmp_path, [""] * 40)
    splits = [open_split(data, part, "pixels") for part in PARTS]
    assert [split.n_images for split in splits] == [36, 2, 2]
    assert any("2 of 40 images" in note for note in splits[0].notes)
    for number in range(40):
        make_tars(tmp_path / "wds", [f"{number}.tar"])
    shards = DataConfig("x", "", shards=str(tmp_path / "wds"), held_out="auto")
    assert [open_split(shards, part, "pixels").n_images for part in PARTS] == [36, 2, 2]


@pytest.mark.parametrize("layout", ["karpathy", "lists", "coco", "arrow", "table"])
def test_a_validation_split_in_every_layout(tmp_path, layout):
    worlds.write(layout, tmp_path, make_items())
    for path in list(tmp_path.rglob("*val*")):
        if path.suffix in (".json", ".arrow"):
            path.rename(path.with_name(path.name.replace("val2014", "val").replace(
                "val", "Validation" if "rest" not in path.name else "val")))  # fmt: skip
    for path in (tmp_path / "dataset_coco.json", tmp_path / "pairs.csv"):
        if path.exists():
            text = path.read_text("utf-8-sig").replace(",val,", ",Validation,")
            path.write_text(text.replace('"split": "val"', '"split": "Validation"'))
    data = DataConfig("coco", str(tmp_path))
    assert [open_split(data, part, "pixels").n_images for part in PARTS] == [6, 3, 3]


def test_the_doctor_says_what_training_would_miss(tmp_path):
    data = write_column(tmp_path, ["train"] * 4 + ["val"] * 2 + ["valid"] * 2)

    def report(*given):
        return examine(
            parse_options([f"data.train={data.train}", *given]), Console(file=io.StringIO())
        )

    found = report()
    assert found.exit_code == 2 and "ambiguous: val and valid" in json.dumps(found.to_dict())
    found = report("data.splits.val=valid", "data.splits.test=valid")
    assert found.exit_code == 1 and "val (2 images)" in json.dumps(found.to_dict())
