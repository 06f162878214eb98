"""Several captions in one cell of a table, one ``.txt`` of a tar, one value of a JSON file."""

import csv
import json

import numpy as np
import pytest

from itr.data.captions import lines_of, parse_list
from itr.data.layouts import DataConfig, open_split
from itr.data.layouts.registry import find_layouts, read_split
from itr.errors import DataError
from tests.data import worlds
from tests.data.worlds import make_items

CAPTIONS = [("a cat, «1»", 'it\'s a "dog"'), ("one alone",), ("a\u2028b", "c; d", "e | f")]
FORMS = {
    "json": json.dumps,
    "unicode": lambda texts: json.dumps(texts, ensure_ascii=False),
    "python": lambda texts: str(list(texts)),
    "tuple": lambda texts: str(tuple(texts)),
    "numpy": lambda texts: str(np.array(list(texts), object)),
    "array": lambda texts: repr(np.array(list(texts), object)),
}
PLAIN = ("a cat", "[laughs] a cat [smiles]", "(a man)", "[1, 2]", "['a', 2]", "[]", '["a", ""]',
         "['a', b]", "(see 'a')", "['open", "[#1 'a']", '{"a": "b"}')  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_lists_are_parsed(form):
    for texts in CAPTIONS:
        assert parse_list(form(texts)) == list(texts)


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_list(text):
    assert parse_list(text) is None


def test_lines():
    assert lines_of("a\u2028b\n\n c\r\n") == ["a\u2028b", "c"]


def write_table(root, cells, ending=".csv"):
    worlds.write_image_files(root, items := make_items((len(cells), 0, 0), captions=1))
    with (root / f"pairs{ending}").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=",\t"[ending == ".tsv"])
        writer.writerow(["image", "caption", "split"])
        for number, (item, cell) in enumerate(zip(items, cells, strict=True)):
            writer.writerow([item.file, cell, ("train", "test")[number % 2]])
    return DataConfig("t", "", train=str(root / f"pairs{ending}"))


def write_tars(root, cells):
    for part in range(2):
        members = []
        for n, cell in enumerate(cells[part::2]):
            item = make_items((len(cells), 0, 0), captions=1)[n]
            members += [(f"{part}{n}.jpg", item.jpeg), (f"{part}{n}.txt", cell.encode())]
        worlds.write_tar(root / ("train", "test")[part] / "0.tar", members)
    return DataConfig("t", "", shards=str(root))


def write_karpathy(root, cells):
    items = make_items((len(cells), 0, 0), captions=1)
    worlds.write_image_files(root, items)
    images = [
        {"filename": item.file, "split": ("train", "test")[n % 2], "sentences": [{"raw": cell}]}
        for n, (item, cell) in enumerate(zip(items, cells, strict=True))
    ]
    (root / "dataset_t.json").write_text(json.dumps({"images": images}))
    return DataConfig("t", str(root))


WRITERS = {"table": write_table, "tars": write_tars, "karpathy": write_karpathy}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("form", [*FORMS.values(), "\n".join], ids=[*FORMS, "lines"])
def test_every_caption_is_one(tmp_path, write, form):
    texts = [[f"a cat {n}, {k}" for k in range(2 + n % 3)] for n in range(8)]
    split = open_split(write(tmp_path, [form(t) for t in texts]), "train", "pixels")
    assert [list(record.captions) for record in split.records] == texts[::2]
    assert split.n_captions == sum(map(len, texts[::2])) == len(split.texts)
    ids = [number for record in split.records for number in record.caption_ids]
    assert len(set(ids)) == len(ids) and any("4 of them are read as" in n for n in split.notes)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_set_that_is_only_partly_so_is_refused(tmp_path, write):
    cells = [json.dumps([f"a {n}", "b"]) for n in range(8)]
    cells[6] = "a plain caption"
    data = write(tmp_path / "list", cells)
    with pytest.raises(DataError, match="3 of 4 captions are lists.*a plain caption.*caption_form"):
        open_split(data, "train", "pixels")
    data.caption_form = "text"
    split = open_split(data, "train", "pixels")
    assert split.n_captions == 4 and any("look like lists" in note for note in split.notes)
    cells = ["a\nb"] * 7 + ["c"]
    data = write(tmp_path / "lines", cells)
    with pytest.raises(DataError, match="3 of 4 captions have several lines.*caption_form=lines"):
        open_split(data, "test", "pixels")
    data.caption_form = "lines"
    assert open_split(data, "test", "pixels").n_captions == 7
    data.caption_form = "list"
    with pytest.raises(DataError, match="data.caption_form=list.*no list of texts"):
        open_split(data, "test", "pixels")


def test_few_line_breaks_are_noted(tmp_path):
    data = write_tars(tmp_path, ["a", "x", "b\nc", "x", "d", "x"])
    split = open_split(data, "train", "pixels")
    assert list(split.texts) == ["a", "b\nc", "d"]
    assert any("1 of 3 captions hold line breaks" in note for note in split.notes)


def test_converting_separates(tmp_path):
    data = write_tars(tmp_path, ["a\nb", "c\nd"])
    split = read_split(find_layouts(data)["shards"], "test")
    assert list(split.texts) == ["c", "d"]
