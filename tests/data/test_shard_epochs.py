"""10,000 samples in shards: each exactly once an epoch over ranks and workers, in a new order."""

import subprocess
import time

import numpy as np
import pytest
from shard_readers import loader_of, seen, start, write_shards

from itr.data.order import WINDOW, shuffled
from itr.errors import ConfigError

SAMPLES, SHARDS, BATCH = 10_000, 10, 500


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "wds"
    write_shards(folder, SAMPLES, SHARDS)
    return folder


def test_two_ranks_with_two_workers_see_every_sample_once_and_go_on_after_a_kill(shards, tmp_path):
    """Rank 1 is killed in the middle; started again, it goes on behind its last whole batch."""
    first, second = tmp_path / "rank0", tmp_path / "rank1"
    one = start(first, shards, 0, 2, 2, BATCH, 3, 1, 0, 0)
    other = start(second, shards, 1, 2, 2, BATCH, 3, 1, 0, 0.2)
    while other.poll() is None and (not second.exists() or len(seen(second)) < 5 * BATCH // 2):
        time.sleep(0.05)
    other.kill()
    assert other.wait() == -9
    done = len(seen(second)) // (BATCH // 2)
    assert 5 <= done < SAMPLES // BATCH
    text = second.read_text()
    second.write_text(text[: text.rindex("\n") + 1])
    assert start(second, shards, 1, 2, 2, BATCH, 3, 1, done, 0).wait(timeout=300) == 0
    assert one.wait(timeout=300) == 0
    ours, theirs = seen(first), seen(second)
    assert len(ours) == len(theirs) == SAMPLES // 2
    assert sorted(ours + theirs) == list(range(SAMPLES))
    # The batches are those of one process: each rank has its half of every one.
    loader = loader_of(shards, 0, 1, 0, BATCH, 3)
    order = loader.order(1).reshape(-1, 2, BATCH // 2)
    assert order[:, 0].ravel().tolist() == ours and order[:, 1].ravel().tolist() == theirs


def test_the_order_is_new_in_every_epoch_and_the_same_for_a_seed(shards):
    loader, again = (loader_of(shards, 0, 1, 0, BATCH, 3) for _ in range(2))
    other = loader_of(shards, 0, 1, 0, BATCH, 4)
    orders = [loader.order(epoch) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(SAMPLES)) for order in orders)
    assert not any((a == b).mean() > 0.01 for a, b in zip(orders, orders[1:], strict=False))
    assert np.array_equal(orders[2], again.order(2)) and not np.array_equal(
        orders[2], other.order(2)
    )
    assert loader.batches_per_epoch == SAMPLES // BATCH


def test_more_readers_than_shards_are_refused_with_the_numbers(shards):
    for world, workers, words in (
        (11, 0, "10 shards for 11 devices x 1 workers = 11 readers; .*devices=10"),
        (2, 6, "10 shards for 2 devices x 6 workers = 12 readers; type runtime.workers=5"),
    ):
        with pytest.raises(ConfigError, match=words):
            loader_of(shards, 0, world, workers, BATCH - BATCH % world, 3)
    loader_of(shards, 1, 2, 5, BATCH, 3)


def test_many_shards_are_mixed_window_by_window():
    count = 3 * WINDOW
    owner = np.repeat(np.arange(count), 20)
    order = shuffled(0, 0, len(owner), owner)
    assert sorted(order.tolist()) == list(range(len(owner)))
    windows = owner[order].reshape(3, -1)
    assert [len(np.unique(window)) for window in windows] == [WINDOW] * 3  # a third of the files
    mixed = [len(np.unique(windows[0][first : first + 20])) for first in range(0, 1000, 20)]
    assert min(mixed) > 10  # and all of them at once
    assert len({tuple(sorted(set(owner[shuffled(0, e, len(owner), owner)][:1280]))) for e in (0, 1)
                }) == 2  # fmt: skip


def test_a_reader_that_fails_ends_and_says_why(shards, tmp_path):
    done = start(tmp_path / "out", shards, 0, 2, 9, BATCH, 3, 0, 0, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        done.wait(timeout=0.01)
    assert done.wait(timeout=120) == 1
