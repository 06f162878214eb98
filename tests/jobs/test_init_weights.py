"""Which weights ``model.init`` loads from a checkpoint, and which it ignores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from itr import checkpoint
from itr.jobs.init_weights import initialize_from, skip_pretrained
from itr.models.base import RetrievalModel
from itr.models.build import build_model, model_meta
from itr.nn.queue import NO_ID
from tests.conftest import compose
from tests.models.tiny import ALL_SIZES, build, facts_for


def saved(name: str, model: RetrievalModel, folder: Path) -> Path:
    path = folder / f"{name}.safetensors"
    meta = {**model_meta(model), "model_name": name, "loss": None, "tokenizer": None}
    tensors = {f"model/{key}": value for key, value in model.state_dict().items()}
    checkpoint.write(path, tensors, meta)
    return path


@pytest.mark.parametrize("name", ["albef", "multisea", "user"])
def test_queued_features_are_loaded_without_their_image_ids(name: str, tmp_path: Path) -> None:
    source = build(name)
    queued = [k for k in source.state_dict() if k.endswith("_queue.ids")]
    for key in queued:
        source.get_buffer(key).copy_(torch.arange(len(source.get_buffer(key))))
    model = build(name, "seed=1")
    told = initialize_from(model, name, str(saved(name, source, tmp_path)))
    assert queued and all((model.get_buffer(key) == NO_ID).all() for key in queued)
    features = queued[0].replace(".ids", ".features")
    assert torch.equal(model.get_buffer(features), source.get_buffer(features))
    assert any(f"image ids of another dataset ({len(queued)}): " in line for line in told)


def test_missing_momentum_weights_are_copied_from_the_checkpoint(
    tmp_path: Path,
) -> None:
    source = build("albef")
    assert not any(k.startswith("twin.fusion.") for k in source.state_dict())
    model = build("albef", "task=pretrain")
    with torch.no_grad():
        for weight in source.fusion.parameters():  # type: ignore[union-attr]
            weight.add_(1.0)
    told = initialize_from(model, "albef", str(saved("albef", source, tmp_path)))
    own = model.state_dict()
    for key, value in source.fusion.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(own[f"twin.fusion.{key}"], value)
    assert any("copied to momentum encoders" in line and "twin.fusion.*" in line for line in told)


@pytest.mark.parametrize("name", ["hrem", "user", "vse", "albef", "multisea"])
def test_pretrained_encoders_are_not_loaded_with_a_checkpoint(name: str, tmp_path: Path) -> None:
    source = build(name)
    path = saved(name, source, tmp_path)
    brought = ("model.text.", "model.pretrained=", "model.image.")
    sizes = [s for s in ALL_SIZES[name] if not s.startswith(brought) or "size=16" in s]
    values = compose(
        "train", [f"model={name}", *sizes, "model.pretrained=true", f"model.init={path}"]
    )
    for part in ("text", "image"):
        values["model"].get(part, {})["name"] = "/nowhere"
    fewer = dataclasses.replace(facts_for(name), vocabulary=30)  # as a tokenizer may know
    node, facts = skip_pretrained(values["model"], fewer)
    model = build_model(node, values["loss"], facts)
    assert "left at their initial values" not in " ".join(
        line for line in initialize_from(model, name, str(path)) if "_queue.ids" not in line
    )
    plain = {**values["model"], "init": None}
    assert skip_pretrained(plain, facts_for(name)) == (plain, facts_for(name))
