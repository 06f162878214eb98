"""Messages about a published recipe: where this run departs from what its authors did."""

from __future__ import annotations

from itr import parallel
from itr.training.config import RecipeConfig, TrainConfig


def precision_line(recipe: RecipeConfig, precision: str) -> str:
    """The precision of this run, compared with that of the recipe's authors if it is known."""
    if recipe.precision is None:
        return f"precision: {precision}"
    if recipe.precision == precision:
        return f"precision: {precision}, as {recipe.name}'s authors"
    return (
        f"precision: {precision}; {recipe.name}'s authors trained in {recipe.precision} "
        f"(precision={recipe.precision})"
    )


def departures(config: TrainConfig) -> list[str]:
    """Warnings about settings that silently make this a different training than the recipe's."""
    recipe, messages = config.recipe, []
    if recipe.pairs_per_device is not None and (
        line := _other_share(config, recipe.pairs_per_device)
    ):
        messages.append(line)
    if recipe.init is not None and config.model.get("init") is None:
        messages.append(
            f"model.init is not set: {recipe.name} fine-tunes a pretrained model, not only "
            f"pretrained encoders; pass model.init={recipe.init}"
        )
    return messages


def _other_share(config: TrainConfig, theirs: int) -> str | None:
    """A warning if another number of pairs per device changes the negatives of each pair."""
    world = parallel.planned_world_size(config.devices, config.nodes)
    pairs = config.batch_size // world
    if pairs == theirs:
        return None
    fixes = []
    if config.nodes == 1 and config.batch_size % theirs == 0 and config.batch_size > theirs:
        fixes.append(f"devices={config.batch_size // theirs}")
    accumulate = max(1, config.batch_size * config.accumulate // (theirs * world))
    fixes.append(f"batch_size={theirs * world} accumulate={accumulate}")
    return (
        f"{pairs} pairs on each device: negatives are drawn among them, and the authors of "
        f"{config.recipe.name} had {theirs}; pass {' or '.join(fixes)}"
    )
