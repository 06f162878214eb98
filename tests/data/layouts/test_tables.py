"""Tables as people have them: separators, bare quotes, blank lines, files of known datasets."""

import json

import pytest

from itr.data.layouts.registry import DataConfig, find_layouts, open_split
from itr.errors import DataError
from tests.data import worlds

ITEMS = worlds.make_items((6, 0, 0))
NAMES = [item.file for item in ITEMS]
CAPTIONS = ["a dog", '"quoted" from its start', 'ends in a "quote"', 'a 5" pipe', '"', "a; b | c"]


@pytest.fixture
def folder(tmp_path):
    worlds.write_image_files(tmp_path / "images", ITEMS)
    return tmp_path


def opened(path, text, **options):
    path.write_bytes(text.encode())
    return open_split(DataConfig("t", "", train=str(path), **options), "train", "pixels")


def captions(split):
    return [(record.image.rsplit("/", 1)[1], *record.captions) for record in split.records]


def written(separator, texts=CAPTIONS, end="\n"):
    rows = [("image", "caption"), *zip(NAMES, texts, strict=False)]
    return "".join(f"{image}{separator}{text}{end}" for image, text in rows)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.csv", "pairs.TSV"])
def test_bare_quotes_between_tabs_belong_to_the_caption(folder, name, end):
    split = opened(folder / name, written("\t", end=end))
    assert captions(split) == list(zip(NAMES, CAPTIONS, strict=True))
    assert split.notes == ()


@pytest.mark.parametrize("row", range(6))
def test_a_bare_quote_anywhere_swallows_no_row(folder, row):
    texts = ["a dog"] * 6
    texts[row] = '"a dog'
    split = opened(folder / "pairs.tsv", written("\t", texts))
    assert captions(split) == list(zip(NAMES, texts, strict=True))


def test_quotes_that_enclose_cells_are_removed(folder):
    texts = ['"a dog"', '"a ""big"" dog"', '"one\ttwo"', "a cat", "a 'cow'", "a"]
    plain = ["a dog", 'a "big" dog', "one\ttwo", "a cat", "a 'cow'", "a"]
    assert [row[1] for row in captions(opened(folder / "a.tsv", written("\t", texts)))] == plain
    texts[3] = '"two\nlines"'
    split = opened(folder / "b.tsv", written("\t", texts))
    assert captions(split)[3] == (NAMES[3], "two\nlines")
    assert any("1 rows hold line breaks between quotes (first: line 5)" in n for n in split.notes)
    with pytest.raises(DataError, match="line 2: a quote is closed only in line 4"):
        opened(folder / "c.tsv", f'image\tcaption\n{NAMES[0]}\t"a\nalone\n{NAMES[1]}\tb"\n')


@pytest.mark.parametrize("separator", ["\t", ";", "|", "| "])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt"])
def test_the_header_decides_about_the_separator(folder, separator, ending):
    texts = ["a dog, a cat"] * 6
    split = opened(folder / f"pairs{ending}", written(separator, texts))
    assert captions(split) == list(zip(NAMES, texts, strict=True))


@pytest.mark.parametrize("separator, ending", [(",", ".csv"), ("\t", ".tsv")])
def test_blank_lines_are_counted_and_lines_keep_their_numbers(folder, separator, ending):
    lines = written(separator, ["a"] * 6).split("\n")
    text = "\n".join([*lines[:2], "", "  ", *lines[2:4], "", *lines[4:]])
    split = opened(folder / f"pairs{ending}", text)
    assert split.n_images == 6
    note = f"pairs{ending}: 3 blank lines are skipped (first: line 3)"
    assert [note in n for n in split.notes] == [True]
    with pytest.raises(DataError, match="line 9: 1 cells"):
        opened(folder / f"bad{ending}", "\n".join([*text.split("\n")[:8], "alone"]))
    split = opened(folder / f"top{ending}", "\n" + "\n".join(lines))
    assert split.n_images == 6 and "first: line 1" in split.notes[0]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_rows_end_only_at_newlines(folder, mark):
    text = f"a{mark}dog"
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        split = opened(folder / name, written(separator, [text] * 6))
        assert [row[1] for row in captions(split)] == [text] * 6
    rows = "".join(f'{{"image": "{name}", "caption": "{text}"}}\n' for name in NAMES)
    if mark > "\x1f":  # JSON allows no control characters
        assert [row[1] for row in captions(opened(folder / "a.jsonl", rows))] == [text] * 6


def test_a_blank_line_of_json_lines_is_counted(folder):
    split = opened(folder / "a.jsonl", f'{{"image": "{NAMES[0]}", "caption": "a"}}\n\n \n')
    assert "2 blank lines are skipped (first: line 2)" in split.notes[0]


PUBLISHED = {
    "captions.txt": ("image,caption\n", "{name},{text}\n", ['"a dog, running ."', "a ."]),
    "results.csv": ("image_name| comment_number| comment\n", "{name}| {k}| {text}\n", None),
    "results_20130124.token": ("", "{name}#{k}\t{text}\n", None),
    "Flickr8k.token.txt": ("", "{name}#{k}\t{text}\n", None),
    "coco_caps.tsv": ("image\tcaption\n", "{name}\t{text}\n", None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_of_known_datasets_are_found_and_read(folder, name):
    header, row, texts = PUBLISHED[name]
    texts = texts or ['"A dog" , running .', "a | b ." if "{k}| " not in row else "a ."]
    rows = [row.format(name=n, k=k, text=t) for n in NAMES for k, t in enumerate(texts)]
    (folder / name).write_text(header + "".join(rows))
    data = DataConfig("table", str(folder), held_out=1)
    assert list(find_layouts(data)) == ["table"]
    plain = tuple(text.strip('"') if texts[0].endswith('"') else text for text in texts)
    parts = [open_split(data, part, "pixels") for part in ("train", "val", "test")]
    assert [part.n_images for part in parts] == [4, 1, 1]
    assert all(record.captions == plain for part in parts for record in part.records)


def test_tables_of_splits_may_be_called_caps(folder):
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        rows = "".join(f"{name}\ta\n" for name in NAMES[:count])
        (folder / f"f30k_{part}_caps.tsv").write_text("image\tcaption\n" + rows)
    (folder / "f30k_caps.tsv").write_text("image\tcaption\n")
    data = DataConfig("f30k", str(folder))
    assert [open_split(data, p, "pixels").n_images for p in ("train", "val", "test")] == [3, 2, 1]
    notes = open_split(data, "train", "pixels").notes
    assert any("f30k_caps.tsv: is not read" in note for note in notes)


def test_a_line_of_a_token_file_without_its_tab_is_refused(folder):
    with pytest.raises(DataError, match="a.token, line 2: is 'b.jpg a cat'"):
        opened(folder / "a.token", f"{NAMES[0]}#0\ta\nb.jpg a cat\n")


@pytest.mark.parametrize("position", [0, 1, 5, 1500])
def test_keys_that_some_json_rows_leave_out(folder, position):
    """A split that only later rows name is not ignored."""
    rows = [{"image": NAMES[0], "caption": str(n)} for n in range(1502)]
    for n, row in enumerate(rows):
        if n >= position:
            row["split"] = "train"
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig("t", "", train=str(folder / "t.jsonl"))
    if position == 0:
        assert open_split(data, "train", "pixels").n_captions == len(rows)
        return
    with pytest.raises(DataError, match=r"t.jsonl, line \d+: (no split, unlike|has 'split')"):
        open_split(data, "train", "pixels")
