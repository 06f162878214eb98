"""Which loss fits which model: the table, two steps of every allowed pair, every refusal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from benchmarks.operator_counts import count_operators, host_syncs
from itr.compose import compose as composed
from itr.errors import ConfigError
from itr.jobs.commands.losses_cli import loss_choices, model_names, table, verdict, with_loss
from itr.jobs.train import train
from itr.models.compatibility import judge, notes
from itr.training.config import check_config
from tests.conftest import CONF, ROOT, compose
from tests.models.tiny import ALL_SIZES, Steps, batch_for, build, build_from

# One letter for each of these models: y allowed, h with hard matches, n refused.
JUDGED = ("albef", "alip", "hrem", "multisea", "user", "vse", "clip")
EXPECTED = {
    "loss=distance_triplet": "hyynyyy",
    "loss=distance_triplet loss.default.exhausted=zero": "hyynyyy",
    "loss=infonce": "yyyyyyy",
    "loss=infonce loss.default.use_model_scale=false": "yyyyyyy",
    "loss=infonce loss.default.learnable=true": "nnynyyn",
    "loss=infonce loss.default.learnable=true loss.default.use_model_scale=false": "yyyyyyy",
    "loss=sigmoid": "hyyyyyy",
    "loss=sigmoid loss.default.learnable=false": "hyyyyyy",
    "loss=sigmoid loss.default.use_model_scale=true": "nnynyyn",
    "loss=sigmoid loss.default.learnable=false loss.default.use_model_scale=true": "hyyyyyy",
    "loss=triplet": "hyyyyyy",
    "loss=triplet loss.default.negatives=sum": "hyyyyyy",
    "loss=triplet loss.default.negatives=hardest": "hyyyyyy",
    "loss=triplet loss.default.mask_same_image=false": "hyyyyyy",
    "loss=uto": "hyynyyy",
    "loss=uto loss.default.positive=drop": "hyynyyy",
    "loss=uto loss.default.mask_same_image=true": "hyynyyy",
    "loss=albef": "ynnynny",
    "loss=alip": "nynnnnn",
    "loss=clip": "ynnynny",
    "loss=hrem": "nnynnnn",
    "loss=multisea": "ynnynny",
    "loss=user": "nnnnynn",
    "loss=vse": "nnnnnyn",
}
MODELS, LOSSES = model_names(), loss_choices()
KINDS = {"allowed": "y", "hard": "h", "refused": "n"}
PAIRS = [
    (model, loss, letter)
    for loss, letters in EXPECTED.items()
    for model, letter in zip(JUDGED, letters, strict=True)
]
UNJUDGED = [  # pairs of a new model or loss: whatever the suite allows has to train
    (model, loss, None)
    for model in MODELS
    for loss in LOSSES
    if model not in JUDGED or loss not in EXPECTED
]
ALLOWED = [(model, loss, letter) for model, loss, letter in PAIRS if letter != "n"]
REFUSED = [(model, loss) for model, loss, letter in PAIRS if letter == "n"]


@pytest.fixture(scope="module")
def roots() -> dict[str, DictConfig]:
    """``train.py model=...`` in a tiny size, its loss still to be chosen."""
    found = {}
    for model in MODELS:
        found[model] = composed("train", [f"model={model}", *ALL_SIZES[model]])
    return found


def test_the_table_of_losses_is_up_to_date_and_complete() -> None:
    assert set(EXPECTED) <= set(LOSSES)
    files = {path.stem for path in (CONF / "loss").glob("*.yaml")}
    assert files == {loss.split()[0].removeprefix("loss=") for loss in LOSSES}
    assert set(JUDGED) <= set(MODELS)
    assert (ROOT / "docs" / "losses.md").read_text() == table(), "itr losses > ..."


def test_with_loss_equals_the_composed_configuration(roots: dict[str, DictConfig]) -> None:
    """Composing every pair with Hydra would take too long."""
    for model, loss in (
        ("albef", "loss=triplet loss.default.negatives=sum"),
        ("user", "loss=distance_triplet"),
    ):
        whole = compose("train", [f"model={model}", *ALL_SIZES[model], *loss.split()])
        assert with_loss(roots[model], loss) == whole


@pytest.mark.parametrize(("model", "loss", "letter"), [*ALLOWED, *UNJUDGED])
def test_allowed_pairs_train(
    roots: dict[str, DictConfig], model: str, loss: str, letter: str | None
) -> None:
    """Two steps with a repeated image, then a batch of one image: finite, nothing asks the device,
    and whoever does not sleep gets a gradient and moves."""
    values = with_loss(roots[model], loss)
    found = verdict(values)
    if letter is None and found.kind == "refused":
        assert found.reason
        return
    letter = KINDS[found.kind] if letter is None else letter
    assert KINDS[found.kind] == letter
    steps = Steps(model, made := build_from(values))
    said = notes(made)
    assert bool(said) == (letter == "h") and all("distillation" in line for line in said)
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    for number, ids in enumerate(([0, 1, 1, 2, 3, 4], [5, 6, 7, 0, 8, 9])):
        steps.clock.epoch = number  # the hinge's first epoch, and what follows
        totals: list[torch.Tensor] = []
        given = batch_for(model, 6, ids, seed=number)
        counts: Counter[str] = Counter()
        if number == 0:  # counting takes as long as the step
            totals.append(steps.micro_batch(given))
        else:
            counts = count_operators(
                lambda given=given, totals=totals: totals.append(steps.micro_batch(given))
            )
        assert torch.isfinite(totals[0]) and not host_syncs(counts)
        for name, parameter in made.named_parameters():
            assert (parameter.grad is None) == steps.sleeps(name), name
        steps.update()
    moved = {name for name, p in made.named_parameters() if not torch.equal(p, before[name])}
    towers = {"hrem", "user", "vse"} & {model} and {"images.project.weight", "texts.project.weight"}
    assert moved >= (towers or set()) and len(moved) > len(before) / 3
    assert torch.isfinite(steps(batch_for(model, 6, [3] * 6)))
    assert all(torch.isfinite(value).all() for value in made.state_dict().values())


@pytest.mark.parametrize(("model", "loss"), REFUSED)
def test_refused_pairs_name_the_reason(roots: dict[str, DictConfig], model: str, loss: str) -> None:
    name = loss.split()[0].removeprefix("loss=")
    if name in MODELS:
        message = r"has no such slot.*loss=triplet|slot 'queue'.*loss=triplet"
    elif name in ("uto", "distance_triplet"):
        message = "cosine.*dot products.*loss=infonce, triplet or sigmoid"
    else:
        message = "temperature.*use_model_scale=false.*learnable=false"
    with pytest.raises(ConfigError, match=rf"loss(\.slots\.|={name}).*({message})"):
        check_config(with_loss(roots[model], loss))


@pytest.mark.parametrize("given", [["model=multisea", "loss=uto"], ["model=vse", "loss=hrem"]])
def test_refused_before_any_data_is_read(given: list[str], tmp_path: Path) -> None:
    places = [f"data.root={tmp_path / 'data'}", f"out={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=r"loss\.slots\."):
        train(compose("train", [*given, *places]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "option", "loss", "letter"),
    [
        ("multisea", "model.distill=true", "loss=triplet", "h"),
        ("multisea", "model.distill=true", "loss=infonce", "y"),
        ("albef", "model.distill=false", "loss=sigmoid", "y"),
        ("hrem", "model.normalize_images=false", "loss=hrem", "n"),
        ("vse", "model.normalize_texts=false", "loss=uto", "n"),
        ("user", "model.normalize_images=false", "loss=user", "n"),
        ("vse", "model.normalize_texts=false", "loss=infonce", "y"),
    ],
)
def test_compatibility_depends_on_model_options(
    model: str, option: str, loss: str, letter: str
) -> None:
    values = compose("train", [f"model={model}", *ALL_SIZES[model], option, loss])
    found = verdict(values)
    assert KINDS[found.kind] == letter
    if letter == "n":
        assert "pass model.normalize_images" in found.reason
        return
    assert torch.isfinite(Steps(model, build_from(values))(batch_for(model)))


def test_a_generic_loss_with_a_models_other_terms() -> None:
    """model=albef loss=triplet loss.weights.itm=0.5"""
    chosen = ("loss=triplet", "loss.weights.itc=1", "loss.weights.itm=1")
    whole = build("albef", *chosen)
    half = build("albef", *chosen[:2], "loss.weights.itm=0.5")
    given = batch_for("albef")
    totals = [Steps("albef", one).micro_batch(given).item() for one in (whole, half)]
    itm = 2 * (totals[0] - totals[1])
    terms = Steps("albef", build("albef", *chosen))
    terms.model.before_step(terms.clock)
    found = terms.model(given, terms.clock, terms.draws).losses
    itc, expected = (found[name].item() for name in ("itc", "itm"))
    assert itm == pytest.approx(expected, rel=1e-4)
    assert totals[1] == pytest.approx(itc + 0.5 * expected, rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_terms_of_weight_zero_freeze_their_modules(
    roots: dict[str, DictConfig], model: str
) -> None:
    values = with_loss(roots[model], "loss=sigmoid")
    terms = [term for term in values["loss"]["weights"] if term != "mlm"]
    for term in terms if len(terms) > 1 else ():
        values["loss"]["weights"] = {**values["loss"]["weights"], term: 0.0}
        steps = Steps(model, made := build_from(values))
        steps.micro_batch(batch_for(model))
        for name, parameter in made.named_parameters():
            assert (parameter.grad is None) == steps.sleeps(name), (term, name)
        values["loss"]["weights"][term] = 1.0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"itc": 0.0, "itm": 0.0, "mlm": 0.0}, "loss.weights: .*pass loss.weights.itc=1"),
        ({"itc": 0.0, "itm": 0.0, "mlm": 1.0}, "loss.weights: .*task=retrieval.* mlm"),
        ({"itc": -1.0, "itm": 1.0, "mlm": 1.0}, "loss.weights.itc=-1.0"),
        ({"itc": float("nan"), "itm": 1.0, "mlm": 1.0}, "loss.weights.itc=nan"),
    ],
)
def test_weights_that_train_nothing(weights: dict[str, float], message: str) -> None:
    values: dict[str, Any] = compose("train", ["model=albef", *ALL_SIZES["albef"]])
    values["loss"]["weights"] = weights
    with pytest.raises(ConfigError, match=message):
        build_from(values)


def test_every_slot_is_checked() -> None:
    made = build("user", "loss=uto")
    kinds = {judge(type(made), made.config, slot, loss).kind for slot, loss in made.slots.items()}
    assert kinds == {"allowed"}
