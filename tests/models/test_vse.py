"""VSE-infinity beyond its golden cases: its laws of speed, its files, its mistakes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from benchmarks.operator_counts import count_operators, host_syncs
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.nn.bert.bert import bert_states
from tests.models.tiny import Steps, batch, build


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


def test_region_drop_takes_few_operators_and_does_not_synchronize() -> None:
    """On a CPU the GRU of the pooling counts a dozen operators a position; on a GPU it is one."""
    counts = []
    for size in (8, 16):
        steps = Steps("vse", build("vse"))
        drop = torch.arange(6) < torch.randint(3, 7, (size, 1))  # region dropout, the worst case
        given = batch(size, region_mask=drop, min_region_length=3)
        steps(given)
        counts.append(count_operators(lambda steps=steps, given=given: steps(given)))
    assert counts[0] == counts[1]
    assert not host_syncs(counts[0])
    assert counts[0].total() <= 1400, counts[0].most_common(12)


def test_other_poolings_are_plain_means_and_the_first_word() -> None:
    model, given = build("vse", "model.image_pool=mean", "model.text_pool=cls").eval(), batch()
    lengths = torch.tensor([3, 6, 4, 5, 1, 6, 2, 6])[: len(given)]
    mask = torch.arange(given.regions.shape[1]) < lengths[:, None]
    images, texts = model.images, model.texts
    regions = images.project(given.regions) + images.mlp(given.regions)
    means = [row[:length].mean(dim=0) for row, length in zip(regions, lengths, strict=True)]
    expected = functional.normalize(torch.stack(means), dim=1)
    torch.testing.assert_close(images(given.regions, mask), expected)
    first = texts.project(bert_states(texts.bert, given.tokens))[:, 0]
    found = model.encode_texts(given).pooled
    torch.testing.assert_close(found, functional.normalize(first, dim=1))
    with pytest.raises(ConfigError, match=r"model.text_pool=max: .* gpo, mean, cls"):
        build("vse", "model.text_pool=max")


def test_overfits_one_batch() -> None:
    steps = Steps("vse", build("vse", "model.text.dropout=0", "model.bert_lr_factor=1.0"))
    given = batch()
    losses = [float(steps(given)) for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]


def test_incompatible_losses_are_rejected_before_data_is_read() -> None:
    with pytest.raises(ConfigError, match="normalize_images=true"):
        build("vse", "loss=uto", "model.normalize_images=false")
    with pytest.raises(ConfigError, match="has no such slot"):
        build("vse", "+loss.slots.queue={_target_: itr.losses.uto.UTO}")
    with pytest.raises(ConfigError, match="has no such term"):
        build("vse", "+loss.weights.queue=1")
