"""The repeated blocks of a model's encoders."""

from __future__ import annotations

from torch import nn

from itr.nn.momentum import MomentumTwin


def encoder_stacks(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names of the repeated blocks of ``model``'s encoders, by the name of what holds them.

    These are the members of each outermost ``ModuleList`` or ``Sequential`` whose members share one
    class and have submodules. Momentum encoders are excluded.
    """
    stacks: dict[str, tuple[str, ...]] = {}

    def walk(module: nn.Module, name: str) -> None:
        if isinstance(module, MomentumTwin):
            return
        if isinstance(module, nn.ModuleList | nn.Sequential) and _is_stack(module):
            stacks[name] = tuple(f"{name}.{key}" for key, _ in module.named_children())
            return
        for key, child in module.named_children():
            walk(child, f"{name}.{key}" if name else key)

    walk(model, "")
    return stacks


def _is_stack(modules: nn.Module) -> bool:
    members = list(modules.children())
    return (
        bool(members)
        and len({type(member) for member in members}) == 1
        and next(members[0].children(), None) is not None
    )
