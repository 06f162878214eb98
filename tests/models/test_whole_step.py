"""A whole training step of each method, as the trainer makes it: momentum encoders, forward and
backward pass, queues, clipping and AdamW take few operators, however large the batch, and nothing
waits for the device."""

from __future__ import annotations

import pytest

from benchmarks.operator_counts import count_operators, host_syncs
from tests.models.tiny import Steps, batch_for, build

# Operators that are no views, of a tiny model; towers of more layers have more.
STEPS = [
    ("hrem", (), (8, 16), 770),
    ("user", ("model.queue_size=64",), (8, 16), 2150),
    ("vse", (), (8, 16), 1370),
    ("alip", (), (4, 16), 470),
    ("albef", (), (4, 12), 665),
    ("albef", ("task=pretrain",), (4, 12), 1160),
    ("multisea", ("model.queue_size=64",), (6, 12), 2640),
]


@pytest.mark.parametrize(("name", "overrides", "sizes", "most"), STEPS)
def test_a_step_does_not_synchronize_and_its_operators_do_not_grow(
    name: str, overrides: tuple[str, ...], sizes: tuple[int, int], most: int
) -> None:
    counts = []
    for size in sizes:
        steps, given = Steps(name, build(name, *overrides)), batch_for(name, size)
        steps(given)  # AdamW makes its state in the first one
        counts.append(count_operators(lambda steps=steps, given=given: steps(given)))
    assert not host_syncs(counts[0] + counts[1])
    assert counts[0] == counts[1]
    assert counts[0].total() <= most, counts[0].most_common(12)
