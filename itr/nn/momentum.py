"""Momentum encoders: slow copies whose weights follow those of the encoders that are trained."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class MomentumTwin(nn.Module):
    """Copies of ``sources`` (by name: ``twin["images"](...)``) that `update` moves towards them.

    The weights of a copy are buffers: they are saved and moved between devices like any other,
    while no optimiser, gradient clipping, decay or waking up of sleeping parameters ever sees them
    (so ``twin[...].parameters()`` is empty). Buffers of the sources, such as the running statistics
    of a BatchNorm, are copied at construction and, with ``copy_buffers``, by every `update`.

    ``training`` says once for all whether the copies work in training mode: neither
    ``model.train()`` nor ``model.eval()`` reaches into a twin (a part that differs is set by hand,
    ``twin.get_submodule("texts.bert").eval()``). Call the copies under ``torch.no_grad()``.
    """

    def __init__(
        self,
        sources: Mapping[str, nn.Module],
        momentum: float,
        training: bool = True,
        copy_buffers: bool = False,
    ):
        super().__init__()
        self._sources = dict(sources)  # a plain dictionary: no submodules, nothing saved twice
        self.momentum, self.copy_buffers = momentum, copy_buffers
        for name, source in sources.items():
            self.add_module(name, _frozen_copy(source).train(training))

    def __getitem__(self, name: str) -> nn.Module:
        return self.get_submodule(name)

    def train(self, mode: bool = True) -> MomentumTwin:
        """Nothing: the modes of a twin are its own."""
        return self

    @torch.no_grad()
    def update(self) -> None:
        """k <- m k + (1 - m) q for every weight, in one fused pass and in place."""
        own, theirs = self._pairs(parameters=True)
        torch._foreach_lerp_(own, theirs, 1.0 - self.momentum)
        if self.copy_buffers:
            self._copy(parameters=False)

    @torch.no_grad()
    def reset(self) -> None:
        """Weights and buffers equal to the sources' again (after these were loaded)."""
        self._copy(parameters=True)
        self._copy(parameters=False)

    def _copy(self, parameters: bool) -> None:
        own, theirs = self._pairs(parameters)
        if own:
            torch._foreach_copy_(own, theirs)

    def _pairs(self, parameters: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors of the copies and of the sources, in the same order."""
        own: list[Tensor] = []
        theirs: list[Tensor] = []
        for name, source in self._sources.items():
            buffers = dict(self[name].named_buffers())
            named = source.named_parameters() if parameters else source.named_buffers()
            for key, value in named:
                own.append(buffers[key])
                theirs.append(value)
        return own, theirs


def fill_momentum_weights(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """``state`` and, for each of ``names`` that is a twin's (``twin.<name>``) and not in it, the
    weight ``<name>`` that it copies, where ``state`` has that."""
    filled = dict(state)
    for name in names:
        source = name.removeprefix("twin.")
        if name != source and name not in filled and source in filled:
            filled[name] = filled[source]
    return filled


def _frozen_copy(source: nn.Module) -> nn.Module:
    copied = copy.deepcopy(source)
    for module in copied.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
            setattr(module, name, parameter.detach())  # recurrent layers keep a list of their own
    return copied
