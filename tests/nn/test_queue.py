"""The queue against a list that is written row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itr.errors import ConfigError
from itr.nn.queue import NO_ID, FeatureQueue


def naive(size: int, overflow: str, batches: list[list[int]]) -> tuple[list[int], int]:
    """Ids in the queue and the pointer after ``batches`` of ids, one row at a time."""
    ids, pointer = [NO_ID] * size, 0
    for batch in batches:
        start = pointer
        for row in batch:
            if overflow == "clip" and start + batch.index(row) >= size:
                continue
            ids[pointer] = row
            pointer = (pointer + 1) % size
    return ids, pointer


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 12),
    counts=st.lists(st.integers(1, 15), max_size=6),
    overflow=st.sampled_from(["wrap", "clip"]),
)
def test_queue_is_a_ring_buffer(size: int, counts: list[int], overflow: str) -> None:
    queue = FeatureQueue(width=2, size=size, with_ids=True, overflow=overflow)
    untouched = queue.features.clone()
    batches, first = [], 0
    for count in counts:
        batches.append(list(range(first, first + count)))
        first += count
        ids = torch.tensor(batches[-1])
        queue.enqueue(torch.stack([ids, -ids], dim=1).float(), ids)
    ids, pointer = naive(size, overflow, batches)
    assert queue.ids.tolist() == ids and queue.pointer.tolist() == [pointer]
    for row, found in enumerate(queue.features):
        expected = untouched[row] if ids[row] == NO_ID else torch.tensor([ids[row], -ids[row]])
        assert torch.equal(found, expected.float())


def test_refuse_suggests_a_batch_size_and_a_queue_size() -> None:
    queue = FeatureQueue(width=2, size=24, overflow="refuse")
    for _ in range(4):
        queue.enqueue(torch.ones(8, 2))
    assert queue.pointer.tolist() == [8]
    with pytest.raises(ConfigError, match="batch_size=8 or model.queue_size=27"):
        queue.enqueue(torch.ones(9, 2))


def test_initial_rows_are_random_unit_vectors() -> None:
    torch.manual_seed(0)
    for init, lowest in (("normal", -1.0), ("uniform", 0.0)):
        features = FeatureQueue(width=64, size=500, init=init).features
        torch.testing.assert_close(features.norm(dim=1), torch.ones(500))
        assert features.min() >= lowest
        off = (features @ features.t())[~torch.eye(500, dtype=torch.bool)]
        assert off.mean() == pytest.approx(0.75 if init == "uniform" else 0.0, abs=0.01)


def test_enqueue_accepts_half_precision_and_gradients_and_is_saved() -> None:
    queue = FeatureQueue(width=2, size=4, with_ids=True)
    rows = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    queue.enqueue(rows * 2, torch.arange(3))
    assert queue.features.dtype == torch.float32 and not queue.features.requires_grad
    other = FeatureQueue(width=2, size=4, with_ids=True)
    other.load_state_dict(queue.state_dict())
    other.enqueue(torch.zeros(2, 2), torch.arange(2))
    assert other.ids.tolist() == [1, 1, 2, 0]


def test_unknown_options_are_rejected() -> None:
    with pytest.raises(ConfigError, match="overflow=drop: .*wrap, refuse, clip"):
        FeatureQueue(2, 4, overflow="drop")
    with pytest.raises(ConfigError, match="expected 0"):
        FeatureQueue(2, -1)


def test_size_zero_disables_the_queue() -> None:
    queue = FeatureQueue(3, 0, with_ids=True)
    queue.enqueue(torch.ones(4, 3), torch.arange(4))
    assert queue.features.shape == (0, 3) and queue.ids.shape == (0,)
