"""Authors' files as a user meets them: evaluated, inspected, converted; and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from itr import checkpoint
from itr.data.text.tokenizer import BytePairTokenizer, Tokenizer
from itr.errors import ConfigError
from itr.jobs.assemble import RunComponents, assemble_run
from itr.jobs.evaluate import evaluate
from itr.jobs.load_checkpoint import LoadedCheckpoint, load_checkpoint
from itr.models.build import model_meta
from itr.nn.position import resize_positions
from itr.official.__main__ import main as official
from itr.official.load import importer_of, importers, load_official
from itr.official.name_table import flat
from itr.training.config import check_config
from tests.conftest import ROOT, compose
from tests.models.tiny import build
from tests.training.sizes import COMMON, SIZES, overrides

DEPTHS = {"albef": 16, "multisea": 64}  # the file's own k_test; the authors' top_k
# What an authors' file does not say is as theirs.
SAME = {"alip": ["model.prompt='a photo of '"], "albef": ["model.eval_length=30"]}


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> Path:
    """The files of ``tokenizer`` as the hub has them."""
    folder.mkdir()
    if isinstance(tokenizer, BytePairTokenizer):
        ids = {token: number for number, token in enumerate(tokenizer.tokens)}
        (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
        merges = "\n".join(f"{first} {last}" for first, last in tokenizer.merges)
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    else:
        (folder / "vocab.txt").write_text("\n".join(tokenizer.tokens) + "\n", encoding="utf-8")
    return folder


def exported(name: str, parts: RunComponents, folder: Path) -> Path:
    """An authors' file of the untrained model of ``parts``, as ``itr.official export`` writes."""
    ours, theirs = folder / "ours.safetensors", folder / "theirs.pth"
    meta = {**model_meta(parts.model), "model_name": name, "loss": None, "tokenizer": None}
    tensors = {f"model/{key}": value for key, value in parts.model.state_dict().items()}
    checkpoint.write(ours, tensors, meta)
    assert official(["export", str(ours), str(theirs)]) == 0
    if name == "albef":  # fine-tuning's options say the depth
        payload = torch.load(theirs, weights_only=True)
        torch.save({**payload, "config": {**payload["config"], "k_test": 16}}, theirs)
    return theirs


def heads_of(name: str, config: Any) -> list[str]:
    """Head options of a model that is smaller than the published ones."""
    options, told = flat(dataclasses.asdict(config)), importer_of(name).module.EXTRA_OPTIONS
    return [f"model.{k}={options[k]}" for k in told if k not in ("text.name", "text.tokenizer")]


@pytest.mark.parametrize("name", sorted(set(SIZES) & set(importers())))
def test_recalls_of_an_authors_file_equal_those_of_its_model(
    name: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["batch_size=20", f"rerank.k={DEPTHS.get(name, 12)}", *SAME.get(name, [])]
    values = compose("train", ["data=scenes", *overrides(name, world, *more)])
    torch.manual_seed(0)
    parts = assemble_run(check_config(values), values)
    expected = parts.evaluators["test"].run(parts.model.eval())
    tokenizer = save_tokenizer(parts.tokenizer, tmp_path / "tokenizer")
    theirs = exported(name, parts, tmp_path)
    given = [
        *(f"model={name}", "data=scenes", "device=cpu", f"data.root={world / 'data'}"),
        *(size for size in COMMON if size.startswith(("data.prepare.", "runtime.eval_"))),
        *(f"data.cache={world / 'cache'}", f"model.text.tokenizer={tokenizer}"),
    ]
    heads = heads_of(name, parts.model.config)
    found = evaluate(compose("eval", [*given, *heads, f"checkpoint={theirs}"]))
    assert {k: found[f"test/{k}"] for k in expected} == expected
    assert found["official"] and found["test/rerank_k"] == DEPTHS.get(name)
    assert "weights read, " in " ".join(capsys.readouterr().out.split())
    if name in DEPTHS:  # a converted file knows it, too
        flags = [f"--heads={parts.model.config.text.heads}"]
        flags.append(f"--image-heads={image_heads(parts.model)}")
        ours = tmp_path / "converted.safetensors"
        assert official(["convert", str(theirs), str(ours), *flags]) == 0
        again = evaluate(compose("eval", [*given, f"checkpoint={ours}"]))
        assert again["test/rerank_k"] == DEPTHS[name]
        assert again["test/rsum"] == found["test/rsum"]


def image_heads(model: Any) -> int:
    image = model.config.image
    return image.heads if hasattr(image, "heads") else image.width // image.head_width


def test_default_rerank_depth_of_files_without_options(tmp_path: Path) -> None:
    model, path = build("albef"), tmp_path / "albef.pth"
    torch.save({"model": importer_of("albef").module.official_state(model)}, path)
    told = {"heads": 2, "image_heads": 3}
    depth = load_official(path, "albef", told)[1].depth
    loaded = LoadedCheckpoint(model, None, path, None, {}, depth=depth)  # type: ignore[arg-type]
    asked = [loaded.rerank_on(data) for data in ("coco", "f30k", "table")]
    assert asked == [{"k": 256}, {"k": 128}, {}]
    assert dataclasses.replace(loaded, rerank={"k": 20}).rerank_on("coco") == {"k": 20}


def test_image_size_can_change_in_evaluation_and_other_options_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, path = build("albef"), tmp_path / "albef.pth"
    torch.save(importer_of("albef").module.export(source), path)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"]
    tokenizer = save_tokenizer(Tokenizer.from_vocab(vocabulary), tmp_path / "tokenizer")
    told: dict[str, Any] = {
        "name": "albef",
        "text": {"tokenizer": str(tokenizer), "heads": 2},
        "image": {"heads": 3, "size": 24},
    }
    loaded = load_checkpoint(path, told)
    assert loaded.model.view.pixels_eval.size == 24 and loaded.origin["image_size"] == 24
    positions = loaded.model.get_submodule("vision").pos_embed
    torch.testing.assert_close(positions, resize_positions(source.vision.pos_embed, 6))
    with pytest.raises(ConfigError, match=r"do not divide an image of 25"):
        load_checkpoint(path, {**told, "image": {"heads": 3, "size": 25}})
    values = compose("eval", ["model=albef", "model.momentum=0.5", f"checkpoint={path}"])
    with pytest.raises(ConfigError, match=r"model\.momentum=0\.5.*cannot.*model\.image\.size"):
        evaluate({**values, "device": "cpu"})
    assert official(["inspect", str(path)]) == 2
    assert "model.image.heads (itr official: --image-heads)" in capsys.readouterr().err
    assert official(["inspect", str(path), "--heads", "2", "--image-heads", "3"]) == 0
    regions = str(ROOT / "tests" / "golden" / "hrem" / "official_checkpoint.pth")
    assert official(["inspect", regions, "--heads", "4", "--image-heads", "3"]) == 2
    assert "model=hrem has no image tower" in capsys.readouterr().err
