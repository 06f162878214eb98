"""CLIP's vectors beside region arrays, from a tiny CLIP of either kind on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from itr.data.__main__ import main
from itr.data.images.pixels import Pixels
from itr.data.layouts.registry import DataConfig, open_split
from itr.models.alip import ALIP
from itr.official.alip import official_state
from itr.view import PixelView
from tests.data import worlds
from tests.models import tiny

Encode = Callable[[torch.Tensor], torch.Tensor]
SIZE = tiny.PIXELS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in Karpathy's layout, and regions of the same."""
    items = worlds.make_items((5, 2, 2), captions=5)
    worlds.write("karpathy", tmp_path / "set", items)
    worlds.write("precomp", tmp_path, items)
    return tmp_path


def hugging_face(path: Path) -> Encode:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = CLIPVisionConfig(
        **sizes, num_attention_heads=2, image_size=SIZE, patch_size=8, projection_dim=6
    )
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(path)
    return lambda pixels: model(pixel_values=pixels).image_embeds


def openai(path: Path) -> Encode:
    model = tiny.build("alip", "model.quick_gelu=true").eval()
    assert isinstance(model, ALIP)
    tiny.save_archive(official_state(model), path)
    return model.images


def arguments(folder: Path) -> list[str]:
    chosen = ("--images", folder / "set", "--regions", folder / "coco_precomp")
    return ["guides", "--clip", str(folder / "clip"), *map(str, chosen), "--batch-size", "2"]


@pytest.mark.parametrize("make", [hugging_face, openai])
@pytest.mark.parametrize("known", ["files", "captions"])
def test_each_row_is_the_embedding_of_its_image(folder: Path, make, known: str) -> None:
    encode = make(folder / "clip")
    if known == "captions":
        (folder / "coco_precomp" / "id_mapping.json").unlink()
    assert main(arguments(folder)) == 0
    view = PixelView(size=SIZE, resize="shortest")
    for role, on_disk in (("train", "train"), ("val", "dev"), ("test", "testall")):
        regions = open_split(DataConfig("coco", str(folder)), on_disk, "regions")
        pictures = open_split(DataConfig("coco", str(folder / "set")), role, "pixels")
        assert regions.guides is not None and len(regions.guides) == len(regions.regions)
        with torch.no_grad():
            expected = encode(Pixels(pictures, view).fetch(np.arange(pictures.n_images)))
        own = regions.guides[[record.image for record in regions.records]]
        torch.testing.assert_close(torch.from_numpy(own), expected, rtol=1e-4, atol=1e-5)


def test_errors_are_raised_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    regions = folder / "coco_precomp"

    def fails(words: str) -> None:
        assert main(arguments(folder)) == 2
        assert words in capsys.readouterr().err
        assert not list(regions.glob("*_clip.npy"))

    fails("no CLIP could be loaded")
    hugging_face(folder / "clip")
    (regions / "id_mapping.json").unlink()
    caps = regions / "dev_caps.txt"
    lines = caps.read_text("utf-8").splitlines()
    caps.write_text("\n".join(["another picture", *lines[1:]]), "utf-8")
    fails("1 of 2 images, e.g. ['another picture']")
    (regions / "train_clip.npy").write_bytes(b"")
    assert (
        main(arguments(folder)) == 2 and "train_clip.npy already exists" in capsys.readouterr().err
    )
