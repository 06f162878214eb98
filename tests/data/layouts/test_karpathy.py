"""Karpathy's annotations: records, search for files and images, faulty files."""

import json

import pytest

from itr.data.layouts.registry import DataConfig, open_split
from itr.data.scenes.make import prepare
from itr.errors import ConfigError, DataError
from tests.data.image_files import encoded, entry, photo, write_karpathy

SPLITS = ["train", "val", "test", "train", "restval"]


def config(root, name="tiny", **options):
    return DataConfig(name=name, root=str(root), cache=str(root / "cache"), **options)


def entries(**fields):
    return [entry(number, split, **fields) for number, split in enumerate(SPLITS)]


def fails(root, *words, split="train", error=DataError, **options):
    with pytest.raises(error) as caught:
        open_split(config(root, **options), split, "pixels")
    for word in words:
        assert word in str(caught.value), caught.value


def test_records_match_the_file(tmp_path):
    images = entries()
    images[3] |= {"cocoid": 391895, "filepath": "val2014"}
    images[3]["sentences"][0]["raw"] = "  A man,\n on a «horse»  "
    write_karpathy(tmp_path, images)
    split = open_split(config(tmp_path), "train", "pixels")
    assert split.layout == "karpathy" and split.source.endswith("dataset_tiny.json")
    assert [r.image_id for r in split.records] == [0, 391895, 4]  # restval is train
    record = split.records[1]
    assert record.captions == ("A man,\n on a «horse»", "a dog")
    assert record.caption_ids == (30, 31)
    assert record.image == str(tmp_path / "images" / "val2014" / "0003.jpg")
    assert split.text_to_image.tolist() == [0, 0, 1, 1, 2, 2]
    assert open_split(config(tmp_path), "val", "pixels").records[0].image_id == 1


def test_any_number_of_captions(tmp_path):
    images = entries()
    images[0] = entry(0, "train", [f"caption {n}" for n in range(7)])
    images[3] = entry(3, "train", ["one"])
    write_karpathy(tmp_path, images)
    split = open_split(config(tmp_path), "train", "pixels")
    assert split.captions_per_image.tolist() == [7, 1, 2]


def test_tokens_replace_a_missing_raw_and_a_byte_order_mark_is_tolerated(tmp_path):
    images = entries()
    for sentence in images[0]["sentences"]:
        del sentence["raw"]
    path = write_karpathy(tmp_path, images)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert open_split(config(tmp_path), "train", "pixels").records[0].captions == ("a man", "a dog")


@pytest.mark.parametrize(
    "folder", ["", "images", "flickr30k-images", "../images", "../flickr30k_images"]
)
def test_usual_image_folders_are_searched(tmp_path, folder):
    root = tmp_path / "karpathy"
    root.mkdir()
    write_karpathy(root, entries(), folder=folder)
    assert open_split(config(root), "test", "pixels").n_images == 1


def test_other_image_folders_are_set_by_an_option(tmp_path):
    write_karpathy(tmp_path, entries(), folder="elsewhere/deep")
    fails(tmp_path, "3 of 3 images", "data.images=DIR")
    split = open_split(config(tmp_path, images=str(tmp_path / "elsewhere/deep")), "val", "pixels")
    assert split.n_images == 1
    fails(tmp_path, "no such folder", images=str(tmp_path / "nowhere"))


def test_the_file_is_chosen_by_name(tmp_path):
    write_karpathy(tmp_path, entries(), "flickr30k")
    (note,) = open_split(config(tmp_path, "f30k"), "train", "pixels").notes
    assert "f30k has 29,000" in note
    (note,) = open_split(config(tmp_path, "mine"), "train", "pixels").notes
    assert "data.name=mine" in note and "dataset_flickr30k.json" in note
    write_karpathy(tmp_path, entries(), "coco")
    fails(tmp_path, "dataset_coco.json, dataset_flickr30k.json", "data.name=coco", name="mine")


