"""Less memory, same numbers: gradient caching, activation checkpointing; the cost of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.jobs.assemble import RunComponents, assemble_run
from itr.training.block_wrappers import checkpoint_activations, encoder_blocks
from itr.training.config import check_config
from itr.training.cost import StepCost, describe_memory, peak_tflops
from itr.training.grad_cache import GradCacheStep
from itr.training.step import Step
from tests.conftest import compose
from tests.training.sizes import NO_DROPOUT, SIZES, overrides

TERMS = {"albef": ("task=pretrain",)}  # with masked words, too


def parts_of(model: str, world: Path, *more: str) -> RunComponents:
    values = compose("train", overrides(model, world, "batch_size=20", *more))
    torch.manual_seed(0)
    return assemble_run(check_config(values), values)


def clock_of(parts: RunComponents) -> Clock:
    return Clock(batch=1, batches_per_epoch=parts.loader.batches_per_epoch, forwards=100)


def gradients(parts: RunComponents, chunk: int | None = None) -> dict[str, Any]:
    """Losses and gradients of the first batch, at a clock at which no module sleeps."""
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
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**terms.losses, **grads}


@pytest.mark.parametrize("model", ["alip", "albef", "clip", "multisea"])
def test_cached_gradients_are_those_of_the_whole_batch(model: str, world: Path) -> None:
    calm = (*NO_DROPOUT[model], *TERMS.get(model, ()))
    if model == "alip":
        calm += ("model.image.depth=2", "model.image.patch=16")
    whole, pieces = (gradients(parts_of(model, world, *calm), chunk) for chunk in (None, 7))
    assert set(whole) == set(pieces)
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_dropout_of_a_chunk_is_the_same_in_both_passes(world: Path) -> None:
    # One chunk with the whole batch draws what the plain step draws.
    whole, piece = (gradients(parts_of("multisea", world), chunk) for chunk in (None, 20))
    for name, value in whole.items():
        torch.testing.assert_close(piece[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("model", ["hrem", "user", "vse"])
def test_models_with_batch_norm_refuse_gradient_caching(model: str, world: Path) -> None:
    given = overrides(model, world, "batch_size=20", "grad_cache=5")
    with pytest.raises(ConfigError, match="grad_cache=5"):
        check_config(compose("train", given))


def test_gradient_caching_refuses_batch_norm(world: Path) -> None:
    parts = parts_of("alip", world, "model.image.depth=[1,1,1,1]", "model.image.width=16")
    with pytest.raises(ConfigError, match="grad_cache=5.*grad_cache=null"):
        gradients(parts, 5)


@pytest.mark.parametrize("model", sorted(SIZES))
def test_every_parameter_without_gradient_is_listed_as_sleeping(model: str, world: Path) -> None:
    """Several devices wait for the gradient of every parameter that is not frozen."""
    parts = parts_of(model, world, *TERMS.get(model, ()))
    every = parts.model.weights
    weights = [every] + [{**every, term: 0.0} for term in every if len(every) > 1]
    batch, draws = next(iter(parts.loader.epoch(0))), Draws()
    step = Step(parts.model, torch.device("cpu"), None, torch.amp.GradScaler("cpu", enabled=False))
    for clock in (Clock(batches_per_epoch=3), clock_of(parts)):
        for chosen in weights:
            parts.model.weights = chosen
            if model == "hrem" and not chosen["base"]:
                continue  # refused when it is built: nothing would be trained in the warm-up
            if model == "user" and not chosen["queue"]:
                continue  # built without queues
            step.sleeping = None
            step.set_requires_grad(clock)
            parts.model.train().zero_grad(set_to_none=True)
            parts.model.before_step(clock)
            step.forward(batch, clock, draws)[0].backward()
            trained = {n: p for n, p in parts.model.named_parameters() if p.requires_grad}
            missing = [name for name, parameter in trained.items() if parameter.grad is None]
            assert trained and not missing, (chosen, missing)


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


def saved_bytes(model: torch.nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that ``forward`` keeps for its backward pass, beside weights and buffers."""
    tensors = (*model.parameters(), *model.buffers())
    weights = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    storages: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        result = forward()  # kept alive, so that no address is used twice
    del result
    return sum(storages.values())


