"""Mismatched pairs: their number, reproducibility, and published index files."""

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
def test_exactly_the_share_is_mismatched(root, share):
    clean, noisy = opened(root), opened(root, noise=share)
    before, after = owners(clean), owners(noisy)
    assert before.keys() == after.keys()
    wrong = [number for number in before if before[number] != after[number]]
    assert len(wrong) == round(share * 100)
    assert noisy.captions_per_image.tolist() == [5] * 20
    (path,) = (root / "cache").glob("noise-*.npy")
    file = np.load(path)
    ids = [record.image_id for record in clean.records]
    for index, number in enumerate(before):
        assert ids[file[index]] == after[number]
    assert any(f"{share:.1%} of the training pairs" in note for note in noisy.notes)
    assert owners(opened(root, noise=share)) == after
    assert owners(opened(root, "val", noise=share)) == owners(opened(root, "val"))


def test_a_published_file_is_read(root, tmp_path):
    """Created as in NCR: the images of some captions are shuffled."""
    clean = opened(root)
    rng = np.random.default_rng(5)
    index = np.arange(100) // 5
    chosen = rng.permutation(100)[:40]
    index[chosen] = rng.permutation(index[chosen])
    path = tmp_path / "0.4_noise.npy"
    np.save(path, index)
    noisy = opened(root, noise_file=str(path))
    ids, after = [r.image_id for r in clean.records], owners(noisy)
    for caption, number in enumerate(owners(clean)):
        assert after[number] == ids[index[caption]]
    with pytest.raises(ConfigError, match="data.noise=0.2.*mismatches 0.3"):
        opened(root, noise=0.2, noise_file=str(path))


def test_a_missing_file_is_written(root, tmp_path):
    path = tmp_path / "deep" / "noise.npy"
    with pytest.raises(DataError, match="no such file.*data.noise=0.2"):
        opened(root, noise_file=str(path))
    first = owners(opened(root, noise=0.2, noise_file=str(path)))
    assert owners(opened(root, noise_file=str(path))) == first


@pytest.mark.parametrize("index, words", [
    (np.arange(99) // 5, r"shape \(99,\); expected integers of shape \(100,\)"),
    (np.zeros(100), "holds float64"),
    (np.arange(100) // 5 + 1, "1 to 20; expected 0 to 19"),
    (np.arange(100) // 10, "leaves 10 images without a caption"),
    (np.array([{}] * 100), "noise.npy: not a readable"),
])  # fmt: skip
def test_unusable_index_files(root, tmp_path, index, words):
    path = tmp_path / "noise.npy"
    np.save(path, index, allow_pickle=True)
    with pytest.raises(DataError, match=words):
        opened(root, noise_file=str(path))


def test_impossible_shares(root):
    with pytest.raises(ConfigError, match=r"data\.noise=1\.2: expected at least 0 and at most 1"):
        opened(root, noise=1.2)
    with pytest.raises(ConfigError, match="too few to mismatch"):
        shuffle(np.zeros(10, np.int64), 0.5)
