"""Frozen modules: nothing of them changes, until they are thawed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from itr.clock import Clock
from itr.errors import ConfigError
from itr.jobs.train import train
from itr.nn.batch_norm import batch_norms
from itr.training.config import check_config
from itr.training.parameters.freezing import Freezing
from tests.conftest import compose
from tests.models.model_sizes import MODEL_SIZES
from tests.models.tiny import build
from tests.training.sizes import overrides


def settings(*options: str):
    return check_config(compose("train", list(options))).trainer


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_both_towers_of_every_model_can_be_frozen(name: str) -> None:
    model = build(name)
    parts = []
    for tower in ("image", "text"):
        freezing = Freezing(model, settings(f"trainer.freeze=[{tower}]"))
        trained, total = freezing.counts()
        assert 0 < trained < total and f"{trained:,} of {total:,}" in freezing.describe()
        below = tuple(f"{n}." for n in freezing.names)
        parts.append({n for n, _ in model.named_parameters() if n.startswith(below)})
    assert parts[0] and parts[1] and not parts[0] & parts[1]
    names = list(model.state_dict())
    values = {value.data_ptr() for value in model.state_dict().values() if value.numel()}
    assert len(values) == len([n for n in names if model.state_dict()[n].numel()])  # saved once


def test_frozen_weights_have_no_moments_and_stay(world: Path, tmp_path: Path) -> None:
    given = overrides("vse", world, "batch_size=20", "trainer.max_steps=4", "trainer.log_every=1")
    runs = {}
    for name, more in (("frozen", []), ("thawed", ["trainer.thaw_at=3"])):
        out = tmp_path / name
        train(compose("train", [*given, "trainer.freeze=[text]", *more, f"out={out}"]))
        assert "trainer.freeze: texts frozen" in (out / "train.log").read_text()
        runs[name] = load_file(out / "checkpoints" / "last.safetensors")
    begun = build_weights(given)
    frozen, thawed = runs["frozen"], runs["thawed"]
    texts = [name for name in begun if name.startswith("texts.")]
    assert texts and all(torch.equal(frozen[f"model/{n}"], begun[n]) for n in texts)
    assert not any(name.startswith("optim/texts.") for name in frozen)
    assert any(name.startswith("optim/images.") for name in frozen)
    assert not all(torch.equal(thawed[f"model/{n}"], begun[n]) for n in texts)


def build_weights(given: list[str]) -> dict[str, torch.Tensor]:
    """The initial weights of a run."""
    from itr.jobs.assemble import assemble_run
    from itr.training.process_setup import configure_torch

    values = compose("train", given)
    config = check_config(values)
    configure_torch(config)
    return assemble_run(config, values).model.state_dict()


def test_batch_normalization_of_a_frozen_module_is_in_eval_mode() -> None:
    model = build("vse")
    freezing = Freezing(model, settings("trainer.freeze=[image]", "trainer.thaw_at=5"))
    for updates, training in ((0, False), (5, True)):
        model.train()
        freezing.hold(Clock(updates=updates))
        norms = [model.images.get_submodule(name) for name in batch_norms(model.images)]
        assert norms and all(norm.training is training for norm in norms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["trainer.freeze=[txt]"], r"trainer\.freeze=txt: .*expected image, text"),
        (["trainer.thaw_at=3"], r"trainer\.thaw_at=3: nothing is frozen"),
        (["trainer.freeze=[images,texts,relevance,graph]"], "all .* parameters are frozen"),
    ],
)
def test_what_cannot_be_frozen_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Freezing(build("hrem"), settings(*options))


def test_a_wrong_name_leaves_no_run_folder(world: Path, tmp_path: Path) -> None:
    given = overrides("vse", world, "trainer.freeze=[imge]", f"out={tmp_path / 'run'}")
    with pytest.raises(ConfigError, match="nearest: image"):
        train(compose("train", given))
    assert not (tmp_path / "run").exists()
