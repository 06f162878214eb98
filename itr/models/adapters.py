"""Adds the adapters that ``model.lora`` asks for to a model, and to its momentum encoders."""

from __future__ import annotations

from torch import nn

from itr.errors import ConfigError, nearest
from itr.models.base import Model
from itr.nn.encoder_blocks import encoder_stacks
from itr.nn.lora import LoRAConfig, Targets, add_adapters, choose, find_targets, is_adapter
from itr.nn.momentum import MomentumTwin


def adapt(model: Model) -> list[str]:
    """Put the adapters of ``model.config.lora`` into ``model`` and note what they freeze.

    Nothing is done without a rank. The outputs of the model do not change. Returns messages for the
    log. Raises ConfigError for modules, layers and ranks that cannot be.
    """
    options = lora_of(model)
    if options is None:
        return []
    modules = _modules(model, options)
    targets = _targets(model, options, modules)
    twins = [module for module in model.modules() if isinstance(module, MomentumTwin)]
    _inject(model, targets, options)
    for twin in twins:
        twin.follow(model)
    inside = tuple(f"{name}." for name in modules)
    model.frozen_weights = frozenset(
        name
        for name, weight in model.named_parameters()
        if name.startswith(inside) and weight.numel() > 1 and not is_adapter(name)
    )
    return _described(model, options, targets)


def lora_of(model: Model) -> LoRAConfig | None:
    """The options of the adapters of ``model``; None: it has none."""
    options = getattr(model.config, "lora", None)
    return None if options is None or options.rank is None else options


def _modules(model: Model, options: LoRAConfig) -> tuple[str, ...]:
    """The modules that get adapters and are frozen beside them."""
    if options.modules is None:
        return model.pretrained_modules()
    towers = model.towers()
    known = {name for name, module in model.named_modules() if name and [*module.parameters()]}
    for name in options.modules:
        if name not in towers and name not in known:
            shown = [n for n in sorted(known) if "." not in n]
            raise ConfigError(
                f"model.lora.modules={name}: no module of this model"
                f"{nearest(name, [*towers, *known])}; expected {', '.join(towers)}, or a name such "
                f"as {', '.join(shown)}. Leave it out for the pre-trained encoders"
            )
    return tuple(full for name in options.modules for full in towers.get(name, (name,)))


def _targets(model: Model, options: LoRAConfig, modules: tuple[str, ...]) -> Targets:
    inside = tuple(f"{name}." for name in modules)
    if options.targets is not None:
        found = choose(find_targets(model, modules), options.targets)
    else:
        stacks = encoder_stacks(model).values()
        blocks = (name for stack in stacks for name in stack if name.startswith(inside))
        found = find_targets(model, blocks)
    if not found.layers and not found.packed:
        raise ConfigError(
            f"model.lora.rank={options.rank}: {', '.join(modules) or type(model).__name__} has no "
            "linear layer in an encoder block that can be adapted; expected a Transformer. Name "
            "other modules with model.lora.modules, or leave model.lora out"
        )
    return found


def _inject(model: Model, targets: Targets, options: LoRAConfig) -> None:
    """Adapt the parts of ``model`` in a holder of their own: peft would read the model's options as
    those of transformers, and match names in momentum encoders."""
    holder = nn.Module()
    for name, part in model.named_children():
        if not isinstance(part, MomentumTwin):
            holder.add_module(name, part)
    add_adapters(holder, targets, options)
    for name, part in holder.named_children():
        setattr(model, name, part)


def _described(model: Model, options: LoRAConfig, targets: Targets) -> list[str]:
    weights = sum(p.numel() for name, p in model.named_parameters() if is_adapter(name))
    count = len(targets.layers) + len(targets.packed)
    lines = [
        f"model.lora: adapters of rank {options.rank} beside {count} layers, {weights:,} parameters"
    ]
    if targets.left:
        lines.append(
            f"model.lora: {len(targets.left)} layers cannot have adapters, as attention reads "
            f"their weights itself ({targets.left[0]}, ...)"
        )
    return lines
