"""100,000 samples in shards, over several epochs and a kill: each exactly once."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from shard_readers import loader_of, read_epoch, write_shards  # noqa: E402

SAMPLES, SHARDS, BATCH, SEED = 100_000, 130, 1_000, 7


@pytest.mark.soak
def test_a_hundred_thousand_samples(tmp_path):
    shards = tmp_path / "wds"
    write_shards(shards, SAMPLES, SHARDS)
    loader_of(shards, batch_size=BATCH, seed=SEED)  # lists the shards, for all
    runs = []
    for number, (epoch, kill_at) in enumerate(((0, 0), (1, 20), (1, 0))):
        found, done = read_epoch(shards, tmp_path / f"run{number}", epoch, BATCH, SEED, kill_at)
        assert kill_at <= done < SAMPLES // BATCH
        assert [len(own) for own in found] == [SAMPLES // 2] * 2
        assert sorted(found[0] + found[1]) == list(range(SAMPLES))
        runs.append(np.array(found))
    assert (runs[0] == runs[1]).mean() < 0.001
    assert np.array_equal(runs[1], runs[2])
