"""WebDataset shards: records, samples that are left out, damaged tars, training."""

import io
import json
import tarfile
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from itr.data.images.decode import decode, read_bytes
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.layouts.shards import build_index, index
from itr.data.layouts.shards.find_tars import tars_of
from itr.data.loading.eval_batches import image_batches
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.loading.second_text import open_second_texts
from itr.data.packed_strings import PackedStrings
from itr.data.text.known_tokenizers import open_tokenizer
from itr.errors import ConfigError, DataError
from itr.view import PixelView, TextView, View
from tests.data.image_files import encoded, entry, photo, write_karpathy

pytestmark = pytest.mark.usefixtures("in_time")  # fails instead of hanging

VIEW = View(
    kind="pixels",
    tokenizer="wordpiece",
    unit="pair",
    second_text=TextView(),
    pixels=PixelView(size=8),
    pixels_eval=PixelView(size=8),
    vocabulary_size=200,
)


def member(number, **changes):
    """The members of one sample, by extension; ``None`` leaves one out."""
    parts = {
        "jpg": encoded(photo(seed=number)),
        "txt": f"raw text {number} é".encode(),
        "json": json.dumps({"synthetic_caption": f"picture {number}", "image_id": 7 * number}),
        **changes,
    }
    return {k: v.encode() if isinstance(v, str) else v for k, v in parts.items() if v is not None}


