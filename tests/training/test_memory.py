"""Less memory, the same numbers: cached gradients, recomputed blocks; and what a step costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.jobs.assemble import RunComponents, assemble_run
from itr.models.base import RetrievalModel
from itr.training.block_wrappers import checkpoint_activations, encoder_blocks
from itr.training.config import check_config
from itr.training.cost import step_cost
from itr.training.grad_cache import GradCacheStep
from itr.training.step import Step
from tests.conftest import compose
from tests.training.sizes import CALM, SIZES, overrides

TERMS = {"albef": ("task=pretrain",)}  # with masked words, too


def parts_of(model: str, world: Path, *more: str) -> RunComponents:
    values = compose("train", overrides(model, world, "batch_size=20", *more))
    torch.manual_seed(0)
    return assemble_run(check_config(values), values)


def clock_of(parts: RunComponents) -> Clock:
    return Clock(batch=1, batches_per_epoch=parts.loader.batches_per_epoch, forwards=100)


def gradients(parts: RunComponents, chunk: int | None = None) -> dict[str, Any]:
    """Losses and gradients of the first batch, at a clock at which everything is awake."""
    model, device = parts.model.train(), torch.device("cpu")
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    rest = (model, device, None, scaler)
    step = Step(*rest) if chunk is None else GradCacheStep(chunk, *rest)
    clock, batch = clock_of(parts), next(iter(parts.loader.epoch(0)))
    torch.manual_seed(1)
    step.set_requires_grad(clock)
    model.before_step(clock)
    with step.no_sync(last=True):
        total, terms = step.forward(batch, clock, Draws())
        step.backward(total, 1)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**terms.losses, **found}


@pytest.mark.parametrize("model", ["alip", "albef", "multisea"])
def test_cached_gradients_are_those_of_the_whole_batch(model: str, world: Path) -> None:
    calm = (*CALM[model], *TERMS.get(model, ()))
    if model == "alip":
        calm += ("model.image.depth=2", "model.image.patch=16")
    whole, pieces = (gradients(parts_of(model, world, *calm), chunk) for chunk in (None, 7))
    assert set(whole) == set(pieces)
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_dropout_of_a_piece_is_the_same_in_both_passes(world: Path) -> None:
    # One piece that holds the whole batch draws what the plain step draws.
    whole, piece = (gradients(parts_of("multisea", world), chunk) for chunk in (None, 20))
    for name, value in whole.items():
        torch.testing.assert_close(piece[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("model", ["hrem", "user", "vse"])
def test_a_model_that_sees_the_whole_batch_refuses_pieces(model: str, world: Path) -> None:
    given = overrides(model, world, "batch_size=20", "grad_cache=5")
    with pytest.raises(ConfigError, match="grad_cache=5: .* cannot be trained on cached"):
        check_config(compose("train", given))


def test_batch_statistics_refuse_pieces(world: Path) -> None:
    parts = parts_of("alip", world, "model.image.depth=[1,1,1,1]", "model.image.width=16")
    with pytest.raises(ConfigError, match="normalises over the whole batch"):
        gradients(parts, 5)


@pytest.mark.parametrize("model", sorted(SIZES))
def test_nobody_forgot_to_say_that_it_sleeps(model: str, world: Path) -> None:
    """Several devices wait for the gradient of every parameter that is awake."""
    parts = parts_of(model, world, *TERMS.get(model, ()))
    every = parts.model.weights
    weights = [every] + [{**every, term: 0.0} for term in every if len(every) > 1]
    batch, draws = next(iter(parts.loader.epoch(0))), Draws()
    cost = step_cost(parts.model.train(), batch, clock_of(parts), None)
    assert cost is not None and cost.flops > 0 and cost.activations > 0
    if parts.model.cacheable():
        less = step_cost(parts.model, batch, clock_of(parts), None, chunk=2)
        assert less is not None and less.flops == cost.flops
        assert less.activations < 0.3 * cost.activations  # matching and words in pieces, too
    step = Step(parts.model, torch.device("cpu"), None, torch.amp.GradScaler("cpu", enabled=False))
    for clock in (Clock(batches_per_epoch=3), clock_of(parts)):
        for chosen in weights:
            parts.model.weights = chosen
            if model == "hrem" and not chosen["base"]:
                continue  # refused when it is built: nothing would be trained in the warm-up
            if model == "user" and not chosen["queue"]:
                continue  # built without queues
            step.asleep = None
            step.set_requires_grad(clock)
            parts.model.train().zero_grad(set_to_none=True)
            parts.model.before_step(clock)
            step.forward(batch, clock, draws)[0].backward()
            awake = {n: p for n, p in parts.model.named_parameters() if p.requires_grad}
            forgotten = [name for name, parameter in awake.items() if parameter.grad is None]
            assert awake and not forgotten, (chosen, forgotten)


@pytest.mark.parametrize("model", sorted(SIZES))
def test_recomputed_blocks_give_the_same_gradient(model: str, world: Path) -> None:
    parts = parts_of(model, world)
    state = {name: value.clone() for name, value in parts.model.state_dict().items()}
    plain = gradients(parts)
    parts.model.load_state_dict(state)
    parts.model.zero_grad(set_to_none=True)
    blocks = encoder_blocks(parts.model)
    assert blocks and not any(name.startswith("twin") for name in blocks)
    assert checkpoint_activations(parts.model) == len(blocks)
    for name, value in gradients(parts).items():
        assert torch.equal(value, plain[name]), name


def test_what_a_step_costs(world: Path) -> None:
    parts = parts_of("vse", world)
    model: RetrievalModel = parts.model
    batch = next(iter(parts.loader.epoch(0)))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    cost = step_cost(model.train(), batch, clock_of(parts), None)
    assert cost is not None
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    half = dataclasses.replace(batch.split(10)[0], positive_pairs=0)
    less = step_cost(model, half, clock_of(parts), None)
    assert less is not None
    # The projection of the regions alone: 20 pictures of 12 regions, two passes, no input gradient.
    regions, width = batch.regions.shape[1:]  # type: ignore[union-attr]
    assert cost.flops > 2 * 2 * 20 * regions * width * 32
    assert 1.5 < cost.flops / less.flops < 2.1  # the pooling's own network costs the same
    assert cost.activations > less.activations > batch.regions.nbytes / 2  # type: ignore[union-attr]
