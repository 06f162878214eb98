"""The pooling operator against a literal one: sample by sample, the GRU on packed sequences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from itr.nn.gpo import GPO


def literal(pool: GPO, features: Tensor, lengths: list[int]) -> Tensor:
    rows = []
    for sample, length in zip(features, lengths, strict=True):
        codes = torch.zeros(1, length, 32)
        for t in range(length):
            for i in range(16):
                angle = t * 10000 ** (-2 * i / 32)
                codes[0, t, 2 * i], codes[0, t, 2 * i + 1] = math.sin(angle), math.cos(angle)
        packed = pack_padded_sequence(codes, torch.tensor([length]), batch_first=True)
        states, _ = pad_packed_sequence(pool.gru(packed)[0], batch_first=True)
        scores = pool.score((states[0, :, :32] + states[0, :, 32:]) / 2)[:, 0]
        weights = (scores / 0.1).softmax(dim=0)
        ordered = sample[:length].sort(dim=0, descending=True).values
        rows.append((weights[:, None] * ordered).sum(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("lengths", [[7, 7, 7], [1, 7, 4], [5, 5, 5], [2, 3, 3]])
@pytest.mark.parametrize("known", [True, False])
def test_gpo_equals_the_reference(lengths: list[int], known: bool) -> None:
    torch.manual_seed(0)
    pool, features = GPO(), torch.randn(3, 7, 5)
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    found = pool(ours, mask, min(lengths) if known else 0)
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad((found * upstream).sum(), [ours, *pool.parameters()])
    expected = literal(pool, theirs, lengths)
    wanted = torch.autograd.grad((expected * upstream).sum(), [theirs, *pool.parameters()])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_autocast_does_not_change_the_result() -> None:
    torch.manual_seed(0)
    pool, features = GPO(), torch.randn(3, 7, 5)
    mask = torch.arange(7) < torch.tensor([7, 2, 5])[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(features, mask)
    assert torch.equal(found, pool(features, mask))
