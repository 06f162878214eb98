"""10,000 samples in shards: each once per epoch over ranks and workers, in a new order."""

import numpy as np
import pytest

from itr.data.loading.shuffle import WINDOW, shuffled
from itr.errors import ConfigError
from tests.data.shard_readers import loader_of, read_epoch, write_shards

pytestmark = pytest.mark.usefixtures("in_time")  # fails instead of hanging

SAMPLES, SHARDS, BATCH, SEED = 10_000, 10, 500, 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "wds"
    write_shards(folder, SAMPLES, SHARDS)
    return folder


def options(**changes):
    return {"batch_size": BATCH, "seed": SEED, "world_size": 2, "num_workers": 2, **changes}


def test_two_ranks_read_every_sample_once_and_resume_after_a_kill(shards, tmp_path):
    """Rank 1 is killed in the middle of the epoch and restarted after its last whole batch."""
    loader = loader_of(shards, batch_size=BATCH, seed=SEED)  # indexes the shards for all
    (ours, theirs), done = read_epoch(shards, tmp_path / "run", 1, BATCH, SEED, kill_at=5)
    assert 5 <= done < SAMPLES // BATCH
    assert len(ours) == len(theirs) == SAMPLES // 2
    assert sorted(ours + theirs) == list(range(SAMPLES))
    # The batches are those of one process: each rank has its half of every one.
    order = loader.plan.order(1).reshape(-1, 2, BATCH // 2)
    assert order[:, 0].ravel().tolist() == ours and order[:, 1].ravel().tolist() == theirs


def test_the_order_depends_on_epoch_and_seed(shards):
    loader, again = (loader_of(shards, batch_size=BATCH, seed=SEED) for _ in range(2))
    other = loader_of(shards, batch_size=BATCH, seed=SEED + 1)
    orders = [loader.plan.order(epoch) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(SAMPLES)) for order in orders)
    assert not any((a == b).mean() > 0.01 for a, b in zip(orders, orders[1:], strict=False))
    assert np.array_equal(orders[2], again.plan.order(2))
    assert not np.array_equal(orders[2], other.plan.order(2))
    assert loader.batches_per_epoch == SAMPLES // BATCH


def test_more_readers_than_shards_are_refused(shards):
    for world, workers, words in (
        (20, 0, "10 shards for 20 devices x 1 workers = 20 readers; .*devices=10"),
        (2, 6, "10 shards for 2 devices x 6 workers = 12 readers; pass runtime.num_workers=5"),
    ):
        with pytest.raises(ConfigError, match=words):
            loader_of(shards, **options(world_size=world, num_workers=workers))
    loader_of(shards, **options(num_workers=5))


def test_many_shards_are_mixed_window_by_window():
    owner = np.repeat(np.arange(3 * WINDOW), 20)
    order = shuffled(0, 0, len(owner), owner)
    assert sorted(order.tolist()) == list(range(len(owner)))
    windows = owner[order].reshape(3, -1)
    assert [len(np.unique(window)) for window in windows] == [WINDOW] * 3  # a third of the files
    mixed = [len(np.unique(windows[0][first : first + 20])) for first in range(0, 1000, 20)]
    assert min(mixed) > 10  # and all of them at once
    other = owner[shuffled(0, 1, len(owner), owner)].reshape(3, -1)
    assert set(other[0]) != set(windows[0])
