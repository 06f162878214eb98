"""The precomp reader on real files: folder layouts, quirks and every kind of bad input."""

import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from itr.data.images.regions import Regions
from itr.data.layouts.precomp import read_split
from itr.data.layouts.region_arrays import (
    check_regions_finite,
    check_same_width,
    map_again,
)
from itr.data.layouts.registry import DataConfig, open_split
from itr.errors import ConfigError, DataError


def write(folder, split, images=4, captions=5, regions=3, width=6, dtype=np.float32, seed=0):
    """Write a split of random features; returns (array, captions)."""
    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).standard_normal((images, regions, width)).astype(dtype)
    lines = [f"caption {c} of image {i}" for i in range(images) for c in range(captions)]
    np.save(folder / f"{split}_ims.npy", array)
    (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return array, lines


def fails(folder, *words, split="train"):
    with pytest.raises(DataError) as error:
        check_regions_finite(read_split(folder, split))
    for word in words:
        assert word in str(error.value), f"{word!r} not in: {error.value}"


# Layouts


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("captions", [5, 3, 1])
def test_one_row_per_image(tmp_path, dtype, captions):
    array, lines = write(tmp_path, "train", captions=captions, dtype=dtype)
    split = read_split(tmp_path, "train")
    assert isinstance(split.regions, np.memmap) and split.regions.dtype == dtype
    assert split.n_images == 4 and split.n_captions == 4 * captions
    assert split.captions() == lines
    for number, record in enumerate(split.records):
        assert record.image == record.image_id == number
        first = number * captions
        assert record.caption_ids == tuple(range(first, first + captions))
        np.testing.assert_array_equal(split.regions[record.image], array[number])
    check_regions_finite(split)


@pytest.mark.parametrize("images", [1, 2, 300])
def test_five_equal_rows_per_image(tmp_path, images):
    array, lines = write(tmp_path, "test", images=images)
    np.save(tmp_path / "test_ims.npy", np.repeat(array, 5, axis=0))
    split = read_split(tmp_path, "test")
    assert split.n_images == images and split.captions() == lines
    rows = [record.image for record in split.records]
    assert rows == [5 * i for i in range(images)]
    np.testing.assert_array_equal(split.regions[rows], array)
    assert [record.image_id for record in split.records] == list(range(images))
    assert any("5 times" in note for note in split.notes)


def test_one_caption_per_image_is_not_mistaken_for_repeated_rows(tmp_path):
    write(tmp_path, "test", images=20, captions=1)
    split = read_split(tmp_path, "test")
    assert split.n_images == split.n_captions == 20


@pytest.mark.parametrize("odd_group", [0, 2, 5])
def test_repeated_rows_that_differ_are_refused(tmp_path, odd_group):
    array, _ = write(tmp_path, "test", images=6)
    array = np.repeat(array, 5, axis=0)
    array[5 * odd_group + 3, 0] += 1
    np.save(tmp_path / "test_ims.npy", array)
    fails(tmp_path, "test_ims.npy", "five times", split="test")


@pytest.mark.parametrize("legacy", [True, False])
def test_dev_is_cut_on_request(tmp_path, legacy):
    array, lines = write(tmp_path, "dev", images=7)
    if legacy:
        np.save(tmp_path / "dev_ims.npy", np.repeat(array, 5, axis=0))
    assert read_split(tmp_path, "dev").n_captions == 35
    cut = read_split(tmp_path, "dev", max_dev_captions=20)
    assert cut.n_images == 4 and cut.captions() == lines[:20]
    assert any("first 20 of 35" in note for note in cut.notes)
    ragged = read_split(tmp_path, "dev", max_dev_captions=18)
    assert ragged.captions_per_image.tolist() == [5, 5, 5, 3] and ragged.captions() == lines[:18]
    uncut = read_split(tmp_path, "dev", max_dev_captions=5000)
    assert uncut.n_captions == 35
    write(tmp_path, "test", images=7)
    assert read_split(tmp_path, "test", max_dev_captions=20).n_captions == 35


def test_windows_line_endings_are_tolerated(tmp_path):
    write(tmp_path, "train", images=2, captions=1)
    raw = (
        b"\xef\xbb\xbf  caf\xc3\xa9 \r\na\xe2\x80\xa8b\x0cc\r\n"  # U+2028 and \f do not end a line
    )
    (tmp_path / "train_caps.txt").write_bytes(raw)
    assert read_split(tmp_path, "train").captions() == ["café", "a\u2028b\x0cc"]
    (tmp_path / "train_caps.txt").write_bytes(raw.rstrip())  # no newline at the end
    assert read_split(tmp_path, "train").n_captions == 2


# Finding the files


def config(root, **options):
    return DataConfig(name="f30k", root=str(root), **options)


@pytest.mark.parametrize("subfolder", ["", "f30k_precomp", "f30k/precomp", "other_precomp"])
def test_folders_that_are_searched(tmp_path, subfolder):
    _, lines = write(tmp_path / subfolder, "dev")
    split = open_split(config(tmp_path), "val", "regions")
    assert split.name == "dev" and split.captions() == lines
    assert any("other_precomp" in note for note in split.notes) == (subfolder == "other_precomp")
    assert open_split(config(tmp_path), "dev", "regions").n_captions == len(lines)


def test_missing_root_layout_and_split(tmp_path):
    with pytest.raises(DataError, match="no such folder; expected .*_ims.npy.*data.root=DIR"):
        open_split(config(tmp_path / "nowhere"), "train", "regions")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError) as error:
        open_split(config(tmp_path), "train", "regions")
    assert "f30k_precomp" in str(error.value) and "pictures/" in str(error.value)
    write(tmp_path / "a_precomp", "train")
    write(tmp_path / "b_precomp", "train")
    with pytest.raises(DataError, match="a_precomp/, b_precomp/"):
        open_split(config(tmp_path), "train", "regions")
    write(tmp_path / "f30k_precomp", "testall")
    with pytest.raises(DataError) as error:
        open_split(config(tmp_path), "test", "regions")
    for word in ("test_ims.npy", "test_caps.txt", "nearest: testall", "data.splits"):
        assert word in str(error.value)
    renamed = config(tmp_path, splits={"test": "testall"})
    assert open_split(renamed, "test", "regions").n_captions == 20


