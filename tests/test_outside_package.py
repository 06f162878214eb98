"""A model, a loss and a layout in a package outside the repository, used through the command line.

A package is used in two ways: by a folder of configuration that the user passes (`--config-dir`),
or installed, with entry points. A checkpoint alone must not make the suite import anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itr import checkpoint, plugins
from itr.errors import CheckpointError, ConfigError
from itr.instantiate import locate
from itr.jobs.load_checkpoint import load_checkpoint
from itr.models.build import model_class
from tests import processes
from tests.conftest import ROOT

MODEL = '''
"""The mean of the regions against the mean of the words."""

from dataclasses import dataclass

import torch
from torch import nn

from itr.losses.score import pair_scores
from itr.models.base import Encoded, ParameterGroup, RetrievalModel, Terms, parameter_names
from itr.view import TextView, View


@dataclass
class ToyConfig:
    width: int = 8


class Toy(RetrievalModel):
    Config = ToyConfig
    slot_names = ("batch",)
    term_names = ("batch",)

    def __init__(self, config, slots, weights, facts):
        super().__init__(config, slots, weights, facts)
        self.images = nn.Linear(facts.region_width, config.width)
        self.words = nn.Embedding(facts.vocabulary, config.width)

    @classmethod
    def view_for(cls, config):
        text = TextView(max_length=16)
        return View(kind="regions", tokenizer="wordpiece", text=text, text_eval=text)

    def encode_images(self, batch):
        return self._encode(self.images(batch.regions), batch.region_mask)

    def encode_texts(self, batch):
        return self._encode(self.words(batch.tokens), batch.token_mask)

    def _encode(self, items, mask):
        total = (items * mask[..., None]).sum(1)
        return Encoded(nn.functional.normalize(total, dim=-1))

    def forward(self, batch, clock, draws):
        images, texts = self.encode_images(batch).pooled, self.encode_texts(batch).pooled
        scores = pair_scores(images, texts, batch.image_id, batch.positive_pairs or None)
        return Terms({"batch": self.slots["batch"](scores, clock, draws)})

    def parameter_groups(self, lr, weight_decay):
        modules = [self.images, self.words, self.slots]
        return [ParameterGroup("all", parameter_names(self, modules), lr, weight_decay)]
'''
LOSS = '''
"""Negative log-likelihood of all matches."""

from itr.losses.score import ScoreLoss


class ToyLoss(ScoreLoss):
    variants = ("scale=5",)

    def __init__(self, scale: float = 10.0):
        super().__init__()
        self.scale = scale

    def forward(self, scores, clock, draws):
        likely = (scores.values * self.scale).log_softmax(1)
        return -(likely * scores.match).sum() / len(scores.values)
'''
LAYOUT = '''
"""One file toy-<split>.npz a split: regions [N, R, D] and captions [N]."""

from pathlib import Path

import numpy as np

from itr.data.records import Record, Split

KIND = "regions"


class ToyLayout:
    name = "toy"
    kind = "regions"
    notes = ()

    def __init__(self, path):
        self.path = path

    def splits(self):
        return sorted(file.stem.removeprefix("toy-") for file in self.path.glob("toy-*.npz"))

    def read(self, split):
        arrays = np.load(self.path / f"toy-{split}.npz")
        captions = [str(caption) for caption in arrays["captions"]]
        records = [Record(i, i, (text,), (i,)) for i, text in enumerate(captions)]
        source = str(self.path)
        return Split(split, "toy", records, regions=arrays["regions"], source=source)


def find(data):
    root = Path(data.root)
    return ToyLayout(root) if any(root.glob("toy-*.npz")) else None
'''
CONF = {
    "model/toy.yaml": "# @package _global_\n"
    "model: {_target_: toypack.model.Toy, name: toy, width: 8}\n"
    "loss: {weights: {batch: 1.0}}\n",
    "loss/toy.yaml": "name: toy\ndefault: {_target_: toypack.loss.ToyLoss, scale: 10.0}\n",
    "data/toyset.yaml": "defaults: [reading/default@_here_, _self_]\nname: toyset\nroot: ???\n"
    "splits: {train: train, val: val, test: test}\n",
}
ENTRY_POINTS = "[itr.plugins]\ntoypack = toypack\n\n[itr.layouts]\ntoy = toypack.layout\n"
FEW = (
    "batch_size=20",
    "trainer.max_steps=3",
    "tracker=none",
    "device=cpu",
    "runtime.estimate=false",
)


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package ``toypack``, which no entry point names, and its ``conf``."""
    folder = tmp_path_factory.mktemp("unregistered")
    code = {"__init__.py": "", "model.py": MODEL, "loss.py": LOSS, "layout.py": LAYOUT}
    write_files(folder / "toypack", code)
    write_files(folder / "toypack" / "conf", CONF)
    return folder


@pytest.fixture(scope="module")
def installed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package as pip installs it: beside the metadata that hold its entry points."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(package / "toypack", folder / "toypack")
    metadata = "Metadata-Version: 2.1\nName: toypack\nVersion: 1.0\n"
    write_files(
        folder / "toypack-1.0.dist-info",
        {"METADATA": metadata, "entry_points.txt": ENTRY_POINTS},
    )
    return folder


