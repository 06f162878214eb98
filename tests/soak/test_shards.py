"""100,000 samples in shards, over several epochs and a kill: each exactly once."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from shard_readers import kill_after, loader_of, seen, start, write_shards  # noqa: E402

SAMPLES, SHARDS, BATCH, SEED = 100_000, 130, 1_000, 7


@pytest.mark.soak
def test_a_hundred_thousand_samples(tmp_path):
    shards = tmp_path / "wds"
    write_shards(shards, SAMPLES, SHARDS)
    loader_of(shards, batch_size=BATCH, seed=SEED)  # lists the shards, for all
    options = {"batch_size": BATCH, "seed": SEED, "world": 2, "workers": 2}
    runs = []
    for run, (epoch, killed) in enumerate(((0, False), (1, True), (1, False))):
        outs = [tmp_path / f"run{run}-rank{rank}" for rank in range(2)]
        ranks = [start(shards, out, epoch, rank=r, **options) for r, out in enumerate(outs)]
        if killed:
            done = kill_after(ranks[1], outs[1], 20 * BATCH)
            ranks[1] = start(shards, outs[1], epoch, first=done, rank=1, **options)
        for rank in ranks:
            rank.join(timeout=1800)
            assert rank.exitcode == 0
        found = [seen(out) for out in outs]
        assert [len(own) for own in found] == [SAMPLES // 2] * 2
        assert sorted(found[0] + found[1]) == list(range(SAMPLES))
        runs.append(np.array(found))
    assert (runs[0] == runs[1]).mean() < 0.001
    assert np.array_equal(runs[1], runs[2])
