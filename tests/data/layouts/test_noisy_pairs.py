"""Mismatched pairs: how many, the same for every seed, and index files as they are published."""

import numpy as np
import pytest

from itr.data.layouts.noisy_pairs import shuffle
from itr.data.layouts.registry import DataConfig, open_split
from itr.errors import ConfigError, DataError
from tests.data import worlds
from tests.data.worlds import make_items


@pytest.fixture
def root(tmp_path):
    worlds.write("karpathy", tmp_path, make_items((20, 2, 2), captions=5))
    return tmp_path


def opened(root, split="train", **options):
    data = DataConfig("coco", str(root), cache=str(root / "cache"), **options)
    return open_split(data, split, "pixels")


def owners(split):
    return {number: r.image_id for r in split.records for number in r.caption_ids}


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_exactly_the_share_is_mismatched_and_the_file_says_so(root, share):
    clean, noisy = opened(root), opened(root, noise=share)
    right, shown = owners(clean), owners(noisy)
    assert right.keys() == shown.keys()
    wrong = [number for number in right if right[number] != shown[number]]
    assert len(wrong) == round(share * 100)
    assert noisy.captions_per_image.tolist() == [5] * 20
    (path,) = (root / "cache").glob("noise-*.npy")
    file = np.load(path)
    ids = [record.image_id for record in clean.records]
    for place, number in enumerate(right):
        assert ids[file[place]] == shown[number]
    assert any(f"{share:.1%} of the training pairs" in note for note in noisy.notes)
    assert owners(opened(root, noise=share)) == shown
    assert owners(opened(root, "val", noise=share)) == owners(opened(root, "val"))


def test_a_published_file_is_read(root, tmp_path):
    """As NCR makes one: some captions are given the images of others, shuffled."""
    clean = opened(root)
    rng = np.random.default_rng(5)
    index = np.arange(100) // 5
    chosen = rng.permutation(100)[:40]
    index[chosen] = rng.permutation(index[chosen])
    path = tmp_path / "0.4_noise.npy"
    np.save(path, index)
    noisy = opened(root, noise_file=str(path))
    ids, shown = [r.image_id for r in clean.records], owners(noisy)
    for place, number in enumerate(owners(clean)):
        assert shown[number] == ids[index[place]]
    with pytest.raises(ConfigError, match="data.noise=0.2.*mismatches 0.3"):
        opened(root, noise=0.2, noise_file=str(path))


def test_a_named_file_is_written_where_there_is_none(root, tmp_path):
    path = tmp_path / "deep" / "noise.npy"
    with pytest.raises(DataError, match="no such file.*data.noise=0.2"):
        opened(root, noise_file=str(path))
    first = owners(opened(root, noise=0.2, noise_file=str(path)))
    assert owners(opened(root, noise_file=str(path))) == first


@pytest.mark.parametrize("index, words", [
    (np.arange(99) // 5, r"shape \(99,\); expected whole numbers of shape \(100,\)"),
    (np.zeros(100), "holds float64"),
    (np.arange(100) // 5 + 1, "holds images 1 to 20; the split has 0 to 19"),
    (np.arange(100) // 10, "leaves 10 images without a caption"),
    (np.array([{}] * 100), "no array that can be read"),
])  # fmt: skip
def test_files_that_do_not_fit(root, tmp_path, index, words):
    path = tmp_path / "noise.npy"
    np.save(path, index, allow_pickle=True)
    with pytest.raises(DataError, match=words):
        opened(root, noise_file=str(path))


def test_shares_that_cannot_be(root):
    with pytest.raises(ConfigError, match="data.noise=1.2: expected a share"):
        opened(root, noise=1.2)
    with pytest.raises(ConfigError, match="too few to mismatch"):
        shuffle(np.zeros(10, np.int64), 0.5)
