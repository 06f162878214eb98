"""100,000 samples in shards, over several epochs and a kill: each exactly once."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from shard_readers import seen, start, write_shards  # noqa: E402

SAMPLES, SHARDS, BATCH = 100_000, 130, 1_000


@pytest.mark.soak
def test_a_hundred_thousand_samples(tmp_path):
    shards = tmp_path / "wds"
    write_shards(shards, SAMPLES, SHARDS)
    orders = []
    for run, (epoch, killed) in enumerate(((0, False), (1, True), (1, False))):
        outs = [tmp_path / f"run{run}-rank{rank}" for rank in range(2)]
        ranks = [start(outs[r], shards, r, 2, 2, BATCH, 7, epoch, 0, 0) for r in range(2)]
        if killed:
            while len(seen(outs[1]) if outs[1].exists() else ()) < 20 * BATCH:
                assert ranks[1].poll() is None
                time.sleep(0.1)
            ranks[1].kill()
            ranks[1].wait()
            done = len(seen(outs[1])) // (BATCH // 2)
            text = outs[1].read_text()
            outs[1].write_text(text[: text.rindex("\n") + 1])
            ranks[1] = start(outs[1], shards, 1, 2, 2, BATCH, 7, epoch, done, 0)
        assert [rank.wait(timeout=1800) for rank in ranks] == [0, 0]
        found = [seen(out) for out in outs]
        assert [len(own) for own in found] == [SAMPLES // 2] * 2
        assert sorted(found[0] + found[1]) == list(range(SAMPLES))
        orders.append(np.array(found))
    assert not (orders[0] == orders[1]).mean() > 0.001
    assert np.array_equal(orders[1], orders[2])
