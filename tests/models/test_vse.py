"""VSE-infinity beyond its golden cases: its recipes, its laws of speed, its files, its mistakes."""

from __future__ import annotations

import pytest
import torch

from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.training.config import check_config
from tests.conftest import compose
from tests.models.tiny import SYNCS, Steps, batch, build, operators


@pytest.mark.parametrize("data", ["f30k", "coco"])
def test_the_recipes_are_the_authors(data: str) -> None:
    config = check_config(compose("train", ["model=vse", f"data={data}"]))
    assert config.recipe.name == f"vse_{data}_retrieval"
    assert (config.trainer.epochs, config.batch_size) == (25, 128)
    optim = config.optim
    assert (optim.lr, optim.weight_decay, optim.clip_norm) == (5e-4, 1e-4, 2.0)
    assert (optim.schedule.kind, optim.schedule.milestones) == ("step", [15])
    assert config.model["region_drop"] == 0.2 and config.model["embed_size"] == 1024
    slot = config.loss.slots["batch"]
    assert (slot["margin"], slot["negatives"], slot["warmup_epochs"]) == (0.2, "warmup", 1)


def test_the_epoch_switches_to_the_hardest_negative() -> None:
    model, given = build("vse").eval(), batch()
    values = model.encode_images(given).pooled @ model.encode_texts(given).pooled.t()
    own = values.diagonal()
    rows = (0.2 + values - own[:, None]).relu().fill_diagonal_(0.0)
    columns = (0.2 + values - own).relu().fill_diagonal_(0.0)
    for epoch, expected in (
        (0, rows.sum() + columns.sum()),
        (1, rows.max(dim=1).values.sum() + columns.max(dim=0).values.sum()),
    ):
        found = model(given, Clock(epoch=epoch), Draws()).losses["batch"]
        torch.testing.assert_close(found, expected)


def test_a_step_asks_the_device_nothing_and_its_operators_do_not_grow() -> None:
    """On a CPU the GRU of the pooling counts a dozen operators a position; on a GPU it is one."""
    counts = []
    for size in (8, 16):
        steps = Steps("vse", build("vse"))
        drop = torch.arange(6) < torch.randint(3, 7, (size, 1))  # region dropout, the worst case
        given = batch(size, region_mask=drop, min_region_length=3)
        steps(given)
        counts.append(operators(lambda steps=steps, given=given: steps.micro_batch(given)))
    assert counts[0] == counts[1]
    assert not SYNCS & set(counts[0]), counts[0]
    assert counts[0].total() <= 1400, counts[0].most_common(12)


def test_it_learns_a_batch_by_heart() -> None:
    steps = Steps("vse", build("vse", "model.text.dropout=0", "model.bert_lr_factor=1.0"))
    given = batch()
    losses = [float(steps(given)) for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]


def test_misfits_are_refused_before_any_data_is_read() -> None:
    with pytest.raises(ConfigError, match="normalise_images=true"):
        build("vse", "loss=uto", "model.normalise_images=false")
    with pytest.raises(ConfigError, match="has no such slot"):
        build("vse", "+loss.slots.queue={_target_: itr.losses.uto.UTO}")
    with pytest.raises(ConfigError, match="has no such term"):
        build("vse", "+loss.weights.queue=1")
