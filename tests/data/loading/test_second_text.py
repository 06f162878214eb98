"""The second text of an image: another caption, or one from a file."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from itr.data.layouts.registry import DataConfig, open_split
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.loading.second_text import open_second_texts
from itr.data.text.known_tokenizers import open_tokenizer
from itr.errors import ConfigError, DataError
from itr.view import PixelView, TextView, View
from tests.data import worlds
from tests.data.image_files import entry, write_karpathy

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def view_of(unit="caption", second=True):
    return View(
        kind="pixels",
        tokenizer="wordpiece",
        unit=unit,
        pixels=PixelView(size=4),
        second_text=TextView(max_length=9, pad_to=9) if second else None,
        vocabulary_size=200,
    )


@pytest.fixture
def make(tmp_path):
    """A loader over six images with 1, 2, ... captions, each a letter; and its tokenizer."""
    letters = iter(LETTERS)
    counts = [1, 2, 3, 5, 5, 2]
    images = [entry(n, "train", [next(letters) for _ in range(k)]) for n, k in enumerate(counts)]
    write_karpathy(tmp_path, images)

    def make(second_text, unit="caption", seed=0, **options):
        data = DataConfig("tiny", str(tmp_path), second_text=second_text)
        split = open_split(data, "train", "pixels", second=True)
        view = view_of(unit)
        tokenizer = open_tokenizer(view, [*split.captions(), *split.second_texts()])
        table = tokenizer.tokenize(split.captions(), view.text)
        second = open_second_texts(split, view, tokenizer, None)
        loader = TrainLoader(
            TrainData(split, view, table, tokenizer, second), LoaderOptions(3, seed, **options)
        )
        return loader, tokenizer

    return make


def drawn(loader, tokenizer, epoch=0):
    """(caption, second text) of each pair of an epoch."""
    pairs = []
    for batch in loader.epoch(epoch):
        assert batch.second_tokens.shape == (3, 9) and batch.second_mask.shape == (3, 9)
        for caption, second in zip(batch.caption_id, batch.second_tokens, strict=True):
            own = loader.split.captions()[int(caption)]
            pairs.append((own, tokenizer.tokens[int(second[1])]))
    return pairs


@pytest.mark.parametrize("unit", ["caption", "pair"])
def test_other_caption_is_another_of_the_same_image(make, unit):
    loader, tokenizer = make("other_caption", unit)
    owner = loader.split.text_to_image
    number = {caption.lower(): n for n, caption in enumerate(loader.split.captions())}
    seen = set()
    for epoch in range(60):
        for own, second in drawn(loader, tokenizer, epoch):
            a, b = number[own.lower()], number[second]
            assert owner[a] == owner[b] and (a != b or a == 0)  # the first image has one caption
            seen.add((a, b))
    others = sum(k * (k - 1) for k in loader.split.captions_per_image[1:])
    assert len(seen) == others + 1  # every pair comes at last


def test_other_caption_is_a_function_of_seed_and_epoch(make):
    loader, tokenizer = make("other_caption")
    assert drawn(loader, tokenizer, 3) == drawn(*make("other_caption", num_workers=2), 3)
    assert drawn(loader, tokenizer, 3) != drawn(loader, tokenizer, 4)
    assert drawn(loader, tokenizer, 3) != drawn(*make("other_caption", seed=1), 3)
    (rest,) = list(loader.epoch(3, start_batch=loader.batches_per_epoch - 1))
    assert np.array_equal(rest.second_tokens, list(loader.epoch(3))[-1].second_tokens)


@pytest.mark.parametrize("key", [str, lambda n: f"{n:04d}.jpg"])
def test_a_file_gives_one_to_each_image(make, tmp_path, key):
    path = tmp_path / "blip.json"
    path.write_text(json.dumps({key(n): f" {LETTERS[n]} z" for n in range(6)}))
    loader, tokenizer = make(str(path))
    owner = loader.split.text_to_image
    number = {caption: n for n, caption in enumerate(loader.split.captions())}
    for own, second in drawn(loader, tokenizer):
        assert second == LETTERS[owner[number[own]]]


def test_files_that_cannot_be_used(make, tmp_path):
    path = tmp_path / "blip.json"
    for content, word in (
        ('{"0": "a", "1": " ", "2": "c", "3": "d", "4": 5}', "3 of 6 images .ids 1, 4, 5"),
        ('["a"]', "holds a list"),
        ('{"0": ', "not valid JSON"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=word):
            make(str(path))
    with pytest.raises(DataError, match="nowhere: cannot be read.*other_caption"):
        make(str(tmp_path / "nowhere"))


def test_a_set_without_second_texts_says_what_to_type(make):
    with pytest.raises(ConfigError, match="data.second_text=other_caption.*data.second_text=FILE"):
        make(None)


def test_nothing_is_opened_where_none_is_wanted(make, tmp_path):
    loader, tokenizer = make("other_caption")
    assert open_second_texts(loader.split, view_of(second=False), tokenizer, None) is None


# A side file of shards


def opened(tmp_path, text, name="side.jsonl", **options):
    items = worlds.make_items((8, 2, 2))
    bare = [worlds.Item(i.number, i.part, i.captions, i.jpeg, "") for i in items]
    if not (tmp_path / "wds").is_dir():
        worlds.write_shards(tmp_path, bare)
        for path in (tmp_path / "wds").rglob("*.tar"):  # no second text inside
            path.write_bytes(
                path.read_bytes().replace(b'"synthetic_caption"', b'"something_other__"')
            )
    path = tmp_path / name
    path.write_text(text(items))
    data = DataConfig(
        "yfcc", str(tmp_path), second_text=str(path), cache=str(tmp_path / "cache"), **options
    )
    return items[:8], open_split(data, "train", "pixels", second=True)


@pytest.mark.parametrize("text, name", [
    (lambda items: "".join(json.dumps({"key": f"{i.number:06d}", "caption": i.second}) + "\n"
                           for i in items), "side.jsonl"),
    (lambda items: "image_id\tsynthetic_caption\n" + "".join(f"{i.cocoid}\t{i.second}\n"
                                                             for i in items), "side.tsv"),
    (lambda items: "file,text\n" + "".join(f"{i.file},{i.second}\n" for i in items), "side.csv"),
    (lambda items: json.dumps({f"{i.number:06d}": i.second for i in items}), "side.json"),
])  # fmt: skip
def test_second_texts_are_joined_by_key_id_or_name(tmp_path, text, name):
    items, split = opened(tmp_path, text, name)
    assert list(split.second) == [item.second for item in items]
    assert split.n_images == 8


NUMBERS = {
    "a key read as a number": ("key", lambda i: i.number),
    "an image id": ("image_id", lambda i: i.cocoid),
    "a number in a column of any name": ("id", lambda i: i.number),
}


@pytest.mark.parametrize("column, key", NUMBERS.values(), ids=NUMBERS)
def test_whole_numbers_are_keys_or_ids_as_the_column_says(tmp_path, column, key):
    """As pandas writes them, "000003" is 3: the key of one sample, and here the id of another."""
    items = worlds.make_items((8, 2, 2))
    ids = {item.number: (item.number + 3) % 8 for item in items}  # of each its own
    if column == "id":
        ids = {item.number: 1000 + item.number for item in items}
    root, path = tmp_path / "wds" / "train", tmp_path / "side.parquet"
    members = []
    for item in items[:8]:
        meta = {"image_id": ids[item.number]}
        members += [
            (f"{item.number:06d}.jpg", item.jpeg),
            (f"{item.number:06d}.txt", item.captions[0].encode()),
            (f"{item.number:06d}.json", json.dumps(meta).encode()),
        ]
    worlds.write_tar(root / "0.tar", members)
    keys = [ids[i.number] if column == "image_id" else key(i) for i in items[:8]]
    pq.write_table(pa.table({column: keys, "caption": [i.second for i in items[:8]]}), path)
    data = DataConfig("yfcc", str(tmp_path), second_text=str(path), cache=str(tmp_path / "cache"))
    split = open_split(data, "train", "pixels", second=True)
    assert list(split.second) == [item.second for item in items[:8]]
    if column == "id":
        return
    pq.write_table(pa.table({"id": keys, "caption": [i.second for i in items[:8]]}), path)
    with pytest.raises(DataError, match="the image id of one image and the key of another"):
        open_split(data, "train", "pixels", second=True)


def test_an_id_that_no_file_gives_is_no_name(tmp_path):
    """Keys from another part of the set would else be running numbers of these samples."""
    members = []
    for item in worlds.make_items((6, 0, 0)):
        key = f"{10 + item.number:06d}"
        members += [(f"{key}.jpg", item.jpeg), (f"{key}.txt", item.captions[0].encode())]
    worlds.write_tar(tmp_path / "0.tar", members)
    path = tmp_path / "side.json"
    data = DataConfig("yfcc", str(tmp_path), second_text=str(path), cache=str(tmp_path / "cache"))
    path.write_text(json.dumps({str(n): f"text {n}" for n in range(6)}))
    with pytest.raises(DataError, match="no caption for 6 of 6 images"):
        open_split(data, "train", "pixels", second=True)
    path.write_text(json.dumps({str(10 + n): f"text {n}" for n in range(6)}))
    split = open_split(data, "train", "pixels", second=True)
    assert list(split.second) == [f"text {n}" for n in range(6)]
    table = tmp_path / "set"
    worlds.write_image_files(table, worlds.make_items((2, 0, 0)))
    for number, file in enumerate(sorted(table.iterdir())):
        file.rename(table / f"{number}.jpg")
    (table / "pairs.csv").write_text("image,caption\n0.jpg,a\n1.jpg,b\n")
    path.write_text('{"0": "a", "1": "b"}')
    data = DataConfig("mine", str(table), second_text=str(path), layout="table")
    with pytest.raises(DataError, match=r"no caption for 2 of 2 images \(files 0.jpg, 1.jpg\)"):
        open_split(data, "train", "pixels", second=True)


def test_a_key_of_several_samples_is_refused(tmp_path):
    items = worlds.make_items((2, 0, 0))
    for tar, item in enumerate(items):
        members = [("000000.jpg", item.jpeg), ("000000.txt", item.captions[0].encode())]
        worlds.write_tar(tmp_path / f"{tar}.tar", members)
    (tmp_path / "side.json").write_text('{"000000": "a thing"}')
    data = DataConfig("yfcc", str(tmp_path), second_text=str(tmp_path / "side.json"))
    data.cache = str(tmp_path / "cache")
    with pytest.raises(DataError, match=r"'000000' .* 2 images \(0.tar: key 000000, 1.tar: key"):
        open_split(data, "train", "pixels", second=True)


def test_samples_that_a_side_file_leaves_out_are_counted(tmp_path):
    def text(items):
        return json.dumps({f"{i.number:06d}": i.second for i in items if i.number != 3})

    with pytest.raises(DataError, match=r"no caption for 1 of 8 images \(keys 000003\), more than"):
        opened(tmp_path, text, "side.json")
    items, split = opened(tmp_path, text, "side.json", max_broken=0.2)
    assert [r.image_id for r in split.records] == [i.cocoid for i in items if i.number != 3]
    assert list(split.second) == [i.second for i in items if i.number != 3]
    assert any("1 of 8 images (keys 000003): left out" in note for note in split.notes)


def test_side_files_that_cannot_be_used(tmp_path):
    for text, words in (
        ('{"key": "000000", "words": "a"}\n', "no column synthetic_caption or caption or text"),
        ('{"name": "000000", "caption": "a"}\n', "no column key or image_id"),
        ('{"key": "000000", "caption": "a"}\n{"key"', "line 2: not valid JSON"),
        ("", "no caption for 8 of 8 images"),
    ):
        with pytest.raises(DataError, match=words):
            opened(tmp_path, lambda items, text=text: text)
