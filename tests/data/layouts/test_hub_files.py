"""Tables as the Hugging Face hub and JSON users have them: pictures inside Parquet, JSON lists."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from itr.data.checks.decodable import find_broken_images, require_decodable
from itr.data.images.decode import read_bytes
from itr.data.layouts import DataConfig, open_split
from itr.data.layouts.registry import find_layouts
from itr.data.tools.convert import main as convert
from itr.errors import DataError
from tests.data import worlds
from tests.data.worlds import PARTS, make_items

ITEMS = make_items((6, 3, 3))
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table_of(items, form="list", image="struct", column=None):
    images = pa.array([{"bytes": i.jpeg, "path": i.file} for i in items], STRUCT)
    if image == "bytes":
        images = pa.array([i.jpeg for i in items], pa.binary())
    captions = [list(i.captions) for i in items]
    if form == "python":
        captions = [str(texts) for texts in captions]
    table = {"image": images, "caption": captions, "image_id": [i.cocoid for i in items]}
    if column is not None:
        table["split"] = [i.part if column == "split" else column for i in items]
    return pa.table(table)


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)


def require_the_truth(data):
    for part in PARTS:
        split = open_split(data, part, "pixels")
        own = [item for item in ITEMS if item.part == part]
        assert [r.captions for r in split.records] == [i.captions for i in own]
        assert [r.image_id for r in split.records] == [i.cocoid for i in own]
        assert [read_bytes(r.image) for r in split.records][::-1] == [i.jpeg for i in own][::-1]
        assert not find_broken_images(split) and require_decodable(split).n_images == len(own)


@pytest.mark.parametrize("form", ["list", "python"])
@pytest.mark.parametrize("image", ["struct", "bytes"])
def test_one_file_with_a_split_column(tmp_path, form, image):
    write(tmp_path / "all.parquet", table_of(ITEMS, form, image, "split"))
    require_the_truth(DataConfig("t", "", train=str(tmp_path / "all.parquet")))


@pytest.mark.parametrize("folder", ["", "data"])
@pytest.mark.parametrize("column", [None, "train"])
def test_files_that_the_hub_has_split(tmp_path, folder, column):
    parts = {part: [i for i in ITEMS if i.part == part] for part in PARTS}
    for part, own in parts.items():
        name = {"val": "validation"}.get(part, part)
        for number in range(2):
            table = table_of(own[:2] if number == 0 else own[2:],
                             column=column)  # fmt: skip
            write(tmp_path / folder / f"{name}-{number:05d}-of-00002.parquet", table)
    require_the_truth(DataConfig("t", str(tmp_path)))
    (tmp_path / folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="1 of its 2 files are missing: train-00001-of-00002"):
        open_split(DataConfig("t", str(tmp_path)), "train", "pixels")


@pytest.mark.parametrize("target", ["out/dataset_t.json", "wds", "arrow", "out/t.csv"])
def test_converted(tmp_path, target):
    write(tmp_path / "in" / "all.parquet", table_of(ITEMS, column="split"))
    assert convert([str(tmp_path / "in" / "all.parquet"), str(tmp_path / target)]) == 0
    root = tmp_path / target.split("/")[0]
    for name, layout in find_layouts(DataConfig("t", str(root))).items():
        split = layout.read("test")
        own = [item for item in ITEMS if item.part == "test"]
        assert [read_bytes(r.image) for r in split.records] == [i.jpeg for i in own], name


def rows(part):
    return [item for item in ITEMS if item.part == part]


JSON_FORMS = {
    "a caption each": lambda i: [{"image": i.file, "caption": t} for t in i.captions],
    "a list": lambda i: [{"image": i.file, "caption": list(i.captions)}],
    "chat": lambda i: [
        {
            "image": i.file,
            "conversations": [
                {"from": "human", "value": "<image> Describe it."},
                {"from": "gpt", "value": text},
            ],
        }
        for text in i.captions
    ],
}


@pytest.mark.parametrize("form", JSON_FORMS.values(), ids=JSON_FORMS)
def test_json_lists(tmp_path, form):
    worlds.write_image_files(tmp_path / "images", ITEMS)
    for part in PARTS:
        listed = [row for item in rows(part) for row in form(item)]
        (tmp_path / f"{part}.json").write_text(json.dumps(listed))
    require_the_truth(DataConfig("t", str(tmp_path)))
    (tmp_path / "cc3m.json").write_text((tmp_path / "train.json").read_text())
    split = open_split(DataConfig("t", "", train=str(tmp_path / "cc3m.json")), "train", "pixels")
    assert [r.captions for r in split.records] == [i.captions for i in rows("train")]
    (tmp_path / "cc3m.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="cc3m.json: holds dict.*a list of objects"):
        open_split(DataConfig("t", "", train=str(tmp_path / "cc3m.json")), "train", "pixels")


def test_an_image_folder_with_metadata(tmp_path):
    worlds.write_image_files(tmp_path, ITEMS)
    lines = [
        {"file_name": i.file, "text": text, "split": i.part} for i in ITEMS for text in i.captions
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    require_the_truth(DataConfig("t", str(tmp_path)))


def several(item, names):
    texts = (*item.captions, *[None] * 9)
    return {"image": item.file, "split": item.part, **dict(zip(names, texts, strict=False))}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("names", [
    [f"caption_{n}" for n in range(9)],
    [f"caption{n}" for n in range(1, 10)],
    [f"sentence_{n}" for n in range(3, 12)],  # 10 comes after 9
])  # fmt: skip
def test_a_column_for_each_caption(tmp_path, ending, names):
    worlds.write_image_files(tmp_path / "images", ITEMS)
    listed = [several(item, names) for item in ITEMS]
    path = tmp_path / f"train{ending}"
    if ending == ".csv":
        lines = [",".join('"' + str(v or "") + '"' for v in row.values()) for row in listed]
        path.write_text("\n".join([",".join(listed[0]), *lines]), "utf-8")
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in listed))
    else:
        pq.write_table(pa.Table.from_pylist(listed), path)
    require_the_truth(DataConfig("t", str(tmp_path)))
    listed[3] = several(ITEMS[3], []) | dict.fromkeys(names)
    path = tmp_path / "empty.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in listed))
    with pytest.raises(DataError, match=f"empty.jsonl, line 4: no caption in {names[0]}"):
        open_split(DataConfig("t", "", train=str(path)), "train", "pixels")


def test_captions_in_other_languages(tmp_path):
    worlds.write_image_files(tmp_path / "images", ITEMS)
    listed = [
        {
            "image": i.file,
            "split": i.part,
            "caption_de": f"Bild {i.number}",
            "caption_fr": "une image",
        }
        for i in ITEMS
    ]

    def read(columns=None):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in listed))
        return open_split(DataConfig("t", "", train=str(path), columns=columns), "test", "pixels")

    with pytest.raises(DataError, match="'data.columns={caption: caption_de}'"):
        read()
    first = next(item for item in ITEMS if item.part == "test")
    split = read({"caption": "caption_de"})
    assert split.texts[0] == f"Bild {first.number}"
    assert any("columns caption_fr are not used" in note for note in split.notes)
    split = read({"caption": "caption_fr+caption_de"})
    assert split.records[0].captions == ("une image", f"Bild {first.number}")
    assert not any("not used" in note for note in split.notes)
    with pytest.raises(DataError, match="no column caption_it; its columns: image"):
        read({"caption": "caption_de+caption_it"})
    listed = [row | {"caption": "an image", "caption_id": 7 + n} for n, row in enumerate(listed)]
    split = read()
    assert split.texts[0] == "an image"
    assert any("columns caption_de, caption_fr are not used" in note for note in split.notes)


def test_chats_without_an_image_are_left_out(tmp_path):
    worlds.write_image_files(tmp_path / "images", ITEMS)
    chats = [row for item in rows("train") for row in JSON_FORMS["chat"](item)]
    for position in (0, 4, len(chats)):  # a language-only entry of LLaVA's lists
        only = {"id": "x", "conversations": chats[0]["conversations"]}
        listed = [*chats[:position], only, *chats[position:]]
        path = tmp_path / f"sharegpt4v_{position}.json"
        path.write_text(json.dumps(listed))
        split = open_split(DataConfig("t", "", train=str(path)), "train", "pixels")
        assert [r.captions for r in split.records] == [i.captions for i in rows("train")]
        assert any(
            f"left out: 1 of {len(listed)} rows, chats without an image, e.g. {path}: [{position}]"
            in note
            for note in split.notes
        )


def test_karpathys_annotations_as_a_table(tmp_path):
    """As yerevann/coco-karpathy: the folder in filepath, the file in filename."""
    worlds.write_image_files(tmp_path / "val2014", ITEMS)
    listed = [
        {
            "filepath": "val2014",
            "filename": item.file,
            "sentences": list(item.captions),
            "cocoid": item.cocoid,
            "split": item.part,
        }
        for item in ITEMS
    ]
    pq.write_table(pa.Table.from_pylist(listed), tmp_path / "pairs.parquet")
    require_the_truth(DataConfig("t", str(tmp_path)))


@pytest.mark.parametrize("name", [
    "cc3m-{0}-0000.tar", "{0}/0.tar", "{0}/{0}-00000.tar", "00000_{0}.tar",
])  # fmt: skip
@pytest.mark.parametrize("form", ["clip-benchmark", "pixparse", "datacomp"])
def test_published_shards(tmp_path, form, name):
    items = make_items((6, 3, 3), captions=5)
    for part in PARTS:
        members = []
        for item in [item for item in items if item.part == part]:
            key, text = f"{item.number:08d}", item.captions[0]
            if form == "clip-benchmark":
                text = "\n".join(item.captions)
            members += [(f"{key}.jpg", item.jpeg), (f"{key}.txt", text.encode())]
            meta = {"uid": f"{item.number:032x}", "key": key, "sha256": "0", "caption": text}
            if form != "clip-benchmark":
                members.append((f"{key}.json", json.dumps(meta).encode()))
        role = {"val": "validation"}.get(part, part)
        worlds.write_tar(tmp_path / name.format(role), members)
    for part in PARTS:
        split = open_split(
            DataConfig("t", str(tmp_path), cache=str(tmp_path / "c")), part, "pixels"
        )
        own = [item for item in items if item.part == part]
        truth = [item.captions[: 5 if form == "clip-benchmark" else 1] for item in own]
        assert [record.captions for record in split.records] == truth
        assert [read_bytes(record.image) for record in split.records] == [i.jpeg for i in own]
