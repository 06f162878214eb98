"""Synthetic captions by a tiny random BLIP: from every layout, resumed, on several devices."""

import json

import pytest
import torch
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from itr.data.layouts.registry import DataConfig, open_split
from itr.data.tools import caption
from itr.data.tools.captioner import Captioner, CaptionerOptions
from tests.data import worlds
from tests.processes import forked_ranks

ITEMS = worlds.make_items((11, 2, 2))
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *worlds.WORDS]


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    size = {"height": 32, "width": 32}
    BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    text = {**small, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "bos_token_id": 2,
            "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}  # fmt: skip
    vision = {**small, "image_size": 32, "patch_size": 16}
    config = BlipConfig(text_config=text, vision_config=vision)
    torch.manual_seed(3)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # so that captions depend on the image
            parameter *= 300 if "vision" in name else 1000 if "crossattention" in name else 20
        for name, bias in model.named_parameters():
            if name.endswith(("predictions.bias", "predictions.decoder.bias")):
                bias[:5] = -1e4  # no special tokens
    model.save_pretrained(folder)
    return folder


def run(source, out, blip, *more, fails=False):
    arguments = [str(source), "--model", str(blip), "--out", str(out), "--device", "cpu",
                 "--batch-size", "2", *more]  # fmt: skip
    assert (caption.main(arguments) != 0) == fails


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("layout", ["karpathy", "arrow", "table", "shards", "folder"])
def test_every_layout(tmp_path, blip, layout, capsys):
    worlds.write(layout, tmp_path / "set", ITEMS)
    source = tmp_path / "set" / "pairs.csv" if layout == "table" else tmp_path / "set"
    out = tmp_path / "captions.jsonl"
    run(source, out, blip)
    found = rows(out)
    assert len({row["key"] for row in found}) == len(found) == 11
    where = {"root": "", "train": str(source)} if layout == "table" else {"root": str(source)}
    data = DataConfig("coco", **where, second_text=str(out))
    split = open_split(data, "train", "pixels", second=True)
    assert list(split.second) == [row["caption"] for row in found] and len(set(split.second)) > 1
    assert "11 of 11" in capsys.readouterr().out
    run(source, out, blip, fails=True)
    assert "already exists" in capsys.readouterr().err


class Killed(BaseException):
    """As a signal."""


def test_killed_and_resumed_on_two_devices(tmp_path, blip, monkeypatch, capsys):
    worlds.write("folder", tmp_path / "set", ITEMS)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(tmp_path / "set", whole, blip)
    calls, real = [], Captioner.__call__

    def dies(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise Killed
        return real(self, images)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Captioner, "__call__", dies)
        run(tmp_path / "set", out, blip)
    (part,) = tmp_path.glob("out.jsonl.*.part-0")
    assert len(rows(part)) == 4 and not out.exists()
    with part.open("ab") as file:
        file.write(b'{"key": "000')  # killed while it wrote
    run(tmp_path / "set", out, blip, "--beams", "2", fails=True)
    assert "other options" in capsys.readouterr().err
    with forked_ranks():
        run(tmp_path / "set", out, blip, "--devices", "2")
    assert rows(out) == rows(whole)  # every key once, the same captions
    assert "11 images, 4 have their captions" in capsys.readouterr().out
    assert not list(tmp_path.glob("out.jsonl.*"))


def test_what_cannot_be_captioned_is_told(tmp_path, blip, capsys):
    worlds.write("folder", tmp_path / "set", ITEMS)
    broken = next((tmp_path / "set" / "train").rglob("*.jpg"))
    broken.write_bytes(b"no image")
    run(tmp_path / "set", tmp_path / "out.jsonl", blip)
    assert f"without a caption: 1 images: {broken.stem}" in capsys.readouterr().out
    assert len(rows(tmp_path / "out.jsonl")) == 10
    run(tmp_path / "set", tmp_path / "new.jsonl", tmp_path / "set", fails=True)
    assert "expected a captioner" in capsys.readouterr().err
    run(tmp_path / "set", tmp_path / "new.jsonl", blip, "--devices", "0", fails=True)
    assert "--devices 0: expected 1 to" in capsys.readouterr().err


def test_settings_of_the_paper(blip):
    captioner = Captioner(CaptionerOptions(str(blip)), "cpu")
    given = {}
    captioner.model.generate = lambda **k: given.update(k) or torch.tensor([[2, 5, 17, 3]])
    assert captioner([torch.zeros(3, 20, 30, dtype=torch.uint8)]) == ["red man"]
    asked = [given[key] for key in ("num_beams", "max_new_tokens", "no_repeat_ngram_size")]
    assert asked == [5, 16, 3]