def test_unusable_options(tmp_path):
    write(tmp_path, "train")
    with pytest.raises(DataError, match="data.root=.*train_ims.npy"):
        open_split(config(tmp_path), "train", "pixels")
    with pytest.raises(ConfigError, match="data.layout=precomp: .*regions.*pixels"):
        open_split(config(tmp_path, layout="precomp"), "train", "pixels")
    with pytest.raises(ConfigError, match="nearest: precomp"):
        open_split(config(tmp_path, layout="precom"), "train", "regions")
    with pytest.raises(ConfigError, match="max_dev_captions=0"):
        open_split(config(tmp_path, max_dev_captions=0), "train", "regions")


@pytest.mark.parametrize("lost", ["train_ims.npy", "train_caps.txt"])
def test_one_of_the_two_files_missing(tmp_path, lost):
    write(tmp_path, "train")
    write(tmp_path, "trial")
    (tmp_path / lost).rename(tmp_path / f"{lost}.old")
    fails(tmp_path, lost, "Complete splits there: trial")


# Bad arrays


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("row", [0, 57, 99])
def test_features_that_are_not_finite(tmp_path, value, dtype, row):
    array, _ = write(tmp_path, "train", images=100, dtype=dtype)
    array[row, 2, 4] = value
    np.save(tmp_path / "train_ims.npy", array)
    fails(tmp_path, "train_ims.npy", f"row {row}, region 2, column 4", str(value))


def test_the_full_check_covers_all_rows_and_is_cached(tmp_path, monkeypatch):
    array, _ = write(tmp_path, "train", images=1000)
    array[501, 1, 1] = np.nan
    np.save(tmp_path / "train_ims.npy", array)
    split = read_split(tmp_path, "train")  # row 501 is not in the sample
    monkeypatch.setattr("itr.data.layouts.region_arrays.CHUNK_BYTES", 100 * array[0].nbytes)
    with pytest.raises(DataError, match="row 501, region 1, column 1"):
        check_regions_finite(split, tmp_path / "cache")
    array[501, 1, 1] = 0
    np.save(tmp_path / "train_ims.npy", array)
    split = read_split(tmp_path, "train")
    check_regions_finite(split, tmp_path / "cache")
    stamps = list((tmp_path / "cache").iterdir())
    assert len(stamps) == 1
    monkeypatch.setattr(
        "itr.data.layouts.region_arrays.require_finite", None
    )  # fails if it is called
    check_regions_finite(split, tmp_path / "cache")
    os.utime(tmp_path / "train_ims.npy", (1, 1))
    with pytest.raises(TypeError):
        check_regions_finite(split, tmp_path / "cache")


@pytest.mark.parametrize(
    "shape, words", [((20, 6), "(20, 6)"), ((4, 3, 2, 6), "(4, 3, 2, 6)"), ((4, 3, 0), "(4, 3, 0)")]
)
def test_wrong_rank_or_zero_width(tmp_path, shape, words):
    write(tmp_path, "train")
    np.save(tmp_path / "train_ims.npy", np.zeros(shape, np.float32))
    fails(tmp_path, "train_ims.npy", words, "expected (rows, regions, width)")


@pytest.mark.parametrize("dtype, name", [(">f4", ">f4"), ("<f8", "float64"), ("<i4", "int32")])
def test_wrong_dtype(tmp_path, dtype, name):
    write(tmp_path, "train")
    np.save(tmp_path / "train_ims.npy", np.ones((4, 3, 6), dtype))
    fails(tmp_path, "train_ims.npy", name, "float32 or float16", "np.save")


