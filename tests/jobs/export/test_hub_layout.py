"""``itr export``: transformers, open_clip and peft load what it writes, and compute ours."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import open_clip
import peft
import pytest
import torch
import transformers
from PIL import Image
from torch.nn import functional as F

from itr import checkpoint
from itr.data.text.token_table import TokenTable
from itr.errors import CheckpointError
from itr.jobs.export.hub_cli import main
from itr.jobs.load_checkpoint import load_checkpoint
from itr.jobs.load_tower import load_zero_shot
from itr.models.adapters import adapt
from itr.models.build import model_meta
from itr.nn.lora import LoRAConfig, is_adapter
from itr.nn.tower.architecture import read_architecture
from itr.nn.tower.transformers_tower import DUAL_ENCODERS
from tests.models.tiny import pixel_batch
from tests.nn.tiny_towers import SENTENCES, save_blip, save_open_clip, save_tower

KINDS = {**DUAL_ENCODERS, "blip": ""}
NODES = {
    name: {"_target_": f"itr.models.{name}.{name.upper()}", "name": name}
    for name in ("clip", "blip")
}


def trained(name: str, tower: str, path: Path, rank: int | None = 2) -> Any:
    """A checkpoint of a run from ``tower`` whose adapters, or weights, have moved; as loaded."""
    loaded = load_zero_shot({**NODES[name], "tower": tower}, "cpu")
    model, lora = loaded.model, LoRAConfig(rank=rank, alpha=3.0)
    model.config = dataclasses.replace(model.config, lora=lora)
    adapt(model)
    torch.manual_seed(5)
    for key, parameter in model.named_parameters():
        if rank is None or is_adapter(key):
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    tokenizer = loaded.tokenizer.to_json()
    meta = {**model_meta(model), "model_name": name, "loss": {}, "tokenizer": tokenizer}
    weights = {f"model/{key}": value for key, value in model.state_dict().items()}
    checkpoint.write(path, weights, meta)
    return load_checkpoint(path)


def given_to(loaded: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Pixels, ids and mask of a batch, and the embeddings of both."""
    view = loaded.model.view
    size = view.pixels_eval.size
    table: TokenTable = loaded.tokenizer.tokenize(SENTENCES, view.text_eval)
    rows = [torch.as_tensor(table.ids(number)).long() for number in range(len(table))]
    length = view.text_eval.pad_to or max(map(len, rows))
    tokens = torch.full((len(rows), length), table.pad, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row)], mask[number, : len(row)] = row, True
    pixels = torch.randn(len(rows), 3, size, size)
    batch = dataclasses.replace(
        pixel_batch(len(rows)), pixels=pixels, tokens=tokens, token_mask=mask
    )
    with torch.no_grad():
        ours = [loaded.model.encode_images(batch).pooled, loaded.model.encode_texts(batch).pooled]
    return pixels, tokens, mask, ours


