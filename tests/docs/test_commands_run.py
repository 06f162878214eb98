"""Commands of the pages that need no download, typed as they stand in a folder of tiny data."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from itr import cli
from tests.conftest import call_here
from tests.data import worlds
from tests.docs import pages
from tests.docs.pages import Snippet

TRAIN = "model=alip recipe=alip_scenes_retrieval data=table data.train=pairs.csv data.images=DIR"
SMALL = (
    "trainer.max_steps=2 trainer.log_every=1 batch_size=8 tracker=none device=cpu "
    "runtime.estimate=false"
).split()

# What is run, in the order of the pages; every pattern must occur on some page.
RUN = (
    r"itr data check data=table data\.train=pairs\.csv",
    r"itr data check data\.root=DIR$",
    r"itr data check data\.root=DIR --json",
    r"itr data convert --help",
    r"itr data convert coco/ coco/wds",
    r"itr data convert arrow/ ",
    r"itr data convert f30k/ pairs\.csv",
    r"itr data convert coco_precomp/ ",
    r"itr (search|embed) RUN_DIR",
    r"itr results runs/",
    r"itr results compare RUN_A RUN_B",
    r"itr gallery RUN_DIR",
    r"itr official export RUN_DIR",
    r"python eval\.py checkpoint=RUN_DIR split=",
    r"python eval\.py checkpoint=RUN_DIR embeddings=",
    r"python eval\.py checkpoint=RUN_DIR 'hubness",
    r"python eval\.py 'checkpoint=\[RUN_A,RUN_B\]'",
    r"python eval\.py scores=sims\.npz",
)
EXTRA = {"itr gallery RUN_DIR": ["--queries", "1", "--heat", "1"]}  # they take seconds each


def type_command(words: list[str], folder: Path) -> int:
    """Run a command as if typed in ``folder``; returns the exit code."""
    GlobalHydra.instance().clear()
    if words[0] == "python":
        return call_here(words[1], *words[2:], cwd=folder).returncode
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            return cli.main(words[1:])
        except SystemExit as ended:
            return int(ended.code or 0)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """A folder with everything that the pages' placeholders stand for."""
    desk = tmp_path_factory.mktemp("desk")
    scenes = next((world / "data").glob("scenes-*"))
    shutil.copytree(scenes / "images", desk / "DIR")
    annotations = json.loads((scenes / "dataset_scenes.json").read_text())["images"]
    for path in (desk / "pairs.csv", desk / "DIR" / "pairs.csv"):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "caption", "split"])
            for image in annotations:
                for sentence in image["sentences"]:
                    writer.writerow([image["filename"], sentence["raw"], image["split"]])
    for name, run in (("RUN_DIR", "seed=0"), ("RUN_B", "seed=1")):
        done = call_here("train.py", *TRAIN.split(), *SMALL, run, f"out={name}", cwd=desk)
        assert done.returncode == 0, done.stderr
    (desk / "RUN_A").symlink_to("RUN_DIR")
    (desk / "runs").mkdir()
    (desk / "runs" / "one").symlink_to("../RUN_DIR")
    (desk / "FILE").write_text("A dog on a beach.\nTwo circles.\n")
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(desk / "DIR" / annotations[0]["filename"], desk / name)
    scores = np.random.default_rng(0).normal(size=(10, 50)).astype(np.float32)
    np.savez(desk / "sims.npz", scores=scores, text_to_image=np.arange(50) // 5)
    return desk


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small datasets in the layouts that are converted."""
    folder = tmp_path_factory.mktemp("datasets")
    items = worlds.make_items(captions=5)
    worlds.write_karpathy(folder / "coco", items)
    worlds.write_arrow(folder / "arrow", items)
    worlds.write_precomp(folder, items)
    worlds.write_image_files(folder / "DIR" / "val2014", items)
    return folder


def commands(pattern: str) -> list[Snippet]:
    snippets = (snippet for page in pages.PAGES for snippet in pages.fenced_commands(page))
    return [s for s in snippets if re.search(rf"^{pattern}", re.sub(r"\s+#.*", "", s.text))]


@pytest.mark.parametrize("pattern", RUN)
def test_command_runs(
    pattern: str,
    desk: Path,
    datasets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = commands(pattern)
    assert found, "no page has such a command any more"
    done = set()
    for snippet in found:
        words = list(snippet.words)
        if tuple(words) in done:
            continue
        done.add(tuple(words))
        folder = desk
        if words[1:3] == ["data", "convert"]:
            folder = datasets
            if "f30k/" in words:  # two pages' commands must not meet in one folder
                worlds.write_karpathy(tmp_path / "f30k", worlds.make_items(), "f30k")
                folder = tmp_path
        extra = next((more for start, more in EXTRA.items() if snippet.text.startswith(start)), [])
        code = type_command([*words, *extra], folder)
        assert code == 0, f"{snippet}: exit code {code}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("page", ["docs/own-data.md", "docs/evaluation.md"])
def test_python_on_a_page_runs(page: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    blocks = [
        block.group(3)
        for block in pages.FENCE.finditer(pages.read(Path(page)))
        if block.group(2) == "python"
    ]
    assert blocks
    with np.load("sims.npz") as stored:
        names: dict = dict(stored)
    for block in blocks:
        exec(block, names)  # noqa: S102
        assert set(names["results"]) >= {"i2t_r1", "rsum"}