def itr(
    *arguments: str, packages: Path, cwd: Path, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """``fresh``: in a new interpreter, which finds layouts as it is started."""
    path = os.pathsep.join([str(ROOT), str(packages)])
    if fresh:
        command = [sys.executable, "-m", "itr", *arguments]
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    return processes.run("-m", "itr", *arguments, cwd=cwd, PYTHONPATH=path)


@pytest.fixture(scope="module")
def run(package: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the toy model and loss on scenes, trained with ``--config-dir``."""
    folder = tmp_path_factory.mktemp("runs")
    where = [
        f"data.root={world / 'data'}",
        f"data.cache={world / 'cache'}",
        f"out={folder / 'run'}",
    ]
    sizes = [f"data.prepare.{name}={n}" for name, n in (("train", 60), ("val", 20), ("test", 20))]
    conf = str(package / "toypack" / "conf")
    groups = ["--config-dir", conf, "model=toy", "loss=toy"]
    done = itr("train", *groups, *FEW, *where, *sizes, packages=package, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_package_that_the_user_names(package: Path, run: Path, tmp_path: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["updates"] == 3 and results["model"] == "toy"
    conf = str(package / "toypack" / "conf")
    refused = itr("eval", f"checkpoint={run}", packages=package, cwd=tmp_path)
    assert refused.returncode == 2
    assert "toypack.model.Toy" in refused.stderr and plugins.PLUGINS in refused.stderr
    named = ["--config-dir", conf, f"checkpoint={run}", "model=toy", f"out={tmp_path / 'out'}"]
    done = itr("eval", *named, packages=package, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    evaluated = json.loads((tmp_path / "out" / "results.json").read_text())
    assert evaluated["test/rsum"] == results["test/rsum"]


def test_a_registered_package(installed: Path, run: Path, tmp_path: Path) -> None:
    """Its configuration, its checkpoints and its layout need no further word."""
    random = np.random.default_rng(0)
    for split, size in (("train", 60), ("val", 10), ("test", 10)):
        words = [f"word {number % 7} of image {number}" for number in range(size)]
        regions = random.standard_normal((size, 4, 6)).astype(np.float32)
        np.savez(tmp_path / f"toy-{split}.npz", regions=regions, captions=words)
    given = ["model=toy", "loss=toy", "data=toyset", f"data.root={tmp_path}", "out=run"]
    done = itr("train", *given, *FEW, packages=installed, cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["updates"] == 3
    done = itr("eval", f"checkpoint={run}", packages=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_table_of_losses_shows_both(package: Path, tmp_path: Path) -> None:
    conf = ("--config-dir", str(package / "toypack" / "conf"))
    done = itr("losses", *conf, packages=package, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "|" in line]
    header, *body = rows
    column = header.index("toy") + 1
    cells = {row[0]: row[column] for row in body if len(row) > 1}
    assert cells["`loss=toy`"] == cells["`loss=toy loss.default.scale=5`"] == "yes"
    assert cells["`loss=hrem`"] == "no"


# Safety


@pytest.fixture
def harmful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once the importable package ``harmfulpack`` is imported."""
    mark = tmp_path / "imported"
    code = f"open({str(mark)!r}, 'w').close()\nModel = Loss = prepare = print\n"
    write_files(tmp_path / "packages" / "harmfulpack", {"__init__.py": code})
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return mark


def forge(path: Path, out: Path, **changes: Any) -> Path:
    """A copy of a checkpoint whose header says something else."""
    checkpoint.write(out, checkpoint.read_tensors(path), {**checkpoint.read_meta(path), **changes})
    return out


TARGETS = ("os.system", "harmfulpack.Model", "itr.command.os", "nothing", "")


@pytest.mark.parametrize("target", TARGETS)
def test_a_checkpoint_alone_imports_nothing(
    target: str, run: Path, harmful: Path, tmp_path: Path
) -> None:
    best = run / "checkpoints" / "best.safetensors"
    forged = forge(best, tmp_path / "model.safetensors", model_target=target)
    with pytest.raises(CheckpointError, match=r"model\._target_") as refusal:
        load_checkpoint(forged)
    assert f"'{target}'" in str(refusal.value) and plugins.PLUGINS in str(refusal.value)
    assert not harmful.exists() and "harmfulpack" not in sys.modules


def test_nor_does_its_loss(run: Path, harmful: Path, tmp_path: Path) -> None:
    loss = {"name": "x", "default": {"_target_": "harmfulpack.Loss"}, "weights": {"batch": 1.0}}
    node = {"model_target": "itr.models.vse.VSE", "model_config": {}, "loss": loss}
    best = run / "checkpoints" / "best.safetensors"
    with pytest.raises(CheckpointError, match=r"harmfulpack\.Loss"):
        load_checkpoint(forge(best, tmp_path / "loss.safetensors", **node))
    assert not harmful.exists()


def test_what_a_module_imports_is_no_target() -> None:
    """``itr.x.rmtree`` would otherwise call any function that some module uses."""
    assert locate("itr.losses.triplet.Triplet", "loss").__name__ == "Triplet"
    for target in ("itr.plugins.entry_points", "itr.plugins.functools", "itr.plugins.Path"):
        with pytest.raises(ConfigError, match=target):
            locate(target, "data.prepare")


def test_trust_ends_with_its_context(harmful: Path) -> None:
    node = {"_target_": "harmfulpack.Model"}
    with plugins.trust_targets({"model": [{"inner": node}]}):
        with pytest.raises(ConfigError, match="not a Model"):
            model_class(node)
    assert harmful.exists()
    with pytest.raises(ConfigError, match=plugins.PLUGINS):
        model_class(node)
