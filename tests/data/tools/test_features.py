"""Grid features of a timm backbone, written as region arrays that HREM reads."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from itr.data.images.pixels import Pixels
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.tools.features import feature_map, main, open_grid
from itr.errors import ConfigError, DataError
from itr.view import PixelView
from tests.data import worlds


@pytest.fixture
def root(tmp_path):
    worlds.write("karpathy", tmp_path / "set", worlds.make_items((5, 2, 2)))
    return tmp_path / "set"


def test_features_are_cells_of_the_last_feature_map(root, tmp_path, capsys):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    out = tmp_path / "coco_precomp"
    arguments = ["--images", str(root), "--backbone", "resnet18", "--out", str(out), "--grid", "2",
                 "--weights", str(tmp_path / "weights.safetensors"), "--size", "96",
                 "--dtype", "fp32", "--batch-size", "3"]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert "4 x 512 fp32 features" in capsys.readouterr().out
    config = DataConfig("coco", str(tmp_path))
    settings = timm.data.resolve_model_data_config(model)
    view = PixelView(size=96, interpolation=settings["interpolation"], mean=settings["mean"],
                     std=settings["std"])  # fmt: skip
    for role, images in (("train", 5), ("dev", 2), ("test", 2)):
        regions = open_split(config, role, "regions")
        pixels = open_split(DataConfig("coco", str(root)), role, "pixels")
        assert regions.regions.shape == (images, 4, 512)
        assert [r.image_id for r in regions.records] == [r.image_id for r in pixels.records]
        for number, record in enumerate(pixels.records):
            assert regions.records[number].captions[0] == record.captions[0]
            assert len(regions.records[number].captions) == 5  # repeated if there are fewer
            with torch.no_grad():
                found = model.forward_features(Pixels(pixels, view).fetch(np.array([number])))
            assert found.shape == (1, 512, 3, 3)
            # Adaptive cells of 3 in 2: rows 0-1 and 1-2.
            for cell, (top, left) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                mean = found[0, :, top : top + 2, left : left + 2].mean((1, 2))
                stored = torch.from_numpy(np.array(regions.regions[number, cell]))
                torch.testing.assert_close(stored, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_tokens_and_channels_last_are_converted_to_maps(name):
    small = {"depths": (1, 1, 1, 1)} if name.startswith("swin") else {"depth": 1, "img_size": 64}
    model = timm.create_model(name, pretrained=False, num_classes=0, **small)
    side = 224 if name.startswith("swin") else 64
    with torch.no_grad():
        raw = model.forward_features(torch.randn(2, 3, side, side))
    found = feature_map(model, raw)
    assert found.shape == (2, model.num_features, side // 32, side // 32) or (
        found.shape == (2, model.num_features, side // 16, side // 16)
    )
    if raw.ndim == 3:  # a class token, then row by row
        assert torch.equal(found[:, :, 1, 2], raw[:, 1 + 1 * 4 + 2])
    else:
        assert torch.equal(found[:, :, 1, 2], raw[:, 1, 2])
    with pytest.raises(ConfigError, match="not a grid"):
        feature_map(model, raw.flatten(1))


def test_errors_are_explained_and_leave_nothing_behind(root, tmp_path, capsys):
    out = tmp_path / "x_precomp"

    def fails(words, *arguments):
        assert main(["--images", str(root), "--out", str(out), *arguments]) == 2
        assert words in capsys.readouterr().err
        assert not out.exists()

    fails("nearest: resnet", "--backbone", "resnet1O1")
    (tmp_path / "no.safetensors").write_bytes(b"")
    fails("no.safetensors: an empty file", "--backbone", "resnet18", "--weights",
          str(tmp_path / "no.safetensors"))  # fmt: skip
    fails("no dataset with images", "--backbone", "resnet18", "--images", str(root / "val2014"))
    picture = next((root / "val2014").iterdir())
    picture.write_bytes(b"no picture")
    fails(picture.name, "--backbone", "resnet18", "--weights", "none", "--size", "32")


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("counters", [True, False])
def test_weights_by_order(tmp_path, head, counters):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False, num_classes=1000 if head else 0).eval()
    state = {
        f"layer.{number}": tensor
        for number, (name, tensor) in enumerate(model.state_dict().items())
        if counters or "num_batches" not in name
    }
    if counters:
        state = {
            key if "num_batches" not in name else f"{key}.num_batches_tracked": tensor
            for (key, tensor), name in zip(state.items(), model.state_dict(), strict=True)
        }
    torch.save(state, tmp_path / "w.pth")
    grid = open_grid("resnet18", str(tmp_path / "w.pth"), 64, 2, "cpu", by_order=True)
    pixels = torch.rand(1, 3, 64, 64)
    weights = model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in grid.model.state_dict().items())
    with torch.no_grad():  # channels last adds in another order
        found, expected = (one.forward_features(pixels) for one in (grid.model, model))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("change, words", [
    (lambda s: s.update(a=torch.zeros(3)), "tensors, but the backbone has"),
    (lambda s: s.pop("layer4.1.bn2.running_var"), r"fc.weight\) is \(1000, 512\), .* \(512,\)"),
    (lambda s: s.update({"conv1.weight": torch.zeros(64, 3, 5, 5)}), r"conv1.weight.*5, 5\)"),
])  # fmt: skip
def test_weights_by_order_of_another_shape_are_refused(tmp_path, change, words):
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DataError, match=f"w.pth.*{words}"):
        open_grid("resnet18", str(tmp_path / "w.pth"), 64, 2, "cpu", by_order=True)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match="does not keep the order"):
        open_grid("resnet18", str(tmp_path / "w.safetensors"), 64, 2, "cpu", by_order=True)
    with pytest.raises(ConfigError, match="--weights FILE"):
        open_grid("resnet18", "none", 64, 2, "cpu", by_order=True)
