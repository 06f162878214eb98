"""Random datasets in every layout, with the oddities of real ones, are read as they were written.

Each record is compared with the truth. Faults that no reader can mend must be refused with the name
of the file.
"""

import csv
import io
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from itr.data.ids import NAME
from itr.data.images.decode import read_bytes
from itr.data.layouts.registry import DataConfig, open_split
from itr.errors import DataError
from tests.data.image_files import encoded, photo
from tests.data.worlds import write_tar

# Seeded; a failure is not made smaller, which takes minutes.
BOUNDED = settings(
    derandomize=True, deadline=None, database=None, phases=(Phase.explicit, Phase.generate)
)
ROLES = ("train", "val", "test")
WORDS = {
    "train": ("train", "training", "Train", "TRAIN"),
    "val": ("val", "valid", "validation", "dev", "Val", "VALIDATION"),
    "test": ("test", "testing", "Test"),
}
JPEGS = [encoded(photo(24, 20, seed=n)) for n in range(14)]
TRAILERS = (b"", b"\0" * 600, b"Image_UTC_Data1556960000000SEFHk\0\0SEFT", JPEGS[0])
APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + b"\0" * 140
ENDINGS = ("jpg", "JPG", "jpeg", "jfif", "jpe")
PIECES = (
    *('a "quoted" dog', '"The" cat', "it's", "a, b", "50 % off", "[brackets]", "(round)", "#1"),
    *(
        "naïve café",
        "猫 on a mat",
        "👩‍👧 smiling",
        "two\u2028lines",
        "next\x85line",
        "\\n",
        "a/b.jpg",
    ),
    *("N/A", "null", "12", "{}", "<b>bold</b>", "tail'"),
)
ID_FORMS = {
    "none": lambda n: None,
    "number": lambda n: 391895 + 7 * n,
    "digits": lambda n: str(391895 + 7 * n),
    "18 digits": lambda n: 100000000000000001 + 3 * n,
    "largest": lambda n: 2**63 - 1 - n,
    "too large": lambda n: 2**63 + n,
    "text": lambda n: f"img-{n:04x}",
    "uuid": lambda n: f"123e4567-e89b-12d3-a456-4266141740{n:02d}",
}


@dataclass
class World:
    """What a dataset holds: (role, file name, captions, image, id) of each image."""

    rows: list[tuple[str, str, list[str], bytes, object]]
    words: dict[str, str]  # role -> name of the split on disk

    def of(self, role):
        return [row for row in self.rows if row[0] == role]


@st.composite
def worlds(draw):
    ending, form = draw(st.sampled_from(ENDINGS)), draw(st.sampled_from(sorted(ID_FORMS)))
    count = st.integers(1, 4) if draw(st.booleans()) else st.just(draw(st.integers(1, 5)))
    rows, number = [], 0
    for role, size in zip(ROLES, draw(st.tuples(*[st.integers(1, 4)] * 3)), strict=True):
        for _ in range(size):
            texts = [
                f"{draw(st.sampled_from(PIECES))} {number} {k} {draw(st.sampled_from(PIECES))}"
                for k in range(draw(count))
            ]
            image = JPEGS[number] + draw(st.sampled_from(TRAILERS))
            rows.append((role, f"p{number:03d}.{ending}", texts, image, ID_FORMS[form](number)))
            number += 1
    words = {role: draw(st.sampled_from(WORDS[role])) for role in ROLES}
    return World(rows, words)


def write_images(folder, world, junk):
    folder.mkdir(parents=True, exist_ok=True)
    for _, file, _, image, _ in world.rows:
        (folder / file).write_bytes(image)
        if junk:
            (folder / f"._{file}").write_bytes(APPLE)
    if junk:
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def write_karpathy(root, world, draw):
    write_images(root / "images", world, draw(st.booleans()))
    images = [
        {"filename": file, "split": world.words[role], "sentences": [{"raw": t} for t in texts]}
        | ({} if number is None else {"imgid": number})
        for role, file, texts, _, number in world.rows
    ]
    text = json.dumps({"images": images}, ensure_ascii=draw(st.booleans()))
    bom = draw(st.sampled_from(("", "\ufeff")))
    (root / "dataset_t.json").write_text(bom + text, "utf-8")


