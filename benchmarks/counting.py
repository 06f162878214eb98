"""How many operators a call takes, and which of them make a GPU wait for the host or the other way
round: a number that the host reads, or a result whose shape depends on values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MASKED = "indexed by a mask"  # which becomes positions, below what a dispatch mode sees
SYNCS = frozenset(
    (
        MASKED,
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "equal",
        "allclose",
        "nonzero",
        "nonzero_static",
        "masked_select",
        "multinomial",  # torch's own checks its weights on the host
        "bincount",
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
    )
)
READS = (torch.ops.aten.index,)
WRITES = (torch.ops.aten.index_put, torch.ops.aten.index_put_)


def operators(action: Callable[[], Any]) -> Counter[str]:
    """How often ``action`` calls each operator that is no view, forward and backward."""
    seen: Counter[str] = Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if not func.is_view:
                packet = func.overloadpacket
                seen[MASKED if _is_masked(packet, args) else packet.__name__] += 1
            return func(*args, **(kwargs or {}))

    with Counting():
        action()
    return seen


def _is_masked(packet: Any, args: tuple[Any, ...]) -> bool:
    """Whether a mask says which places; one value for all of them is filled in without asking."""
    if packet not in READS and (packet not in WRITES or args[2].numel() == 1):
        return False
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])


def waits(seen: Counter[str]) -> Counter[str]:
    """Those of ``seen`` that make one side wait."""
    return Counter({name: count for name, count in seen.items() if name in SYNCS})
