"""LoRA in every model: what is adapted, frozen, saved and merged; peft's own model; bad input."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from itr import checkpoint
from itr.errors import ConfigError
from itr.losses.infonce import InfoNCE
from itr.models.adapters import adapt, lora_of
from itr.models.base import Model
from itr.models.build import build_model, model_meta, restore
from itr.nn.lora import is_adapter, merged, plain_name
from itr.training.block_wrappers import checkpoint_activations
from itr.training.config import check_config
from itr.training.parameters.freezing import Freezing
from tests.conftest import compose
from tests.models.model_sizes import MODEL_SIZES
from tests.models.tiny import Steps, batch_for, build, build_task, item_batch, pixel_batch
from tests.nn.tiny_towers import save_open_clip, save_tower

LAST_BIT = 2e-7  # weights at another address in memory are summed in another order
LORA = ("model.lora.rank=2", "model.lora.alpha=4")


def embeddings(model: Any, given: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model.encode_images(given).pooled, model.encode_texts(given).pooled]


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def steps_of(name: str, model: Model) -> Steps:
    steps = Steps(name, model)
    steps.step.frozen = Freezing(model, check_config(compose("train", [])).trainer).asleep
    steps.step.set_requires_grad(steps.clock)
    return steps


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_adapters_are_trained_beside_frozen_weights(name: str, tmp_path: Path) -> None:
    model, plain = build(name, *LORA), build(name)
    given = batch_for(name)
    before = embeddings(model.eval(), given)
    (line,) = adapt(model)
    assert "adapters of rank 2" in line
    for old, new in zip(before, embeddings(model, given), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=LAST_BIT)

    begun, steps = weights(model), steps_of(name, model)
    for _ in range(2):  # B is 0 at first, and with it the gradient of A
        steps(given)
    steps.micro_batch(given)
    for key, parameter in model.named_parameters():
        trained = not torch.equal(parameter, begun[key])
        if key in model.frozen_weights or steps.sleeps(key):
            assert not trained and parameter.grad is None, key
        elif is_adapter(key):
            assert trained and parameter.grad is not None, key
    twin = getattr(model, "twin", None)
    for part, source in {} if twin is None else twin._sources.items():
        assert set(twin[part].state_dict()) == set(source.state_dict())

    model.eval()
    path = tmp_path / "best.safetensors"
    loss = compose("train", [f"model={name}"])["loss"]
    meta = {**model_meta(model), "model_name": name, "loss": loss}
    checkpoint.write(path, {f"model/{k}": v for k, v in model.state_dict().items()}, meta)
    stored = restore(path, checkpoint.read_meta(path)).eval()
    options = lora_of(model)
    assert options is not None
    plain.load_state_dict(merged(model.state_dict(), options))
    triples = zip(*(embeddings(m, given) for m in (model, stored, plain.eval())), strict=True)
    for own, again, folded in triples:
        torch.testing.assert_close(again, own, rtol=0, atol=LAST_BIT)
        torch.testing.assert_close(folded, own, rtol=0, atol=2e-6)


def test_activation_checkpointing_changes_no_number() -> None:
    """Of packed attention, whose weight has its adapter only while the block runs."""
    found = []
    for wrap in (lambda model: 0, checkpoint_activations):
        model = build("alip", *LORA)
        adapt(model)
        wrap(model)
        steps = steps_of("alip", model)
        for _ in range(2):
            steps(batch_for("alip"))
        found.append({n: p.detach().clone() for n, p in model.named_parameters()})
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("task", ["vqa", "entailment", "nlvr2"])
def test_adapters_of_albefs_other_tasks(task: str) -> None:
    lora = dataclasses.replace(build("albef").config.lora, rank=2)
    model = build_task(task, lora=lora)
    adapt(model)
    begun, steps = weights(model), steps_of("albef", model)
    for _ in range(2):
        steps(item_batch(task))
    moved = {k for k, p in model.named_parameters() if not torch.equal(p, begun[k])}
    assert not moved & model.frozen_weights and any(map(is_adapter, moved))
    assert {k for k, _ in model.named_parameters() if is_adapter(k)} <= moved


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    save_tower("clip", folder)
    save_open_clip("clip", folder)
    return folder


def clip_of(tower: str, **lora: Any) -> Any:
    node = {"_target_": "itr.models.clip.CLIP", "name": "clip", "tower": tower}
    values = compose("train", ["model=clip"])
    from itr.view import Facts

    return build_model({**node, "lora": lora}, values["loss"], Facts(1000))


def test_a_step_is_that_of_pefts_own_model(towers: Path) -> None:
    tower = str(towers / "clip")
    model = clip_of(tower, rank=3, alpha=6.0)
    model.slots["itc"] = InfoNCE()
    adapt(model)
    steps = steps_of("clip", model)
    steps.optim.max_norm = None
    layers = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=layers)
    theirs = peft.get_peft_model(transformers.CLIPModel.from_pretrained(tower), config)
    own = {k.removeprefix("tower."): v for k, v in model.named_parameters() if is_adapter(k)}
    adapters = {
        k.removeprefix("base_model.model."): v
        for k, v in theirs.named_parameters()
        if v.requires_grad
    }
    assert set(own) == set(adapters) and len(own) == 2 * 2 * 2 * 6
    with torch.no_grad():
        for key, value in own.items():
            adapters[key].copy_(value)
    group = steps.optimizer.param_groups[0]
    options = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW(list(adapters.values()), **options)
    given = pixel_batch(6, 20)
    given = dataclasses.replace(given, pixels=torch.randn(6, 3, 32, 32), positive_pairs=6)
    given.tokens[:, -1] = 599  # the end, whose state is the embedding
    for _ in range(2):
        steps(given)
        theirs.train()(
            input_ids=given.tokens,
            pixel_values=given.pixels,
            attention_mask=given.token_mask,
            return_loss=True,
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # which is frozen there
            theirs.base_model.model.logit_scale.copy_(model.tower.logit_scale)
    for key, value in own.items():
        torch.testing.assert_close(adapters[key], value, rtol=0, atol=1e-6)


def test_packed_attention_is_adapted(towers: Path) -> None:
    model = clip_of(f"local-dir:{towers / 'open_clip_clip'}", rank=2)
    lines = adapt(model)
    assert any("cannot have adapters" in line and "out_proj" in line for line in lines)
    names = {plain_name(k) for k, _ in model.named_parameters() if is_adapter(k)}
    assert "tower.visual.transformer.resblocks.0.attn.lora_A.default.weight" in names
    assert "tower.transformer.resblocks.0.mlp.c_fc.lora_B.default.weight" in names


BAD = [
    (("model.lora.rank=0",), "model.lora.rank=0: expected at least 1"),
    (("model.lora.dropout=1",), "model.lora.dropout=1: expected at least 0 and below 1"),
    (("model.lora.rank=500",), r"model.lora.rank=500: .* expected at most \d+"),
    (("model.lora.targets=[q_prj]",), "targets=q_prj: .*nearest: q_proj.*Leave it out"),
    (("model.lora.modules=[imge]",), "modules=imge: .*expected image, text.*Leave it out"),
]


@pytest.mark.parametrize(("given", "told"), BAD)
def test_what_cannot_be_adapted_is_refused(given: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        adapt(build("clip", "model.lora.rank=2", *given))


def test_dropout_of_packed_weights_and_modules_without_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="dropout=0.1: .*one parameter.*expected 0"):
        adapt(build("alip", *LORA, "model.lora.dropout=0.1"))
    with pytest.raises(ConfigError, match="rank=2: images has no linear layer.*model.lora.modules"):
        adapt(build("vse", *LORA, "model.lora.modules=[image]"))


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("clip", *LORA)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"needs the package peft.*pip install 'itr-suite\[lora"):
        adapt(copy.copy(model))


def test_chosen_modules_and_targets() -> None:
    model = build("clip", *LORA, "model.lora.modules=[text]", "model.lora.targets=[q_proj,fc1]")
    adapt(model)
    names = [k for k, _ in model.named_parameters() if is_adapter(k)]
    assert names and all(k.startswith("tower.text_model.") for k in names)
    assert {plain_name(k).split(".lora_")[0].rpartition(".")[2] for k in names} == {"q_proj", "fc1"}
    assert not any(k.startswith("tower.vision_model.") for k in model.frozen_weights)
