"""Low-rank adapters (LoRA) beside the linear layers of a module, through peft.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022). A layer y = W x becomes
y = W x + alpha / rank * B A x, of which only A and B are trained. B begins at 0, so that adapters
change no output at first.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from itr.errors import ConfigError, nearest
from itr.options import configured, option

PACKAGE = "pip install 'itr-suite[lora]'"
NAME = "default"  # of the only adapter, as peft calls it
BASE = ".base_layer"  # between a layer's name and its own weights, as peft writes it
PACKED = "in_proj_weight"  # queries, keys and values in one parameter, as in nn.MultiheadAttention
DOWN, UP = f"lora_A.{NAME}.weight", f"lora_B.{NAME}.weight"


@dataclass
@configured("model/adapters/lora.yaml", "model.adapters")
class LoRAConfig:
    """Rank and scale of adapters, and where they are; without a rank there are none."""

    rank: int | None = option(at_least=1)
    alpha: float = option(above=0)
    dropout: float = option(at_least=0, below=1)
    modules: list[str] | None = option()
    targets: list[str] | None = option()


@dataclass(frozen=True)
class Targets:
    """Names of what gets an adapter, and of linear layers that cannot have one."""

    layers: tuple[str, ...]  # linear layers
    packed: tuple[str, ...] = ()  # attention whose `PACKED` weight gets one
    left: tuple[str, ...] = ()  # linear layers whose weights are read without calling them


def find_targets(root: nn.Module, below: Iterable[str]) -> Targets:
    """The linear layers and packed attention of ``root`` in the modules named ``below``.

    ``nn.MultiheadAttention`` reads the weight of its output projection without calling it, so that
    an adapter there would do nothing.
    """
    names = tuple(below)
    inside = tuple(f"{name}." for name in names)
    layers: list[str] = []
    packed: list[str] = []
    left: list[str] = []
    unread: set[str] = set()
    for name, module in root.named_modules():
        if not (name in names or name.startswith(inside)):
            continue
        if PACKED in module._parameters and module._parameters[PACKED] is not None:
            packed.append(name)
        if isinstance(module, nn.MultiheadAttention):
            unread.add(f"{name}.out_proj")
        if isinstance(module, nn.Linear):
            (left if name in unread else layers).append(name)
    return Targets(tuple(layers), tuple(packed), tuple(left))


def choose(found: Targets, ends: Iterable[str]) -> Targets:
    """Those of ``found`` whose last part of the name is among ``ends``; `PACKED` is one of them.

    Raises ConfigError for one that no layer has.
    """
    wanted = set(ends)
    known = {_end(name) for name in found.layers} | ({PACKED} if found.packed else set())
    if unknown := sorted(wanted - known):
        raise ConfigError(
            f"model.lora.targets={unknown[0]}: no linear layer of these modules is called "
            f"that{nearest(unknown[0], known)}; expected some of {', '.join(sorted(known))}. Leave "
            "it out to adapt all linear layers of the encoder blocks"
        )
    return Targets(
        tuple(name for name in found.layers if _end(name) in wanted),
        found.packed if PACKED in wanted else (),
        tuple(name for name in found.left if _end(name) in wanted),
    )


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def add_adapters(root: nn.Module, targets: Targets, options: LoRAConfig) -> None:
    """Put adapters into ``root``, whose outputs stay exactly what they were.

    Raises ConfigError if peft is missing, and for a rank that a layer cannot have.
    """
    assert options.rank is not None
    _require_rank(root, targets, options.rank)
    if targets.packed and options.dropout:
        raise ConfigError(
            f"model.lora.dropout={options.dropout:g}: {targets.packed[0]} keeps queries, keys and "
            "values in one parameter, whose adapter is added to the weight; expected 0. Leave it "
            "out, or leave these out with model.lora.targets"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            f"model.lora.rank={options.rank}: needs the package peft, which is not installed; "
            f"expected it. {PACKAGE}"
        ) from error
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # any number
        lora_dropout=options.dropout,
        target_modules="|".join(map(re.escape, targets.layers)) or [],
        target_parameters=[f"{name}.{PACKED}" for name in targets.packed] or None,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*target_modules.*")
        inject_adapter_in_model(config, root, NAME)


def _require_rank(root: nn.Module, targets: Targets, rank: int) -> None:
    shapes = {name: root.get_parameter(f"{name}.weight").shape for name in targets.layers}
    shapes |= {name: root.get_parameter(f"{name}.{PACKED}").shape for name in targets.packed}
    least = min(shapes, key=lambda name: min(shapes[name]))
    rows, columns = shapes[least]
    if rank > (most := min(rows, columns)):
        raise ConfigError(
            f"model.lora.rank={rank}: {least} has a weight of {rows} x {columns}; expected at most "
            f"{most}. Pass model.lora.rank={most} or less, or choose other layers with "
            "model.lora.targets"
        )


def is_adapter(parameter: str) -> bool:
    """Whether ``parameter`` is the name of a weight of an adapter."""
    return f".lora_A.{NAME}." in f".{parameter}" or f".lora_B.{NAME}." in f".{parameter}"


def plain_name(parameter: str) -> str:
    """The name that a frozen weight had before adapters were put beside it."""
    return parameter.replace(BASE, "")


def merged(state: Mapping[str, Tensor], options: LoRAConfig) -> dict[str, Tensor]:
    """The weights of the plain model that computes what ``state`` of an adapted one does."""
    assert options.rank is not None
    plain = {plain_name(k): v for k, v in state.items() if not is_adapter(k)}
    for name in state:
        if name.endswith(f".{DOWN}"):
            layer = plain_name(name.removesuffix(f".{DOWN}"))
            down, up = state[name], state[f"{name.removesuffix(DOWN)}{UP}"]
            weight = next(f"{layer}.{w}" for w in (PACKED, "weight") if f"{layer}.{w}" in plain)
            plain[weight] = plain[weight] + options.alpha / options.rank * (up @ down)
    return plain