def write_lists(root, world, draw):
    write_images(root / "images", world, draw(st.booleans()))
    merged = draw(st.booleans())
    for role, word in world.words.items():
        items = []
        for _, file, texts, _, number in world.of(role):
            given_id = {} if number is None else {"image_id": number}
            for text in [texts] if merged else texts:
                items.append({"image": f"images/{file}", "caption": text, **given_id})
        (root / f"t_{word}.json").write_text(json.dumps(items))


def write_coco(root, world, draw):
    write_images(root / "images", world, draw(st.booleans()))
    (root / "annotations").mkdir()
    for role, word in world.words.items():
        images, notes = [], []
        for position, (_, file, texts, _, number) in enumerate(world.of(role)):
            image_id = position if number is None else number
            images.append({"id": image_id, "file_name": file})
            notes += [
                {"id": 10 * position + k, "image_id": image_id, "caption": text}
                for k, text in enumerate(texts)
            ]
        random.Random(len(notes)).shuffle(notes)
        notes.sort(key=lambda note: note["id"] % 10)
        path = root / "annotations" / f"captions_{word.lower()}2017.json"
        path.write_text(json.dumps({"images": images, "annotations": notes}))


def table_rows(world, draw, packed):
    """Rows of a table: a caption or, if ``packed``, all captions of an image in each."""
    rows = []
    for role, file, texts, _, number in world.rows:
        for text in [texts] if packed else texts:
            row = {"image": f"images/{file}", "caption": text, "split": world.words[role]}
            rows.append(row if number is None else {**row, "image_id": number})
    return rows


