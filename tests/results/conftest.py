"""Tiny finished runs, shared by the tests of their results."""

from __future__ import annotations

from pathlib import Path

import pytest

from itr.jobs.train import train
from tests.conftest import TINY, compose
from tests.training.sizes import overrides

KEYS = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DIR")


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the tiny scenes, tracked offline by every tracker."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    settings = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}", f"out={folder}"]
    chosen = [o for o in TINY if not o.startswith("tracker=")]
    with pytest.MonkeyPatch.context() as patch:
        for name in KEYS:
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_CONFIG_DIR", str(folder.parent / "settings"))
        patch.setenv("NETRC", str(folder.parent / "netrc"))
        patch.setenv("TRACKIO_DIR", str(folder.parent / "trackio"))  # read at its import
        trackers = ["tracker=[wandb,trackio,tensorboard]", "tracker.wandb.mode=offline"]
        train(compose("train", [*chosen, *settings, *trackers]))
    return folder


@pytest.fixture(scope="session")
def of_pixels(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a model that reads pixels, re-ranks, and computes heat maps."""
    folder = tmp_path_factory.mktemp("of_pixels") / "run"
    more = ("batch_size=20", "trainer.max_steps=1", "model.image.patch=8", f"out={folder}")
    train(compose("train", overrides("albef", world, *more)))
    return folder