@pytest.mark.parametrize("model", sorted(SIZES))
def test_every_recomputed_block_is_called_and_keeps_less(model: str, world: Path) -> None:
    """A block whose parts are called one by one is neither recomputed nor compiled."""
    parts = parts_of(model, world, *TERMS.get(model, ()))
    blocks = encoder_blocks(parts.model.train())
    batch, clock, called = next(iter(parts.loader.epoch(0))), clock_of(parts), set()
    for name, block in blocks.items():
        block.register_forward_hook(lambda *_, name=name: called.add(name))
    parts.model.before_step(clock)
    plain = saved_bytes(parts.model, lambda: parts.model(batch, clock, Draws()))
    checkpoint_activations(parts.model)
    called.clear()
    recomputed = saved_bytes(parts.model, lambda: parts.model(batch, clock, Draws()))
    assert called == set(blocks)
    assert recomputed < (0.5 if model == "multisea" else 1.0) * plain


@pytest.mark.parametrize("model", ["alip", "albef", "clip", "multisea"])
def test_gradient_caching_keeps_few_activations(model: str, world: Path) -> None:
    """At its largest, one chunk in the encoders or the loss of the whole batch."""
    parts = parts_of(model, world, *TERMS.get(model, ()))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    rest = (parts.model.train(), torch.device("cpu"), None, scaler)
    model, batch, clock = parts.model, next(iter(parts.loader.epoch(0))), clock_of(parts)
    step = Step(*rest)
    step.set_requires_grad(clock)
    model.before_step(clock)
    whole = saved_bytes(model, lambda: step.forward(batch, clock, Draws()))
    chunked = GradCacheStep(2, *rest)  # from here on the model works in chunks
    chunked.set_requires_grad(clock)
    encoders = saved_bytes(model, lambda: model.states(batch.split(2)[0]))
    loss = saved_bytes(model, lambda: chunked.forward(batch, clock, Draws()))
    # Matching and masked words are computed in chunks, too.
    assert 0 < encoders + loss < 0.3 * whole


def test_rates_of_a_device() -> None:
    cost = StepCost(torch.device("cpu"), count_operations=True)
    assert cost.rates(10.0, 1, "fp32") == {}
    cost.flops, cost.pairs = 10**12, 5
    assert cost.rates(10.0, 2, "fp32") == {"train/tflops_per_device": 1.0}
    for name, precision, peak in (
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA H100 80GB HBM3", "tf32", 495.0),
        ("NVIDIA H100 PCIe", "fp16", 756.0),
        ("NVIDIA L40S", "fp32", 91.6),
        ("NVIDIA A1000 Laptop GPU", "bf16", None),
    ):
        assert peak_tflops(name, precision) == peak, name


def test_operations_are_counted_once_and_change_no_number(world: Path) -> None:
    """The counter sees forward and backward of the first step only."""
    counted: dict[int, int] = {}
    results: list[dict[str, Any]] = []
    for pairs in (0, 20, 10):  # 0: not counted
        parts = parts_of("vse", world)
        cost = StepCost(torch.device("cpu"), count_operations=pairs > 0)
        batch = next(iter(parts.loader.epoch(0)))
        if pairs == 10:
            batch = dataclasses.replace(batch.split(10)[0], positive_pairs=0)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        step = Step(parts.model.train(), torch.device("cpu"), None, scaler)
        clock = clock_of(parts)
        step.set_requires_grad(clock)
        torch.manual_seed(1)
        for _ in range(2):
            with cost.measure(len(batch)):
                total, terms = step.forward(batch, clock, Draws())
                step.backward(total, 1)
        grads = {n: p.grad for n, p in parts.model.named_parameters() if p.grad is not None}
        results.append({**terms.losses, **grads})
        counted[pairs] = cost.flops
        assert bool(cost.describe_once()) == (pairs > 0) and not cost.describe_once()
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    # The projection of the regions alone: 20 images of 12 regions, two passes, no input gradient.
    regions, width = batch.regions.shape[1:]  # type: ignore[union-attr]
    assert counted[0] == 0 and counted[20] > 2 * 2 * 20 * regions * width * 32
    assert 1.5 < counted[20] / counted[10] < 2.1  # the pooling's own network costs the same


def test_memory_of_weights_gradients_and_moments() -> None:
    model = torch.nn.Linear(2**18, 256, bias=False)  # 256 MiB of weights
    line = describe_memory(model)
    assert "67.1 M" in line and "0.25 GiB" in line and "0.75 GiB" in line and "1.00 GiB" in line
