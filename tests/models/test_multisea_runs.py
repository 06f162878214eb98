"""Multi-SEA from files on disk to results: training, both stages, eval.py, the authors' file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from itr import checkpoint
from itr.errors import CheckpointError, ConfigError
from itr.evaluation.query_log import read_queries
from itr.jobs.evaluate import evaluate
from itr.jobs.train import train
from itr.official.__main__ import main as official
from tests.conftest import ROOT, compose

SMALL = (
    "model=multisea",
    "data=scenes",
    "data.prepare.train=60",
    "data.prepare.val=20",
    "data.prepare.test=20",
    "batch_size=12",
    "accumulate=2",
    "trainer.max_steps=3",
    "trainer.validate_every=3",
    "model.embed_size=16",
    "model.queue_size=30",
    "model.text_padding=16",
    "model.image.size=32",
    "model.image.patch=16",
    "model.image.width=16",
    "model.image.head_width=8",
    "model.image.depth=2",
    "model.text.width=16",
    "model.text.depth=1",
    "model.text.heads=2",
    "model.text.mlp_width=16",
    "model.aformer.depth=2",
    "model.aformer.heads=2",
    "rerank.k=12",
    "tracker=none",
    "device=cpu",
)


@pytest.fixture(scope="module")
def here(world: Path) -> tuple[str, ...]:
    return (*SMALL, f"data.root={world / 'data'}", f"data.cache={world / 'cache'}")


@pytest.fixture(scope="module")
def trained(here: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "trained"
    results = train(compose("train", [*here, f"out={out}", "model.image.trained_layers=1"]))
    assert results["test/rerank_k"] == 12
    return out


def test_a_run_trains_both_terms_and_its_frozen_half_stays(
    here: tuple[str, ...], trained: Path, tmp_path: Path
) -> None:
    logged = (trained / "metrics.jsonl").read_text()
    for key in ("train/itc", "train/itm", "train/temp", "train/alpha"):
        assert f'"{key}"' in logged
    out = tmp_path / "again"
    more = (f"model.init={trained}", "model.image.trained_layers=1", "seed=1")
    train(compose("train", [*here, f"out={out}", *more]))

    def weight(run: Path, name: str) -> torch.Tensor:
        path = run / "checkpoints" / "last.safetensors"
        return checkpoint.read_tensors(path, "model/")[name]

    blocks = "images.tower.transformer.resblocks."
    first, last = f"{blocks}0.mlp.c_fc.weight", f"{blocks}1.mlp.c_fc.weight"
    assert torch.equal(weight(trained, first), weight(out, first))
    assert not torch.equal(weight(trained, last), weight(out, last))


def test_both_stages_are_evaluated_again_from_the_checkpoint(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    checked = f"checkpoint={trained}"
    again = evaluate(compose("eval", [checked, "device=cpu", "hubness.rows=[csls]"]))
    first = evaluate(compose("eval", [checked, "device=cpu", "rerank.enabled=false"]))
    # A correction for hubs is of the first stage, and no row beside re-ranked ones.
    assert "test/first_stage/hubness_csls/rsum" in again and "test/hubness_csls/rsum" not in again
    log = read_queries(trained)
    assert log.ranks["full"].depth == 12 and log.extra_ranks["first_stage/full"].depth is None
    for key in ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10"):
        assert again[f"test/{key}"] == pytest.approx(results[f"test/{key}"])
        assert first[f"test/{key}"] == pytest.approx(results[f"test/first_stage/{key}"])


@pytest.mark.parametrize("loss", ["infonce", "triplet", "sigmoid"])
def test_any_generic_loss_in_its_slot(here: tuple[str, ...], tmp_path: Path, loss: str) -> None:
    values = compose(
        "train", [*here, f"loss={loss}", "trainer.max_steps=2", f"out={tmp_path / 'run'}"]
    )
    assert train(values)["test/rsum"] >= 0.0


@pytest.mark.parametrize("loss", ["uto", "hrem"])
def test_losses_on_cosines_are_refused_before_data_is_read(loss: str, tmp_path: Path) -> None:
    given = [*SMALL, f"loss={loss}", f"data.root={tmp_path / 'none'}", f"out={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=r"loss\.slots\."):
        train(compose("train", given))
    assert not (tmp_path / "none").exists()


def test_the_authors_file_there_and_back(tmp_path: Path) -> None:
    theirs = tmp_path / "step4-val_score366.6667.ckpt"
    shutil.copy(ROOT / "tests" / "golden" / "multisea" / "official_checkpoint.ckpt", theirs)
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.ckpt"
    assert official(["inspect", str(theirs)]) == 2  # RoBERTa's heads are not in the file
    assert official(["convert", str(theirs), str(ours), "--heads", "2"]) == 0
    assert official(["export", str(ours), str(back)]) == 0
    a, b = (torch.load(path, weights_only=True)["state_dict"] for path in (theirs, back))
    assert a.keys() == b.keys()
    used = [n for n in a if ".dwc." not in n and not n.startswith("visual_encoder.")]
    used.remove("aformer.encoder.norm.weight")
    assert all(torch.equal(a[name], b[name]) for name in used)
    assert back.stat().st_size < 2 * theirs.stat().st_size


def test_another_methods_or_sizes_checkpoint_is_refused(
    here: tuple[str, ...], trained: Path, tmp_path: Path
) -> None:
    out = f"out={tmp_path / 'run'}"
    with pytest.raises(CheckpointError, match=r"model.init=.*aformer"):
        wide = [*here, out, f"model.init={trained}", "model.embed_size=32"]
        train(compose("train", wide))
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"nothing")
    with pytest.raises(
        CheckpointError, match=r"broken.ckpt.*cannot be read as a PyTorch checkpoint"
    ):
        train(compose("train", [*here, f"{out}2", f"model.init={broken}"]))
