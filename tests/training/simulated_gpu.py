"""A GPU without a GPU: torch's fake tensors on ``cuda``, which have shapes and no values.

An operator that meets tensors on two devices raises, and so does a read of a value by the host, or
a copy to the device for which the host would wait. The backward pass cannot be simulated on a build
of torch without CUDA.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from itr.batch import Batch
from itr.draws import Draws

CUDA = torch.device("cuda")


@contextlib.contextmanager
def simulated_gpu(monkeypatch: Any) -> Iterator[FakeTensorMode]:
    """Inside, ``cuda`` is a simulated device on which autocast and recurrent layers work."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.amp.autocast_mode.torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(nn.GRU, "forward", _gru)
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: mode.from_tensor(tensor))
    with mode, NoWait():
        yield mode


class NoWait(TorchDispatchMode):
    """Raises for a copy to the device for which the host waits, and with it for all that the
    device has been given before."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            blocks = not kwargs.get("non_blocking", len(args) > 2 and args[2])
            if blocks and source.device.type == "cpu" and result.device.type == "cuda":
                raise AssertionError(f"the host waits for a copy of {tuple(source.shape)}")
        return result


def on_gpu(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """``model`` with its parameters and buffers, and nothing else, on the simulated device."""
    moved: dict[int, Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in moved:  # tied weights stay tied
            fake = mode.from_tensor(tensor).detach().to(CUDA, non_blocking=True)
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, tensor.requires_grad)
            moved[id(tensor)] = fake
        return moved[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = move(tensor)  # type: ignore[assignment]
        if isinstance(module, nn.GRU):
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    return model


def batch_on_gpu(batch: Batch, mode: FakeTensorMode) -> Batch:
    """``batch`` as the loader hands it over, moved by `Batch.to`."""
    return batch._map(mode.from_tensor).to(CUDA)


class SimulatedDraws(Draws):
    """Draws from the device's own generator: one of a simulated device cannot be made."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = None  # type: ignore[assignment]


def _gru(module: nn.GRU, rows: Any, state: Tensor | None = None) -> tuple[Any, Tensor]:
    """The shapes, dtype and device that cuDNN's layer gives. It is not simulated by torch."""
    packed = isinstance(rows, nn.utils.rnn.PackedSequence)
    data = rows.data if packed else rows
    for weight in module._flat_weights:
        assert weight.device == data.device
    if packed:
        assert rows.batch_sizes.device.type == "cpu"
    directions = 2 if module.bidirectional else 1
    out = data.new_empty((*data.shape[:-1], directions * module.hidden_size))
    size = int(rows.batch_sizes[0]) if packed else data.shape[0 if module.batch_first else 1]
    last = data.new_empty((directions * module.num_layers, size, module.hidden_size))
    return (rows._replace(data=out) if packed else out), last
