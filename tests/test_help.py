"""--help and messages about arguments: what they say, and that they need no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from itr.errors import ConfigError
from itr.help import help_text
from itr.options import read
from tests.conftest import ROOT, call_here

HEAVY = ("torch", "torchvision", "transformers", "timm", "scipy", "numpy")


def test_help_offers_what_train_accepts() -> None:
    page = help_text("train", ["--help"], 80)
    assert max(map(len, page.splitlines())) <= 90
    lines = {line.split()[0]: line for line in page.splitlines() if line.strip()}
    for key in read("train.yaml").keys:
        assert key.startswith("recipe.") or key in lines, key
    for group, option in (("model", "hrem"), ("data", "scenes"), ("loss", "infonce")):
        assert group in lines
        assert option in page
    for refused in ("imagefolder", "torchvision", "zeroshot", "recipe.", "reading"):
        assert refused not in page, refused


def test_help_of_eval_shows_evaluation() -> None:
    page = help_text("eval", ["--help"], 80)
    for wanted in ("checkpoint=RUN_DIR", "imagefolder", "zeroshot", "hubness.k", "ensemble=true"):
        assert wanted in page, wanted
    assert "trainer.epochs" not in page and "pretrain" not in page


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("loss=triplet", ("loss.default.margin", "0.2", "mask_same_image")),
        ("model=albef", ("model.text.fusion_layer", "model.queue_size", "65536")),
        ("model", ("hrem", "CVPR 2023", "--help model=OPTION")),
        ("data", ("scenes", "data.second_text", "data.columns")),
        ("trainer", ("trainer.epochs", "trainer.growth_interval")),
        ("experiment", ("hrem_relations/no_cross",)),
        ("optim", ("optim.schedule.kind",)),
    ],
)
def test_help_of_one_topic(topic: str, words: tuple[str, ...]) -> None:
    page = help_text("train", ["--help", topic], 80)
    assert all(word in page for word in words), page


@pytest.mark.parametrize("topic", ["modle", "loss=triplett"])
def test_an_unknown_topic_names_the_nearest(topic: str) -> None:
    with pytest.raises(ConfigError, match="nearest: (model|triplet)"):
        help_text("train", ["--help", topic], 80)


@pytest.mark.parametrize(
    ("script", "arguments", "code"),
    [
        ("train.py", ["--help"], 0),
        ("train.py", ["--help", "loss=triplet"], 0),
        ("train.py", ["--cfg", "job"], 0),
        ("train.py", ["trainer.epoch=3"], 2),
        ("train.py", ["modle=hrem"], 2),
        ("train.py", ["model=hrme"], 2),
        ("train.py", ["trainer.epochs={b"], 2),
        ("eval.py", ["--help"], 0),
        ("eval.py", ["model.pretrained=false"], 2),
    ],
)
def test_neither_help_nor_a_mistake_imports_torch(
    script: str, arguments: list[str], code: int
) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = {[script, *arguments]!r}\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
        "    code = 0\n"
        "except SystemExit as end:\n"
        "    code = end.code or 0\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print('modules', heavy, code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == f"modules [] {code}", done.stdout + done.stderr


def test_help_into_a_closed_pipe() -> None:
    line = f"{sys.executable} train.py --help | head -n 1"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Train" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    ("script", "argument", "words"),
    [
        ("train.py", "data=imagefolder", ("task=zeroshot", "eval.py", "|coco")),
        ("train.py", "task=zeroshot", ("eval.py", "retrieval")),
        ("train.py", "model=null", ("pass model=", "hrem")),
        ("train.py", "loss=null", ("pass loss=", "triplet")),
        ("train.py", "tracker=wandbb", ("nearest: wandb",)),
        ("train.py", "model.graph.topk_=3", ("nearest: model.graph.topk",)),
        ("eval.py", "model.queue_size=3", ("model=NAME",)),
        ("eval.py", "data.rot=x", ("nearest: data.root",)),
    ],
)
def test_a_mistake_is_answered_with_what_to_pass(
    script: str, argument: str, words: tuple[str, ...]
) -> None:
    done = call_here(script, "seed=1" if script == "train.py" else "split=val", argument)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: ")
    assert all(word in done.stderr for word in words), done.stderr