def test_split_names_of_other_layouts(tmp_path):
    write_karpathy(tmp_path, entries())
    names = {"train": "train", "val": "dev", "test": "testall"}
    for role, number in (("val", 1), ("test", 2)):
        split = open_split(config(tmp_path, splits=names), role, "pixels")
        assert split.records[0].image_id == number


def test_unknown_split_and_folder(tmp_path):
    write_karpathy(tmp_path, entries())
    fails(tmp_path, "no split 'tes'", "nearest: test", "train (3), val (1)", split="tes")
    fails(tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "data.root", "dataset_tiny.json", "nothing")


def test_missing_images_are_counted_and_named(tmp_path):
    write_karpathy(tmp_path, entries())
    (tmp_path / "images" / "0003.jpg").unlink()
    fails(tmp_path, "1 of 3 images", "0003.jpg")
    assert open_split(config(tmp_path), "val", "pixels").n_images == 1


def broken(change):
    """Entries with a change to the fourth (train)."""

    def make():
        images = entries()
        change(images[3])
        return images

    return make


FAULTS = {
    "empty caption": (lambda e: e["sentences"][1].update(raw=" \n"), "sentences[1]", "empty"),
    "caption is a number": (lambda e: e["sentences"][0].update(raw=7), "'raw' is int 7"),
    "no sentences": (lambda e: e.pop("sentences"), "'sentences' is missing"),
    "sentences a string": (lambda e: e.update(sentences="a man"), "'sentences' is str"),
    "sentence a string": (lambda e: e.update(sentences=["a man"]), "is str 'a man'"),
    "no split": (lambda e: e.pop("split"), "'split' is missing"),
    "split a list": (lambda e: e.update(split=["train"]), "'split' is list"),
    "no filename": (lambda e: e.pop("filename"), "'filename' is missing"),
    "bad id": (lambda e: e.update(cocoid=[12]), "'cocoid' is list [12]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_entries_are_named(tmp_path, fault):
    change, *words = FAULTS[fault]
    path = write_karpathy(tmp_path, entries())
    path.write_text(json.dumps({"images": broken(change)()}))
    fails(tmp_path, "dataset_tiny.json", "images[3]", *words)


@pytest.mark.parametrize(
    "content, word",
    [
        (b'{"images": [{"filename": "a.j', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[]", "an empty list"),
        (b'{"images": {}}', "an empty dict"),
        (b'{"images": ["a"]}', "is str 'a'"),
        (b'{"annotations": []}', "missing"),
        ('{"images": "é"}'.encode("latin-1"), "not UTF-8"),
    ],
)
def test_files_that_are_not_annotations(tmp_path, content, word):
    (tmp_path / "dataset_tiny.json").write_bytes(content)
    fails(tmp_path, "dataset_tiny.json", word)


def test_unusable_options(tmp_path):
    write_karpathy(tmp_path, entries())
    fails(tmp_path, "data.decoder=pilow", "nearest: pillow", error=ConfigError, decoder="pilow")
    with pytest.raises(ConfigError, match="data.layout=karpathy: .*pixels.*regions"):
        open_split(config(tmp_path, layout="karpathy"), "train", "regions")


def test_scenes_have_the_same_captions_in_both_layouts(tmp_path):
    root = prepare(tmp_path, train=12, val=4, test=4)
    data = DataConfig(name="scenes", root=str(root))
    for role in ("train", "val", "test"):
        pixels, regions = (open_split(data, role, kind) for kind in ("pixels", "regions"))
        assert pixels.captions() == regions.captions()


def test_a_changed_file_is_read_again(tmp_path):
    write_karpathy(tmp_path, entries())
    assert open_split(config(tmp_path), "train", "pixels").n_images == 3
    write_karpathy(tmp_path, [*entries(), entry(9, "train")])
    assert open_split(config(tmp_path), "train", "pixels").n_images == 4
    (tmp_path / "images" / "0009.jpg").write_bytes(encoded(photo()))
