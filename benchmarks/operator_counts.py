"""Counts the operators of a call and those that synchronize host and GPU.

An operator synchronizes if the host reads its value or if its output shape depends on values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MASKED = "indexed by a mask"  # converted to positions below the dispatch mode
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
        "multinomial",  # checks its weights on the host
        "bincount",
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
    )
)
READS = (torch.ops.aten.index,)
WRITES = (torch.ops.aten.index_put, torch.ops.aten.index_put_)


def count_operators(action: Callable[[], Any]) -> Counter[str]:
    """The number of calls of each operator in ``action``, views excluded, backward included."""
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
    """Whether an index is a boolean mask. Filling one value needs no synchronization."""
    if packet not in READS and (packet not in WRITES or args[2].numel() == 1):
        return False
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])


def host_syncs(seen: Counter[str]) -> Counter[str]:
    """The operators in ``seen`` that synchronize host and GPU."""
    return Counter({name: count for name, count in seen.items() if name in SYNCS})
