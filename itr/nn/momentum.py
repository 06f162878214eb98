"""Momentum encoders: exponential moving averages of trained modules."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class MomentumTwin(nn.Module):
    """Momentum copies of ``sources``, accessed by name: ``twin["images"](...)``.

    The weights of a copy are buffers: they are saved and moved between devices, but invisible to
    optimizer, gradient clipping, decay and ``requires_grad`` (``twin[...].parameters()`` is empty).
    Buffers of the sources, such as the running statistics of a BatchNorm, are copied at
    construction and, with ``copy_buffers``, in every `update`.

    ``training`` fixes the mode of the copies: ``model.train()`` and ``model.eval()`` do not change
    it. Set a submodule that differs directly, ``twin.get_submodule("texts.bert").eval()``. Call the
    copies under ``torch.no_grad()``.
    """

    def __init__(
        self,
        sources: Mapping[str, nn.Module],
        momentum: float,
        training: bool = True,
        copy_buffers: bool = False,
    ):
        super().__init__()
        self._sources = dict(sources)  # a plain dict: not registered as submodules
        self.momentum, self.copy_buffers = momentum, copy_buffers
        for name, source in sources.items():
            self.add_module(name, _frozen_copy(source).train(training))

    def __getitem__(self, name: str) -> nn.Module:
        return self.get_submodule(name)

    def train(self, mode: bool = True) -> MomentumTwin:
        """Does nothing: the mode of the copies is fixed at construction."""
        return self

    def follow(self, model: nn.Module) -> None:
        """Give the copies the layers that now wrap layers of the sources, such as adapters.

        A wrapper in ``model`` holds what it wraps as ``base_layer``. Its copy holds the copy's own.
        """
        wrappers = {
            id(module.base_layer): module
            for module in model.modules()
            if isinstance(getattr(module, "base_layer", None), nn.Module)
        }
        for name, source in self._sources.items():
            if (wrapper := wrappers.get(id(source))) is not None:
                self._sources[name] = wrapper
            self._wrap(name, self._sources[name])

    def _wrap(self, name: str, source: nn.Module) -> None:
        """Wrap the copy ``name`` and layers in it as those of ``source`` are, the outer ones
        first."""
        for below, module in source.named_modules():
            if isinstance(getattr(module, "base_layer", None), nn.Module):
                path = f"{name}.{below}".rstrip(".")
                parent, _, leaf = path.rpartition(".")
                own = self.get_submodule(path)
                wrapper = _frozen_copy(module).train(own.training)
                wrapper.base_layer = own
                setattr(self.get_submodule(parent), leaf, wrapper)

    @torch.no_grad()
    def update(self) -> None:
        """k <- m k + (1 - m) q for every weight, in place and in one fused pass."""
        copies, sources = self._pairs(parameters=True)
        torch._foreach_lerp_(copies, sources, 1.0 - self.momentum)
        if self.copy_buffers:
            self._copy(parameters=False)

    @torch.no_grad()
    def reset(self) -> None:
        """Copy weights and buffers from the sources again, e.g. after loading weights."""
        self._copy(parameters=True)
        self._copy(parameters=False)

    def _copy(self, parameters: bool) -> None:
        copies, sources = self._pairs(parameters)
        if copies:
            torch._foreach_copy_(copies, sources)

    def _pairs(self, parameters: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors of the copies and of the sources, in the same order."""
        copies: list[Tensor] = []
        sources: list[Tensor] = []
        for name, source in self._sources.items():
            buffers = dict(self[name].named_buffers())
            named = source.named_parameters() if parameters else source.named_buffers()
            for key, value in named:
                copies.append(buffers[key])
                sources.append(value)
        return copies, sources


TEACHERS = ("file", "copies_before", "copies_after")


def teacher_weights(
    state: Mapping[str, Tensor], names: Iterable[str], source: str
) -> dict[str, Tensor]:
    """``state`` with the momentum weights ``twin.*`` that a model of weights ``names`` starts with.

    ``source`` is ``file``: those in ``state``, missing ones copied from the trained weights;
    ``copies_after``: all copied from them; ``copies_before``: none, so that they remain copies of
    the model's random weights.
    """
    if source == "file":
        return fill_momentum_weights(state, names)
    trained = {name: value for name, value in state.items() if not name.startswith("twin.")}
    return trained if source == "copies_before" else fill_momentum_weights(trained, names)


def fill_momentum_weights(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """``state`` with missing momentum weights filled in: ``twin.<name>`` (for each of ``names``) is
    copied from ``<name>``, if ``state`` has it."""
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
            setattr(module, name, parameter.detach())  # recurrent layers also keep a list of these
    return copied