class Bomb:
    """Creates a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_object_arrays_are_never_unpickled(tmp_path):
    write(tmp_path, "train")
    trace = tmp_path / "trace"
    array = np.empty((4, 3, 6), object)
    array[:] = None
    array[0, 0, 0] = Bomb(trace)
    np.save(tmp_path / "train_ims.npy", array, allow_pickle=True)
    fails(tmp_path, "train_ims.npy", "never unpickled")
    (tmp_path / "train_ims.npy").write_bytes(pickle.dumps(Bomb(trace)))
    fails(tmp_path, "train_ims.npy", "not a valid .npy file")
    assert not trace.exists()


@pytest.mark.parametrize("size", [0, 3, 9, 40, 128, 400])
def test_truncated_array(tmp_path, size):
    write(tmp_path, "train")
    path = tmp_path / "train_ims.npy"
    path.write_bytes(path.read_bytes()[:size])
    fails(tmp_path, "train_ims.npy", "truncated" if size >= 128 else "not a valid .npy file")


def test_other_formats_named_npy(tmp_path):
    write(tmp_path, "train")
    with (tmp_path / "train_ims.npy").open("wb") as file:
        np.savez(file, a=np.zeros((4, 3, 6), np.float32))
    fails(tmp_path, "train_ims.npy", "not a valid .npy file")
    np.save(tmp_path / "train_ims.npy", np.asfortranarray(np.ones((4, 3, 6), np.float32)))
    fails(tmp_path, "train_ims.npy", "Fortran")


def test_widths_that_differ_between_splits(tmp_path):
    write(tmp_path, "train", width=6)
    write(tmp_path, "dev", width=6, regions=2)
    write(tmp_path, "test", width=7)
    train, dev, test = (read_split(tmp_path, name) for name in ("train", "dev", "test"))
    check_same_width([train, dev])
    with pytest.raises(DataError, match=r"train_ims.npy: 6.*test_ims.npy: 7"):
        check_same_width([train, dev, test])


# Bad captions


@pytest.mark.parametrize("lines", [19, 21, 3, 2])
def test_wrong_caption_count(tmp_path, lines):
    write(tmp_path, "train")
    (tmp_path / "train_caps.txt").write_text("a man\n" * lines)
    fails(tmp_path, "train_caps.txt", f"{lines} captions", "4 rows", "20")


def test_captions_that_are_not_utf8(tmp_path):
    write(tmp_path, "train")
    path = tmp_path / "train_caps.txt"
    text = path.read_text()
    path.write_bytes(text.replace("caption 2 of image 1", "caf\xe9").encode("latin-1"))
    fails(tmp_path, "train_caps.txt, line 8", "not UTF-8", "0xe9")
    path.write_bytes(text.encode("utf-16"))
    fails(tmp_path, "train_caps.txt, line 1", "not UTF-8")


@pytest.mark.parametrize("blank", ["", "  \t", "\r"])
def test_empty_captions(tmp_path, blank):
    write(tmp_path, "train")
    path = tmp_path / "train_caps.txt"
    text = path.read_text()
    path.write_text(text.replace("caption 2 of image 1", blank))
    fails(tmp_path, "train_caps.txt, line 8", "empty caption")
    path.write_text(text + "\n")  # an extra blank line at the end
    fails(tmp_path, "train_caps.txt, line 21", "empty caption")
    path.write_text("")
    fails(tmp_path, "train_caps.txt", "is empty")


# Memory


def test_a_large_array_is_not_loaded(tmp_path):
    images, regions, width = 3500, 36, 2048
    path = tmp_path / "train_ims.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (images, regions, width))
    del array  # a sparse file: no block is written
    assert path.stat().st_size > 10**9
    (tmp_path / "train_caps.txt").write_text("a man\n" * 5 * images)
    script = """
        import sys
        from itr.data.layouts.precomp import read_split

        def resident():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

        before = resident()
        split = read_split(sys.argv[1], "train")
        assert split.n_images == 3500
        print(resident() - before)
    """
    if not os.path.exists("/proc/self/status"):
        pytest.skip("resident memory is read from /proc")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 50 * 1024  # KiB


def test_an_array_that_is_cut_short_while_it_is_mapped(tmp_path):
    write(tmp_path, "train", images=400, regions=30)
    split = read_split(tmp_path, "train")
    regions, path = Regions(split), tmp_path / "train_ims.npy"
    assert regions.fields(np.array([399]))["regions"].shape == (1, 30, 6)
    os.truncate(path, 5000)
    with pytest.raises(DataError, match=r"train_ims.npy: was cut short .* to 5,000 bytes"):
        regions.fields(np.array([399]))  # reading the map would end the process
    with pytest.raises(DataError, match="train_ims.npy: was changed while it was read"):
        map_again(split.regions)


def test_an_array_that_is_replaced_stays_mapped(tmp_path):
    array, _ = write(tmp_path, "train")
    regions = Regions(read_split(tmp_path, "train"))
    np.save(tmp_path / "new.npy", array[:1])
    os.replace(tmp_path / "new.npy", tmp_path / "train_ims.npy")
    np.testing.assert_array_equal(regions.fields(np.array([3]))["regions"][0], array[3])
