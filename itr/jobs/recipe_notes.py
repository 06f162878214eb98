"""What a run says of its published recipe: where it does something else than the authors did."""

from __future__ import annotations

from itr import parallel
from itr.training.config import RecipeConfig, TrainConfig


def precision_line(recipe: RecipeConfig, precision: str) -> str:
    """The arithmetic of this run, beside that of the recipe's authors where it is known."""
    if recipe.precision is None:
        return f"precision: {precision}"
    if recipe.precision == precision:
        return f"precision: {precision}, as {recipe.name}'s authors"
    return (
        f"precision: {precision}; {recipe.name}'s authors trained in {recipe.precision} "
        f"(precision={recipe.precision})"
    )


def departures(config: TrainConfig) -> list[str]:
    """What makes this another training than the recipe's, though nobody may have meant it."""
    recipe, told = config.recipe, []
    if recipe.pairs_per_device is not None and (
        line := _other_share(config, recipe.pairs_per_device)
    ):
        told.append(line)
    if recipe.init is not None and config.model.get("init") is None:
        told.append(
            f"model.init is not set: {recipe.name} starts from pre-trained weights, not from its "
            f"towers' own; type model.init={recipe.init}"
        )
    return told


def _other_share(config: TrainConfig, theirs: int) -> str | None:
    """Where negatives are drawn among the pairs of a device, their number is part of the method."""
    world = parallel.planned_world_size(config.devices, config.nodes)
    own = config.batch_size // world
    if own == theirs:
        return None
    ways = []
    if config.nodes == 1 and config.batch_size % theirs == 0 and config.batch_size > theirs:
        ways.append(f"devices={config.batch_size // theirs}")
    losses = max(1, config.batch_size * config.accumulate // (theirs * world))
    ways.append(f"batch_size={theirs * world} accumulate={losses}")
    return (
        f"{own} pairs on each device: negatives come from them, and {config.recipe.name}'s authors "
        f"had {theirs}; type {' or '.join(ways)}"
    )