def write_table(root, world, draw):
    write_images(root / "images", world, draw(st.booleans()))
    ending = draw(st.sampled_from((".csv", ".tsv", ".jsonl", ".parquet")))
    packed = draw(st.booleans())
    rows = table_rows(world, draw, packed)
    path = root / f"pairs{ending}"
    if ending == ".parquet":
        if isinstance(number := rows[0].get("image_id"), int) and number >= 2**63:
            rows = [row | {"image_id": str(row["image_id"])} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
        return
    if ending == ".jsonl":
        blank = draw(st.sampled_from(("\n", "\n\n")))
        path.write_text("".join(json.dumps(row) + blank for row in rows), "utf-8")
        return
    if packed:
        form = draw(st.sampled_from((json.dumps, str)))
        rows = [row | {"caption": form(row["caption"])} for row in rows]
    separator = "\t" if ending == ".tsv" else draw(st.sampled_from(",;|\t"))
    end, bom = draw(st.sampled_from(("\n", "\r\n", "\n\n"))), draw(st.sampled_from(("", "\ufeff")))
    bare = ending == ".tsv" and not packed and draw(st.booleans())
    text = io.StringIO(newline="")
    if bare:
        for cells in (rows[0].keys(), *(row.values() for row in rows)):
            text.write(separator.join(map(str, cells)) + end)
    else:
        writer = csv.DictWriter(text, rows[0], delimiter=separator, lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
    path.write_bytes((bom + text.getvalue()).encode())


def write_hub(root, world, draw):
    """Parquet with the images inside, a file or several for each split."""
    for role, word in world.words.items():
        own = world.of(role)
        parts = draw(st.integers(1, 2))
        for part in range(parts):
            rows = []
            for _, file, texts, image, number in (
                own[part::parts]
                if parts == 1
                else own[part * len(own) // parts : (part + 1) * len(own) // parts]
            ):
                row = {"image": {"bytes": image, "path": file}, "caption": texts}
                rows.append(row if number is None else {**row, "image_id": str(number)})
            image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            fields = [("image", image_type), ("caption", pa.list_(pa.string()))]
            if own[0][4] is not None:
                fields.append(("image_id", pa.string()))
            table = pa.Table.from_pylist(rows, pa.schema(fields))
            path = root / "data" / f"{word.lower()}-{part:05d}-of-{parts:05d}.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(table, path, row_group_size=2)


def write_shards(root, world, draw):
    captions = draw(st.sampled_from(("json", "lines", "list")))
    if captions == "lines" and any(len(texts) == 1 for _, _, texts, _, _ in world.rows):
        captions = "json"
    image, text = draw(st.sampled_from((("", ""), (".input", ".outputs"), (".HDR", ".HDR"))))
    prefix, junk = draw(st.sampled_from(("", "./", "a/b/", "x.y/"))), draw(st.booleans())
    place = draw(st.sampled_from(("{0}/0.tar", "set-{0}-0000.tar", "deep/{0}/{0}.tar")))
    place = place if not place.startswith("deep") else "{0}/{0}.tar"
    order = draw(st.sampled_from(("together", "by kind", "reversed")))
    for role, word in world.words.items():
        members = []
        for position, (_, file, texts, content, number) in enumerate(world.of(role)):
            key, ending = f"{prefix}s{position:04d}", file.rsplit(".", 1)[1]
            cell = {"lines": "\n".join(texts), "list": json.dumps(texts)}.get(captions, texts[0])
            meta = {"captions": texts} if captions == "json" else {}
            meta |= {} if number is None else {"image_id": number}
            sample = [
                (f"{key}{image}.{ending}", content),
                (f"{key}{text}.txt", cell.encode()),
                (f"{key}{text if image == text else ''}.json", json.dumps(meta).encode()),
            ]
            apple = [(name.replace("s0", "._s0"), APPLE) for name, _ in sample] if junk else []
            members.append([*sample, *apple])
        if order == "reversed":
            members = [sample[::-1] for sample in members]
        flat = [member for sample in members for member in sample]
        if order == "by kind":
            flat = [m for kind in zip(*members, strict=True) for m in kind]
        write_tar(root / place.format(word), flat)


def write_folder(root, world, draw):
    several = any(len(texts) > 1 for _, _, texts, _, _ in world.rows)
    deep = draw(st.sampled_from(("", "00000", "a b")))
    for role, file, texts, image, _ in world.rows:
        path = root / world.words[role] / deep / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
        path.with_name(f"._{file}").write_bytes(APPLE)
        if several:
            path.with_suffix(".json").write_text(json.dumps({"captions": texts}))
        else:
            path.with_suffix(".txt").write_text(texts[0], "utf-8")


WRITERS = {
    "karpathy": write_karpathy,
    "lists": write_lists,
    "coco": write_coco,
    "table": write_table,
    "hub": write_hub,
    "shards": write_shards,
    "folder": write_folder,
}


def require_the_truth(root, world):
    data = DataConfig("t", str(root), cache=str(root / "cache"))
    for role in ROLES:
        split = open_split(data, role, "pixels")
        own = world.of(role)
        assert [list(record.captions) for record in split.records] == [
            [text.strip() for text in texts] for _, _, texts, _, _ in own
        ], split.notes
        assert [read_bytes(record.image) for record in split.records] == [row[3] for row in own]
        for record, (_, _, _, _, number) in zip(split.records, own, strict=True):
            if split.layout in ("folder", "shards") or number is None:
                continue
            exact = str(number).isdigit() and int(number) < 2**63
            assert (record.image_id if exact else record.extra[NAME]) == (
                int(number) if exact else str(number)
            )


@pytest.mark.parametrize("layout", WRITERS)
@settings(BOUNDED, max_examples=25)
@given(world=worlds(), data=st.data())
def test_what_is_written_is_read(layout, world, data):
    with tempfile.TemporaryDirectory() as folder:
        WRITERS[layout](Path(folder), world, data.draw)
        require_the_truth(Path(folder), world)


def remove_image(root, data):
    images = sorted(p for p in root.rglob("p0*") if p.suffix.lstrip(".") in ENDINGS)
    image = data.draw(st.sampled_from(images))
    image.unlink()
    return image.name


def cut(root, data):
    files = sorted(p for p in root.rglob("*") if p.suffix in (".json", ".parquet", ".tar"))
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * data.draw(st.integers(1, 9)) // 10])
    return path.name


def not_text(root, data):
    files = sorted(p for p in root.rglob("*") if p.suffix in (".json", ".csv", ".tsv", ".jsonl"))
    path = data.draw(st.sampled_from(files))
    path.write_bytes(path.read_bytes() + b"\n\xff\xfe")
    return path.name


FAULTS = [
    *((layout, remove_image) for layout in ("karpathy", "lists", "coco", "table")),
    *((layout, cut) for layout in ("karpathy", "lists", "coco", "hub", "shards")),
    *((layout, not_text) for layout in ("karpathy", "lists", "coco")),
]


@pytest.mark.parametrize("layout, fault", FAULTS)
@settings(BOUNDED, max_examples=10)
@given(world=worlds(), data=st.data())
def test_what_cannot_be_read_is_refused_by_name(layout, fault, world, data):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        WRITERS[layout](root, world, data.draw)
        name = fault(root, data)
        with pytest.raises(DataError, match=name):
            for role in ROLES:
                open_split(DataConfig("t", folder), role, "pixels")
