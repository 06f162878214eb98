"""Commands that write files and folders, and what they wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from tests.conftest import ROOT
from tests.data import worlds

TIMES = ("train_seconds", "run", "resumed_at")
STAGES = ("eval", "gallery", "export", "tables", "shards", "arrow", "features")


def commands(run: Path, folder: Path) -> dict[str, tuple[list[str], str]]:
    """Stage -> a command less its last word, and what it writes; datasets are in ``folder``."""
    items = worlds.make_items((6, 3, 3))
    worlds.write("karpathy", folder / "set", items)
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False, num_classes=0)
    save_file(model.state_dict(), folder / "resnet.safetensors")
    features = ["--images", str(folder / "set"), "--backbone", "resnet18", "--size", "64"]
    features += ["--weights", str(folder / "resnet.safetensors"), "--grid", "2"]
    best = str(run / "checkpoints" / "best.safetensors")
    return {
        "eval": ([str(ROOT / "eval.py"), f"checkpoint={run}", "device=cpu"], "out=eval"),
        "gallery": (["-m", "itr", "gallery", str(run), "--out"], "page.html"),
        "export": (["-m", "itr", "official", "export", best], "hrem.pth"),
        "tables": (["-m", "itr", "results", str(run), "--out"], "tables"),
        "shards": (["-m", "itr", "data", "convert", str(folder / "set")], "wds"),
        "arrow": (["-m", "itr", "data", "convert", str(folder / "set")], "arrow"),
        "features": (["-m", "itr", "data", "features", *features, "--out"], "coco_precomp"),
    }


def content(path: Path) -> Any:
    """The bytes below ``path``; of results, the numbers."""
    if path.is_file():
        return path.read_bytes()
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix not in (".lock", ".log"))
    found: dict[str, Any] = {}
    for file in files:
        name = str(file.relative_to(path))
        if file.name == "results.json":
            values = json.loads(file.read_text())
            found[name] = {k: v for k, v in values.items() if k not in TIMES}
        elif file.suffix != ".npz":  # whose metadata names the folder
            found[name] = file.read_bytes()
    return found
