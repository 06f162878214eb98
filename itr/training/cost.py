"""Reports what training costs: memory known in advance, operations and GPU memory as measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Dense TFLOP/s that the makers of GPUs state: of half precision (bf16, fp16), tf32, fp32.
PEAKS = {
    "H200": (989.0, 495.0, 67.0),
    "H100 PCIe": (756.0, 378.0, 51.0),
    "H100 NVL": (835.0, 418.0, 60.0),
    "H100": (989.0, 495.0, 67.0),
    "A100": (312.0, 156.0, 19.5),
    "L40S": (362.0, 183.0, 91.6),
    "L4": (121.0, 60.0, 30.3),
    "V100": (125.0, 15.7, 15.7),
}
PEAK_OF = {"bf16": 0, "fp16": 0, "tf32": 1, "fp32": 2}


def peak_tflops(device_name: str, precision: str) -> float | None:
    """The stated TFLOP/s of a GPU at ``precision``; None for one that `PEAKS` does not name."""
    words = device_name.replace("-", " ")
    found = [name for name in PEAKS if f" {name} " in f" {words} "]
    return PEAKS[max(found, key=len)][PEAK_OF[precision]] if found else None


class StepCost:
    """Measures the first micro-batch of a process that runs inside `measure`.

    Operations are counted while the step runs, with the numbers it would have without. They are not
    counted under torch.compile, whose kernels the counter cannot see.
    """

    def __init__(self, device: torch.device, count_operations: bool):
        self.device = device
        self.flops = 0  # forward and backward; a multiplication with its addition counts as two
        self.pairs = 0  # of the measured micro-batch; 0: not measured yet
        self.described = False
        self.count_operations = count_operations

    @contextmanager
    def measure(self, pairs: int) -> Iterator[None]:
        """Count the operations of the body, which is the step of ``pairs`` pairs."""
        if self.pairs or not self.count_operations:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self.flops, self.pairs = counter.get_total_flops(), pairs

    def rates(self, pairs_per_second: float, devices: int, precision: str) -> dict[str, float]:
        """TFLOP/s of a device and, of a known GPU, its share of the stated peak (MFU).

        Operations count as in the measured micro-batch, those for momentum encoders and for
        recomputed activations included. Empty before anything was measured.
        """
        if not self.pairs:
            return {}
        tflops = self.flops / self.pairs * pairs_per_second / devices / 1e12
        values = {"train/tflops_per_device": tflops}
        if self.device.type == "cuda":
            peak = peak_tflops(torch.cuda.get_device_name(self.device), precision)
            values |= {} if peak is None else {"train/mfu": tflops / peak}
        return values

    def describe_once(self) -> str:
        """One line for the log: operations of a step, and peak memory on a GPU. Empty from the
        second call on, and before anything was measured."""
        if self.described or not self.pairs:
            return ""
        self.described = True
        line = (
            f"{self.flops / 1e9:.3g} GFLOP for a micro-batch of {self.pairs} pairs (forward and "
            "backward)"
        )
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            line += f"; peak GPU memory so far: {format_bytes(peak)}"
        return line


@dataclass(frozen=True)
class RunCost:
    """What a run cost, as its results report it. None: not known on this device."""

    devices: int
    parameters_millions: float
    trained_parameters_millions: float
    gpu_hours: float | None  # of all devices and all parts of a resumed run
    peak_gpu_memory_gib: float | None  # of the first device, in the last part of the run

    @classmethod
    def of(cls, model: nn.Module, device: torch.device, devices: int, seconds: float) -> RunCost:
        """The cost of a run of ``model`` that has trained for ``seconds`` on ``devices``."""
        counts = [p.numel() for p in model.parameters()]
        trained = [p.numel() for p in model.parameters() if p.requires_grad]
        on_gpu = device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None
        return cls(
            devices,
            round(sum(counts) / 1e6, 3),
            round(sum(trained) / 1e6, 3),
            round(devices * seconds / 3600, 3) if on_gpu else None,
            None if peak is None else round(peak, 2),
        )


def describe_memory(model: nn.Module) -> str:
    """One line for the log: trained parameters, and the memory that does not depend on the batch.

    Gradients and AdamW's two moments need three times the trained parameters.
    """
    tensors = (*model.parameters(), *model.buffers())
    weights = sum(t.numel() * t.element_size() for t in tensors)
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = 3 * sum(p.numel() * p.element_size() for p in trained)
    return (
        f"{sum(p.numel() for p in trained) / 1e6:.1f} M trained parameters; memory per device: "
        f"{format_bytes(weights + moments)} (weights and buffers {format_bytes(weights)}, "
        f"gradients and moments {format_bytes(moments)}) plus activations"
    )


def format_bytes(count: int) -> str:
    """``count`` bytes in GiB or, below a quarter of one, in MiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