def write_tar(path, samples, folder=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, parts in samples.items():
            for kind, content in parts.items():
                info = tarfile.TarInfo(f"{folder}{key}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_shards(root, count=3, size=4, **changes):
    for shard in range(count):
        numbers = range(shard * size, (shard + 1) * size)
        samples = {f"{n:06d}": member(n, **changes) for n in numbers}
        write_tar(root / "wds" / f"{shard:05d}.tar", samples)
    return root / "wds"


def config(root, **options):
    return DataConfig(name="tiny", root=str(root), cache=str(root / "cache"), **options)


def opened(root, split="train", second=True, **options):
    return open_split(config(root, **options), split, "pixels", second)


def test_records_are_the_samples_in_order(tmp_path):
    write_shards(tmp_path)
    split = opened(tmp_path)
    assert split.layout == "shards" and split.n_images == split.n_captions == 12
    assert [r.image_id for r in split.records] == [7 * n for n in range(12)]
    assert split.captions() == [f"raw text {n} é" for n in range(12)]
    assert list(split.second) == [f"picture {n}" for n in range(12)]
    for number, record in enumerate(split.records):
        assert read_bytes(record.image) == encoded(photo(seed=number))
    assert split.notes == ()


def test_names_with_folders_dots_and_capital_extensions(tmp_path):
    samples = {"a.b": {}, "000001": member(1)}
    samples["000002"] = {k.upper(): v for k, v in member(2).items()}
    write_tar(tmp_path / "a.tar", samples, folder="deep/er/")
    split = opened(tmp_path)
    assert split.captions() == ["raw text 1 é", "raw text 2 é"]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(tmp_path, form):
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for kind, content in member(1).items():
            info = tarfile.TarInfo(f"{'long' * 60}.{kind}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert opened(tmp_path).n_images == 1


def test_patterns_for_shards(tmp_path):
    folder = write_shards(tmp_path / "elsewhere")
    for pattern, count in (
        (folder, 3),
        (folder / "*.tar", 3),
        (folder / "{00000..00001}.tar", 2),
        (folder / "00002.tar", 1),
    ):
        assert len(tars_of(str(pattern)).by_role["train"]) == count
    assert opened(tmp_path, shards=str(folder / "{00001..00002}.tar")).n_images == 8
    with pytest.raises(DataError, match="3 of 6 tars do not exist.*00003.tar"):
        tars_of(str(folder / "{00000..00005}.tar"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="data.shards=.*no .tar"):
        tars_of(str(tmp_path / "empty"))


def test_duplicate_image_ids_are_refused(tmp_path):
    folder = write_shards(tmp_path)
    samples = {"000011": member(11, json='{"image_id": 7, "synthetic_caption": "a"}')}
    write_tar(folder / "00003.tar", samples)
    words = r"00003.tar: image id 7 of sample 000011 .* 000001 in .*00000.tar"
    with pytest.raises(DataError, match=words):
        opened(tmp_path)
    samples = {"000011": member(11, json='{"synthetic_caption": "a"}')}
    write_tar(folder / "00003.tar", samples)
    assert opened(tmp_path).records[12].image_id > 77  # no file gives one: a new id


@pytest.mark.filterwarnings("error:overflow")
def test_new_ids_beside_the_largest_possible_one(tmp_path):
    folder, largest = write_shards(tmp_path, count=1), 2**63 - 1
    texts = [f'{{"image_id": {largest}, "synthetic_caption": "a"}}', '{"synthetic_caption": "b"}']
    samples = {f"00001{n}": member(n, json=text) for n, text in enumerate(texts)}
    write_tar(folder / "00001.tar", samples)
    ids = [record.image_id for record in opened(tmp_path).records]
    assert ids == [0, 7, 14, 21, largest, 1]


BROKEN = {
    "no image": {"jpg": None},
    "an empty image": {"jpg": b""},
    "a truncated JPEG": {"jpg": encoded(photo())[:300]},
    "no .txt": {"txt": None},
    "an empty text": {"txt": b" \n"},
    "text that is not UTF-8": {"txt": b"caf\xe9"},
    "invalid JSON": {"json": '{"synthetic_caption": "a'},
    "JSON that is not an object": {"json": "[1]"},
    "an empty synthetic_caption": {"json": '{"synthetic_caption": " "}'},
    "no synthetic_caption": {"json": "{}"},
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_samples_are_left_out_and_counted(tmp_path, reason):
    samples = {f"{n:06d}": member(n) for n in range(6)}
    samples["000002"] = member(2, **BROKEN[reason])
    write_tar(tmp_path / "a.tar", samples)
    with pytest.raises(DataError, match=rf"1 with {reason}.*data.max_broken=0.01"):
        opened(tmp_path)
    split = opened(tmp_path, max_broken=0.2)
    assert [r.image_id for r in split.records] == [0, 7, 21, 28, 35]
    such = "" if reason == "no synthetic_caption" else " (e.g. a.tar: 000002)"
    assert split.notes == (f"left out: 1 with {reason}{such}",)


@pytest.mark.parametrize("ending, kind", [
    ("png", "PNG"), ("gif", "GIF"), ("bmp", "BMP"), ("tif", "TIFF"), ("webp", "WEBP"),
    ("avif", "AVIF"), ("jp2", "JPEG2000"), ("ppm", "PPM"),
])  # fmt: skip
def test_any_picture_format_and_samples_without_json(tmp_path, ending, kind):
    samples = {f"{n:06d}": member(n, jpg=None, json=None) for n in range(3)}
    for number, sample in enumerate(samples.values()):
        sample[ending] = encoded(photo(seed=number), kind)
    write_tar(tmp_path / "a.tar", samples)
    split = opened(tmp_path)
    assert split.n_images == 3 and split.second is None
    assert [r.image_id for r in split.records] == [0, 1, 2]
    for number, record in enumerate(split.records):
        assert record.extra["file"] == f"{number:06d}.{ending}"
        assert decode(read_bytes(record.image), "any").shape == (3, 30, 40)


def test_the_preferred_format_of_several_is_read(tmp_path):
    samples = {f"{n:06d}": {"gif": b"GIF", **member(n)} for n in range(3)}
    write_tar(tmp_path / "a.tar", samples)
    for number, record in enumerate(opened(tmp_path).records):
        assert read_bytes(record.image) == encoded(photo(seed=number))


def damage(path, how):
    """Truncate, empty or corrupt a tar of four samples."""
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        third, last = tar.getmember("000006.jpg").offset, tar.getmembers()[-1]
    if how == "cut in a member":
        path.write_bytes(whole[: third + 600])
    elif how == "cut in a header":
        path.write_bytes(whole[: third + 100])
    elif how == "corrupt header":
        path.write_bytes(whole[:third] + b"\x55" * 512 + whole[third + 512 :])
    elif how == "cut after a member":
        path.write_bytes(whole[:third])
    elif how == "cut at the end":
        path.write_bytes(whole[: last.offset_data + 512])
    elif how == "hole":  # as a broken download leaves it
        path.write_bytes(whole[:third] + bytes(len(whole) - third - 4096) + whole[-4096:])
    elif how == "hole before a header":
        path.write_bytes(whole[:third] + bytes(last.offset - third) + whole[last.offset :])
    elif how == "zeros to the end":
        path.write_bytes(whole[:third] + bytes(len(whole) - third))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_bytes(b"no tar at all " * 99)


@pytest.mark.parametrize("how, left", [
    ("cut in a member", 1), ("cut in a header", 1), ("corrupt header", 1),
    ("cut after a member", 1), ("cut at the end", 3), ("empty", 0), ("text", 0),
    ("hole", 1), ("hole before a header", 1), ("zeros to the end", 1),
])  # fmt: skip
def test_damaged_tars_are_detected(tmp_path, how, left):
    """The last sample before the fault may lack members, so it is left out as well."""
    folder = write_shards(tmp_path)
    damage(folder / "00001.tar", how)
    with pytest.raises(DataError, match=f"about {4 - left} lost in 1 damaged tars.*00001.tar"):
        opened(tmp_path)
    split = opened(tmp_path, max_broken=0.5)
    assert split.n_images == 8 + left
    (note,) = split.notes
    assert "00001.tar" in note and "is not read" in note
    for record in split.records:
        decode(read_bytes(record.image), "any")


def test_concatenated_tars_are_read_to_the_end(tmp_path):
    folder = write_shards(tmp_path)
    parts = [folder / f"{n:05d}.tar" for n in range(3)]
    contents = [part.read_bytes() for part in parts]
    bare = contents[1].rstrip(b"\0")  # closed by two blocks of zeros alone, as some tools do
    bare += bytes(-len(bare) % 512 + 1024)
    for joined in (b"".join(contents), contents[0] + bare + contents[2]):
        write_whole(tmp_path, parts, joined)
        split = opened(tmp_path)
        assert [r.image_id for r in split.records] == [7 * n for n in range(12)]
        assert split.notes == ()
        for number, record in enumerate(split.records):
            assert read_bytes(record.image) == encoded(photo(seed=number))
    write_whole(tmp_path, parts, b"".join(contents)[:-12_000])
    with pytest.raises(DataError, match="truncated.*max_broken=1 "):
        opened(tmp_path)


def write_whole(root, parts, content):
    for part in parts[1:]:
        part.unlink(missing_ok=True)
    parts[0].write_bytes(content)


@pytest.mark.parametrize("how", ["cut in a member", "corrupt header", "hole"])
def test_the_loss_is_unknown_if_all_tars_are_damaged(tmp_path, how):
    folder = write_shards(tmp_path, count=2)
    (folder / "00000.tar").unlink()
    damage(folder / "00001.tar", how)
    for share in (0.01, 0.99):
        with pytest.raises(
            DataError, match="unknown number of samples lost.*00001.tar.*max_broken=1 "
        ):
            opened(tmp_path, max_broken=share)
    split = opened(tmp_path, max_broken=1)
    assert split.n_images == 1 and "is not read" in split.notes[0]


def test_unread_bytes_count_if_the_undamaged_tars_are_small(tmp_path):
    folder = write_shards(tmp_path, count=1, size=40)
    whole = (folder / "00000.tar").read_bytes()
    with tarfile.open(folder / "00000.tar") as tar:
        tenth = tar.getmember("000010.jpg").offset
    (folder / "00000.tar").write_bytes(whole[:tenth] + b"\x55" * 512 + whole[tenth + 512 :])
    for n in (1, 2):
        write_tar(folder / f"{n:05d}.tar", {f"{n:06d}": member(100 + n)})
    with pytest.raises(DataError, match=r"about (2[5-9]|3[0-1]) lost in 1 damaged tars"):
        opened(tmp_path, max_broken=0.5)


def test_indexes_are_cached_until_a_tar_changes(tmp_path, monkeypatch):
    folder = write_shards(tmp_path)
    first = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(index, "_build", None)  # fails if it is called
        again = opened(tmp_path)
    assert again.captions() == first.captions() and list(again.second) == list(first.second)
    assert np.array_equal(again.records.images, first.records.images)
    write_tar(folder / "00001.tar", {"000099": member(99)})
    assert opened(tmp_path).n_images == 9
    for path in (tmp_path / "cache").glob("shard-*"):
        path.write_bytes(path.read_bytes()[:-30])
    assert opened(tmp_path).n_images == 9


def test_many_tars_are_indexed_by_a_pool(tmp_path, monkeypatch, caplog):
    """The pool builds the same indexes, logs progress, and two callers share one build."""
    folder = write_shards(tmp_path, count=6)
    damage(folder / "00001.tar", "cut in a member")
    paths = tars_of(str(folder)).by_role["train"]
    alone = build_index.index_shards(paths, "synthetic_caption", None)
    monkeypatch.setattr(build_index, "PARALLEL_FROM", 0.0)
    monkeypatch.setattr(build_index, "LOG_EVERY", 0.0)
    caplog.set_level("INFO", "itr")
    with ThreadPoolExecutor(2) as two:
        cache = tmp_path / "cache"
        futures = [
            two.submit(build_index.index_shards, paths, "synthetic_caption", cache) for _ in "ab"
        ]
        both = [future.result() for future in futures]
    for indexes in both:
        for one, other in zip(alone, indexes, strict=True):
            assert np.array_equal(one.images, other.images) and one.fault == other.fault
            assert list(one.texts) == list(other.texts) and list(one.second) == list(other.second)
    lines = [r.getMessage() for r in caplog.records if "indexing shards" in r.getMessage()]
    assert len(lines) == 6 and lines[-1].startswith("indexing shards: 6 of 6, about 0 s left")
    (folder / "00005.tar").write_bytes(b"")
    (folder / "00004.tar").unlink()
    with pytest.raises(DataError, match="00004.tar: cannot be read"):
        build_index.index_shards(paths, "synthetic_caption", None)


def test_splits_of_the_same_tars_share_memory(tmp_path, monkeypatch):
    """The training split is a view of all samples; held-out splits are small copies."""
    write_shards(tmp_path)
    train = opened(tmp_path, "train", held_out=2)
    with monkeypatch.context() as patch:
        patch.setattr(build_index, "cached_index", None)  # fails if it is called
        val, test = (opened(tmp_path, name, held_out=2) for name in ("val", "test"))
    whole = train.records.whole.samples
    assert len(whole) == 12
    for name in ("shard_ids", "images", "ids", "text_ids"):
        assert np.shares_memory(getattr(train.records, name), getattr(whole, name))
        assert not np.shares_memory(getattr(val.records, name), getattr(whole, name))
    for part in (val, test):
        assert part.records.whole is None
        assert len(part.records.texts.block) == len("raw text 10 é".encode()) * 2 - 2 * (
            part is val
        )
    reference = weakref.ref(whole)
    del train, whole
    assert reference() is None  # small splits do not keep all samples alive
    assert [r.image_id // 7 for r in val.records] == [8, 9]


def test_second_key(tmp_path):
    write_shards(tmp_path, json=json.dumps({"blip": "a thing"}))
    assert opened(tmp_path).second is None
    assert list(opened(tmp_path, second_key="blip").second) == ["a thing"] * 12


def test_samples_without_a_second_text_if_none_is_needed(tmp_path):
    """They are kept for models with one text and for second texts from a file."""
    samples = {f"{n:06d}": member(n) for n in range(8)}
    for number in (1, 5):
        samples[f"{number:06d}"] = member(number, json="{}")
    write_tar(tmp_path / "a.tar", samples)
    with pytest.raises(DataError, match="2 with no synthetic_caption"):
        opened(tmp_path)
    plain = opened(tmp_path, second=False)
    assert plain.n_images == 8 and plain.second is None
    assert plain.notes == ("2 of 8 samples have no synthetic_caption",)
    side = tmp_path / "side.json"
    side.write_text(json.dumps({f"{n:06d}": f"side {n}" for n in range(8)}))
    joined = opened(tmp_path, second_text=str(side))
    assert joined.second == [f"side {n}" for n in range(8)]


def test_held_out_samples_do_not_depend_on_the_second_text(tmp_path):
    samples = {f"{n:06d}": member(n) for n in range(20)}
    for number in (0, 1, 2, 17):
        samples[f"{number:06d}"] = member(number, json=json.dumps({"image_id": 7 * number}))
    write_tar(tmp_path / "a.tar", samples)

    def ids(split, second):
        part = opened(tmp_path, split, second, held_out=0.2, max_broken=0.3)
        return [record.image_id // 7 for record in part.records]

    assert ids("val", False) == [12, 13, 14, 15] and ids("test", False) == [16, 17, 18, 19]
    assert ids("train", True) == list(range(3, 12)) and ids("train", False) == list(range(12))


def test_held_out_samples(tmp_path):
    write_shards(tmp_path)
    parts = {name: opened(tmp_path, name, held_out=2) for name in ("train", "val", "test")}
    ids = [[r.image_id // 7 for r in part.records] for part in parts.values()]
    assert ids == [list(range(8)), [8, 9], [10, 11]]
    assert list(parts["val"].second) == ["picture 8", "picture 9"]
    assert read_bytes(parts["test"].records[1].image) == encoded(photo(seed=11))
    with pytest.raises(DataError, match="held_out=1000"):
        opened(tmp_path, "val")
    with pytest.raises(ConfigError, match="take all 12 "):
        opened(tmp_path, held_out=6)


def test_shards_are_preferred_for_synthetic_captions(tmp_path):
    """Annotations are read otherwise."""
    write_shards(tmp_path)
    write_karpathy(tmp_path, [entry(n, "train") for n in range(3)])
    assert opened(tmp_path).layout == "shards"
    assert opened(tmp_path, second=False).layout == "karpathy"
    assert opened(tmp_path, second_text="other_caption").layout == "karpathy"
    assert opened(tmp_path, layout="karpathy").layout == "karpathy"
    assert opened(tmp_path, second=False, layout="shards").layout == "shards"
    folder = str(tmp_path / "wds")
    assert opened(tmp_path, second=False, shards=folder).layout == "shards"


# Training from shards


def loader_of(split, tmp_path, batch_size=3, **options):
    tokenizer = open_tokenizer(VIEW, [*split.captions(), *split.second_texts()])
    table = tokenizer.tokenize(split.captions(), VIEW.text)
    second = open_second_texts(split, VIEW, tokenizer, tmp_path / "cache")
    loader = TrainLoader(
        TrainData(split, VIEW, table, tokenizer, second), LoaderOptions(batch_size, **options)
    )
    return loader, tokenizer


def spelled(tokenizer, ids):
    words = " ".join(tokenizer.tokens[i] for i in ids if i != tokenizer.pad_id)
    return words.replace(" ##", "").removeprefix("[CLS] ").removesuffix(" [SEP]")


def test_a_batch_holds_image_text_and_second_text_of_a_sample(tmp_path):
    write_shards(tmp_path)
    split = opened(tmp_path)
    loader, tokenizer = loader_of(split, tmp_path)
    (every,) = image_batches(split, VIEW, 12)
    image_ids = []
    for batch in loader.epoch(0):
        for row, number in enumerate(batch.image_id.tolist()):
            image_ids.append(number)
            assert spelled(tokenizer, batch.tokens[row]) == f"raw text {number} e"
            assert spelled(tokenizer, batch.second_tokens[row]) == f"picture {number}"
            assert torch.equal(batch.pixels[row], every.pixels[number])
        assert batch.second_mask.sum() == (batch.second_tokens != 0).sum()
    assert sorted(image_ids) == list(range(12))


def undecodable(number):
    """A sample whose image has valid first and last bytes but cannot be decoded."""
    jpeg = encoded(photo(seed=number))
    return member(number, jpg=jpeg[:20] + bytes(len(jpeg) - 40) + jpeg[-20:])


def test_undecodable_images_are_replaced(tmp_path, caplog):
    samples = {f"{n:06d}": member(n) for n in range(12)}
    for number in (4, 5):
        samples[f"{number:06d}"] = undecodable(number)
    parts = list(samples.items())
    write_tar(tmp_path / "a.tar", dict(parts[:6]))
    write_tar(tmp_path / "b.tar", dict(parts[6:]))
    split = opened(tmp_path, max_broken=0.2)
    for workers in (0, 2):
        loader, _ = loader_of(split, tmp_path, num_workers=workers)
        image_ids = [i for batch in loader.epoch(0) for i in batch.image_id.tolist()]
        assert sorted(image_ids) == sorted([6 if n in (4, 5) else n for n in range(12)])
        assert loader.broken == {4, 5}
    assert "a.tar" in caplog.text and "broken so far: 2" in caplog.text
    strict, _ = loader_of(opened(tmp_path, max_broken=0.1), tmp_path)
    with pytest.raises(DataError, match="a.tar"):
        list(strict.epoch(0))


# PackedStrings


def test_strings_are_a_sequence():
    texts = ["", "é漢", "a", "", "end"]
    strings = PackedStrings.of(texts)
    assert list(strings) == texts and strings[-1] == "end" and list(strings[1:3]) == texts[1:3]
    assert list(PackedStrings.joined([strings, PackedStrings.of([]), strings[2:]])) == [
        *texts,
        *texts[2:],
    ]
    assert len(PackedStrings.joined([])) == 0
    with pytest.raises(IndexError):
        strings[5]
