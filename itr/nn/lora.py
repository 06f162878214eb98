"""Low-rank adapters (LoRA) in a module's linear layers, through peft.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from itr.errors import ConfigError, nearest

PACKAGE = "pip install 'itr-suite[lora]'"


@dataclass(frozen=True)
class Adapted:
    """Names of linear layers that have an adapter, and of attention that cannot have one."""

    layers: tuple[str, ...]
    left: tuple[str, ...]


def linear_layers(module: nn.Module) -> Adapted:
    """The linear layers of ``module`` that an adapter changes.

    ``nn.MultiheadAttention`` reads the weights of its projections without calling them, so that an
    adapter there would do nothing: it is left. Other modules that pack queries, keys and values in
    one parameter are named as left, too, but linear layers within them are called and adapted.
    """
    modules = dict(module.named_modules())
    packed = [n for n, m in modules.items() if isinstance(m, nn.MultiheadAttention)]
    left = [n for n, m in modules.items() if "in_proj_weight" in m._parameters]
    layers = [
        name
        for name, layer in modules.items()
        if isinstance(layer, nn.Linear) and not name.startswith(tuple(f"{p}." for p in packed))
    ]
    return Adapted(tuple(layers), tuple(left))


def add_adapters(
    module: nn.Module,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Iterable[str] | None = None,
) -> Adapted:
    """Put adapters of ``rank`` into ``module``, whose outputs stay exactly what they were.

    ``targets`` are last parts of names (``q_proj``); None: all linear layers. Raises ConfigError if
    peft is missing, and if no layer fits.
    """
    found = linear_layers(module)
    ends = None if targets is None else set(targets)
    chosen = [n for n in found.layers if ends is None or n.rpartition(".")[2] in ends]
    known = sorted({n.rpartition(".")[2] for n in found.layers})
    if ends is not None and (unknown := sorted(ends - set(known))):
        raise ConfigError(
            f"lora.targets: no linear layer is called '{unknown[0]}'{nearest(unknown[0], known)}; "
            f"expected some of {', '.join(known)}. Leave it out to adapt all of them"
        )
    if not chosen:
        raise ConfigError(
            f"lora.rank={rank}: {type(module).__name__} has no linear layer that can be adapted; "
            "its attention keeps queries, keys and values in one parameter. Leave lora.rank out"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            f"lora.rank={rank}: needs the package peft, which is not installed; {PACKAGE}"
        ) from error
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)
    inject_adapter_in_model(config, module)
    return Adapted(tuple(chosen), found.left)