def assert_same(theirs: list[torch.Tensor], ours: list[torch.Tensor]) -> None:
    for found, expected in zip(theirs, ours, strict=True):
        torch.testing.assert_close(F.normalize(found, dim=-1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["clip", "siglip", "metaclip_2", "chinese_clip", "align"])
def test_transformers_loads_a_dual_encoder(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tower, path, out = save_tower(family, tmp_path), tmp_path / "best.safetensors", tmp_path / "out"
    loaded = trained("clip", str(tower), path, rank=None if family == "align" else 2)
    assert main([str(path), "--format", "huggingface", "--out", str(out)]) in (0, None)
    assert ("rank 2 are merged" in capsys.readouterr().out) is (family != "align")
    theirs = transformers.AutoModel.from_pretrained(out).eval()
    pixels, tokens, mask, ours = given_to(loaded)
    inputs = {"input_ids": tokens}
    if loaded.model.adapter.has_mask:
        inputs["attention_mask"] = mask
    with torch.no_grad():
        images = theirs.get_image_features(pixel_values=pixels).pooler_output
        assert_same([images, theirs.get_text_features(**inputs).pooler_output], ours)
    texts = transformers.AutoTokenizer.from_pretrained(out)
    assert texts(SENTENCES[0], truncation=True)["input_ids"] == tokens[0][mask[0]].tolist()
    own, again = (copy.deepcopy(read_architecture(str(p), KINDS)) for p in (tower, out))
    assert (again.kind, again.text, again.has_mask) == (own.kind, own.text, own.has_mask)
    for key in ("mean", "std"):
        assert again.pixels.pop(key) == pytest.approx(own.pixels.pop(key))
    assert again.pixels == own.pixels
    assert transformers.AutoProcessor.from_pretrained(out) is not None


def test_open_clip_loads_its_tower_and_peft_the_adapters(tmp_path: Path) -> None:
    tower = f"local-dir:{save_open_clip('clip', tmp_path)}"
    path, out, adapters = tmp_path / "best.safetensors", tmp_path / "out", tmp_path / "adapters"
    loaded = trained("clip", tower, path)
    assert main([str(path), "--out", str(out)]) in (0, None)
    pixels, tokens, _, ours = given_to(loaded)
    theirs, steps = open_clip.create_model_from_pretrained(f"local-dir:{out}")
    base, own_steps = open_clip.create_model_from_pretrained(tower)
    picture = Image.radial_gradient("L").resize((50, 70)).convert("RGB")
    torch.testing.assert_close(steps(picture), own_steps(picture))
    assert main([str(path), "--out", str(adapters), "--adapters"]) in (0, None)
    added = peft.PeftModel.from_pretrained(base, str(adapters)).eval()
    for model in (theirs.eval(), added):
        with torch.no_grad():
            assert_same([model.encode_image(pixels), model.encode_text(tokens)], ours)


def test_peft_loads_the_adapters_of_a_tower_of_transformers(tmp_path: Path) -> None:
    tower, path, out = save_tower("clip", tmp_path), tmp_path / "best.safetensors", tmp_path / "out"
    loaded = trained("clip", str(tower), path)
    assert main([str(path), "--out", str(out), "--adapters"]) in (0, None)
    names = {"adapter_config.json", "adapter_model.safetensors"}
    assert {file.name for file in out.iterdir()} == names
    base = transformers.AutoModel.from_pretrained(tower)
    theirs = peft.PeftModel.from_pretrained(base, str(out)).eval()
    pixels, tokens, mask, ours = given_to(loaded)
    with torch.no_grad():
        images = theirs.get_image_features(pixel_values=pixels).pooler_output
        texts = theirs.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output
    assert_same([images, texts], ours)


def test_transformers_loads_blip(tmp_path: Path) -> None:
    tower, path, out = save_blip(tmp_path / "blip"), tmp_path / "best.safetensors", tmp_path / "out"
    loaded, adapters = trained("blip", str(tower), path), tmp_path / "adapters"
    assert main([str(path), "--out", str(out)]) in (0, None)
    assert main([str(path), "--out", str(adapters), "--adapters"]) in (0, None)
    kind = transformers.BlipForImageTextRetrieval
    pixels, tokens, mask, ours = given_to(loaded)
    whole = kind.from_pretrained(out).eval()
    added = peft.PeftModel.from_pretrained(kind.from_pretrained(tower), str(adapters)).eval()
    for model in (whole, added):
        with torch.no_grad():
            images = model.vision_proj(model.vision_model(pixel_values=pixels)[0][:, 0])
            states = model.text_encoder(input_ids=tokens, attention_mask=mask)[0]
            assert_same([images, model.text_proj(states[:, 0])], ours)
    own, again = (read_architecture(str(p), KINDS) for p in (tower, out))
    assert (again.pixels, again.text) == (own.pixels, own.text)
    assert transformers.AutoProcessor.from_pretrained(out) is not None


def test_what_cannot_be_exported_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tower, path = save_tower("clip", tmp_path), tmp_path / "best.safetensors"
    trained("clip", str(tower), path, rank=None)
    meta = checkpoint.read_meta(path)
    other = tmp_path / "other.safetensors"
    checkpoint.write(other, {}, {**meta, "model_name": "hrem"})

    def refused(*given: str) -> str:
        assert main([*given, "--out", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return " ".join(capsys.readouterr().err.split())

    assert "no adapters" in refused(str(path), "--adapters")
    assert "model=hrem" in refused(str(other)) and "clip, blip" in refused(str(other))
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="exists already; expected a new folder"):
        from itr.jobs.export.hub_cli import export

        export(path, tmp_path / "out")
