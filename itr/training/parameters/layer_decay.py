"""Smaller learning rates for the lower layers of pre-trained towers.

Clark et al., "ELECTRA" (ICLR 2020), and Bao et al., "BEiT" (ICLR 2022): in a tower of n blocks,
block i, counted from 0, learns at ``decay`` ** (n - i) of the rate, the embeddings at ``decay`` **
(n + 1). What follows the blocks, and everything outside the towers, keeps the whole rate.
"""

from __future__ import annotations

import torch

from itr.errors import ConfigError
from itr.models.base import Model
from itr.nn.encoder_blocks import encoder_stacks

# Parts of names of what comes before the blocks, in this suite, transformers, timm and open_clip.
EMBEDDINGS = frozenset(
    "embeddings patch_embed patch_embedding token_embedding positional_embedding class_embedding "
    "cls_token reg_token dist_token pos_embed pos_embedding conv1 bn1 conv2 bn2 conv3 bn3 stem "
    "ln_pre norm_pre pre_layrnorm pre_layernorm".split()
)


def layer_scales(model: Model, decay: float | None) -> dict[str, float]:
    """The factor on the learning rate of each block's and embedding's parameters, by name.

    Raises ConfigError if no pre-trained tower of ``model`` has blocks.
    """
    if decay is None:
        return {}
    stacks = encoder_stacks(model)
    names = [name for name, _ in model.named_parameters()]
    scales: dict[str, float] = {}
    for tower in model.pretrained_towers():
        inside = tuple(f"{name}." for name in tower)
        blocks = [
            block
            for part in inside
            for stack in stacks
            if f"{stack}.".startswith(part)
            for block in stacks[stack]
        ]
        if blocks:
            own = [name for name in names if name in tower or name.startswith(inside)]
            scales |= _tower_scales(own, blocks, decay)
    if not scales:
        shown = ", ".join(name for tower in model.pretrained_towers() for name in tower)
        raise ConfigError(
            f"optim.layer_decay={decay:g}: {type(model).__name__} has no numbered blocks in "
            f"{shown or 'any pre-trained tower'}; expected a tower of Transformer blocks or "
            "stages. Leave optim.layer_decay out"
        )
    return scales


def _tower_scales(names: list[str], blocks: list[str], decay: float) -> dict[str, float]:
    """The factors of the parameters ``names`` of one tower with ``blocks``, from the lowest."""
    count = len(blocks)
    of_block = {f"{block}.": decay ** (count - i) for i, block in enumerate(blocks)}
    scales = {}
    for name in names:
        block = next((prefix for prefix in of_block if name.startswith(prefix)), None)
        if block is not None:
            scales[name] = of_block[block]
        elif EMBEDDINGS & set(name.split(".")):
            scales[name] = decay ** (count + 1)
    return scales


def describe_rates(optimizer: torch.optim.Optimizer, decay: float | None) -> str:
    """A line for the log; empty without ``decay``."""
    if decay is None:
        return ""
    rates = sorted({group["base_lr"] for group in optimizer.param_groups})
    return (
        f"optim.layer_decay={decay:g}: {len(optimizer.param_groups)} parameter groups, learning "
        f"rates from {rates[0]:.3g} to {rates[-1]:.3g}"
    )
