"""ALBEF's annotation lists: the same records as Karpathy's annotations; faulty lists."""

import json

import pytest

from itr.data.layouts.registry import DataConfig, open_split
from itr.errors import DataError
from tests.data.image_files import entry, write_karpathy

SPLITS = ["train", "val", "test", "train", "train"]


def write_lists(root, name="flickr30k"):
    """Write the same five images as Karpathy annotations and as lists."""
    images = [entry(n, split, [f"a {n}", f"b {n}"]) for n, split in enumerate(SPLITS)]
    write_karpathy(root / "karpathy", images, name)
    lists = root / "lists"
    lists.mkdir()
    for part in ("train", "val", "test"):
        pairs = [(f"images/{e['filename']}", [s["raw"] for s in e["sentences"]])
               for e in images if e["split"] == part]  # fmt: skip
        items = [{"image": image, "caption": captions} for image, captions in pairs]
        if part == "train":  # one item per caption, not in image order
            singles = [
                (image, c) for k in range(2) for image, captions in pairs for c in captions[k:][:1]
            ]
            items = [{"image": i, "caption": c, "image_id": f"id_{i}"} for i, c in singles]
        (lists / f"{name}_{part}.json").write_text(json.dumps(items))
    (root / "karpathy" / "images").rename(root / "images")
    return lists


def opened(folder, split="train", **options):
    return open_split(DataConfig("f30k", str(folder), **options), split, "pixels")


def test_records_equal_those_of_karpathy_annotations(tmp_path):
    lists = write_lists(tmp_path)
    for role in ("train", "val", "test"):
        a, b = opened(lists, role), opened(tmp_path / "karpathy", role)
        assert (a.layout, b.layout) == ("lists", "karpathy")
        for x, y in zip(a.records, b.records, strict=True):
            assert x.captions == y.captions and x.image.endswith(y.image.rsplit("/", 1)[1])
    train = opened(lists)
    assert [r.caption_ids for r in train.records] == [(0, 3), (1, 4), (2, 5)]
    assert opened(lists, splits={"val": "dev"}).n_images == 3
    assert opened(lists, "val", splits={"val": "dev"}).n_images == 1


def test_an_empty_list_of_captions_is_an_image_without_one(tmp_path):
    write_karpathy(tmp_path, [entry(0, "test"), entry(1, "test")], "x")
    (tmp_path / "dataset_x.json").unlink()
    images = [entry(n, "test")["filename"] for n in range(2)]
    rows = [{"image": images[0], "caption": []}, {"image": images[1], "caption": ["a"]}]
    (tmp_path / "f30k_test.json").write_text(json.dumps(rows))
    split = opened(tmp_path, "test")
    assert [record.captions for record in split.records] == [(), ("a",)]
    assert any("1 of 2 images have no caption" in note for note in split.notes)


def test_coco_ids_come_from_the_file_names(tmp_path):
    name = "val2014/COCO_val2014_000000391895.jpg"
    write_karpathy(tmp_path, [{**entry(0, "test"), "filename": name}], "x")
    (tmp_path / "dataset_x.json").unlink()
    (tmp_path / "f30k_test.json").write_text(json.dumps([{"image": name, "caption": ["a"]}]))
    assert opened(tmp_path, "test").records[0].image_id == 391895


@pytest.mark.parametrize(
    "content, words",
    [
        ("[]", "an empty list"),
        ('{"images": 1}', "holds dict"),
        ("[7]", r"\[0\]: is int 7"),
        ('[{"caption": "a"}]', "'image' is missing"),
        ('[{"image": "0.jpg"}]', "'caption' is missing"),
        ('[{"image": "0.jpg", "caption": ["a", " "]}]', "'caption' is str"),
        ('[{"image": "0.jpg", "caption": [[]]}]', "'caption' is an empty list"),
        ('[{"image": "0.jpg", "caption": "a"}]', "1 of 1 images .*data.images"),
        ('[{"image": "0.j', "not valid JSON"),
        (
            '[{"image": "0.jpg", "caption": "a", "image_id": 7}, '
            '{"image": "1.jpg", "caption": "b", "image_id": 7}]',
            r"\[1\] .1.jpg.: image id 7 .*\[0\]",
        ),
    ],
)
def test_unusable_lists(tmp_path, content, words):
    (tmp_path / "f30k_train.json").write_text(content)
    with pytest.raises(DataError, match=f"f30k_train.json.*{words}"):
        opened(tmp_path)
