"""ALIP against plain second implementations, its speed laws, other files and losses, bad input."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.operator_counts import count_operators
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import CheckpointError, ConfigError, DataError, UserError
from itr.jobs.evaluate import evaluate
from itr.jobs.init_weights import initialize_from
from itr.jobs.train import train
from itr.models.alip import ALIP, AdaptiveGates, GateConfig
from itr.official import alip as official
from itr.official.__main__ import main
from itr.official.load import load_official, recognize
from itr.training.config import check_config
from itr.training.optim import build_optimizer
from tests.conftest import compose
from tests.models import tiny
from tests.models.tiny import ALL_SIZES, CAPTION, PIXELS, batch_for

LENGTH, SIZES = CAPTION, ALL_SIZES["alip"]
MOST_OF_CRITERION = 112  # operators, forward and backward, views left out


def build(*overrides: str) -> ALIP:
    model = tiny.build("alip", *overrides)
    assert isinstance(model, ALIP)
    return model


def batch(pairs: int = 6, ids: list[int] | None = None, seed: int = 1) -> Batch:
    return batch_for("alip", pairs, ids, seed)


def total_of(model: ALIP, given: Batch) -> Tensor:
    model.before_step(Clock())
    return torch.stack(list(model(given, Clock(), Draws()).losses.values())).sum()


# The gates


def naive_gates(
    steps: list[tuple[Tensor, Tensor, Tensor]], config: GateConfig
) -> list[list[list[float]]]:
    """Weights [step][W_s, W_t, W_c][sample], sample by sample in double precision."""
    means, found = [config.start] * 3, []
    for x, t, c in steps:
        similarities = [
            [float(a.double() @ b.double()) for a, b in zip(left, right, strict=True)]
            for left, right in ((t, c), (x, t), (x, c))
        ]
        for k, values in enumerate(similarities):
            mean = sum(values) / len(values)
            means[k] = (1 - config.momentum) * mean + config.momentum * means[k]
        weights: list[list[float]] = [[], [], []]
        for s_tc, s_xt, s_xc in zip(*similarities, strict=True):
            low = s_tc < means[0]
            gains = (
                math.exp(config.gamma_sample * (s_tc - means[0])),
                math.exp(config.gamma_pair * (s_xt - means[1])),
                math.exp(config.gamma_pair * (s_xc - means[2])),
            )
            on = (config.sample, config.raw, config.caption)
            for k in range(3):
                weights[k].append(gains[k] if low and on[k] else 1.0)
        found.append(weights)
    return found


@pytest.mark.parametrize(
    "config",
    [
        GateConfig(momentum=0.5),
        GateConfig(momentum=0.9, gamma_sample=1.0, gamma_pair=3.0, start=0.2),
        GateConfig(momentum=0.5, sample=False),
        GateConfig(momentum=0.5, raw=False, caption=False),
    ],
)
def test_gates(config: GateConfig) -> None:
    generator, gates, steps = torch.Generator().manual_seed(0), AdaptiveGates(config), []
    for _ in range(5):
        x, t, c = torch.nn.functional.normalize(torch.randn(3, 7, 4, generator=generator), dim=-1)
        c[0] = t[0]  # a caption that says what the raw text says is never low
        steps.append((x, t, c))
    for given, expected in zip(steps, naive_gates(steps, config), strict=True):
        found = gates(*given)
        torch.testing.assert_close(torch.stack(list(found)), torch.tensor(expected))
        assert all(float(weight[0]) == 1.0 for weight in found)


def test_running_means_are_saved() -> None:
    model = build()
    total_of(model, batch())
    again = build()
    again.load_state_dict(model.state_dict())
    assert not torch.equal(again.gates.means, torch.ones(3))
    assert torch.equal(total_of(again, batch(seed=2)), total_of(model, batch(seed=2)))


# The towers


def test_texts_can_be_cut_to_the_longest() -> None:
    model, given = build().eval(), batch()
    assert given.second_tokens is not None
    longer = torch.nn.functional.pad(given.second_tokens, (0, LENGTH - 7))
    with torch.no_grad():
        short = model.encode_texts(Batch(tokens=given.second_tokens)).pooled
        full = model.encode_texts(Batch(tokens=longer)).pooled
    torch.testing.assert_close(short, full, atol=1e-6, rtol=1e-5)


def test_a_residual_image_tower_trains() -> None:
    sizes = ("model.image.size=32", "model.image.depth=[1,1,1,1]", "model.image.width=8")
    model = build(*sizes)
    given = dataclasses.replace(batch(), pixels=torch.randn(6, 3, 32, 32))
    total_of(model.train(), given).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval().encode_images(given).pooled.shape == (6, 16)


# Training


@pytest.mark.parametrize("loss", ["infonce", "triplet", "uto", "sigmoid"])
def test_other_losses_train_both_towers(loss: str) -> None:
    model = build(f"loss={loss}").train()
    total = total_of(model, batch())
    total.backward()
    assert torch.isfinite(total)
    for weight in (model.images.conv1.weight, model.texts.token_embedding.weight):
        assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_overfits_one_batch() -> None:
    model = build().train()
    config = check_config(compose("train", ["model=alip", "optim.lr=3e-3"]))
    optimizer, given, totals = build_optimizer(model, config.optim), batch(), []
    for _ in range(25):
        total = total_of(model, given)
        totals.append(total.item())
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    # The first totals are small because the gates start closed.
    assert totals[-1] < 0.5 * max(totals), totals
    with torch.no_grad():
        x, t = (model.train(False).encode_images(given), model.encode_texts(given))
    assert (x.pooled @ t.pooled.t()).argmax(dim=1).tolist() == list(range(6))


def test_half_precision_stays_close() -> None:
    model, given = build().train(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        half = total_of(model, given)
    half.backward()
    model.gates.means.fill_(1.0)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(total_of(model, given).item(), rel=0.03)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_terms_of_weight_zero_are_not_computed() -> None:
    model = build("loss.weights.caption=0")
    assert list(model(batch(), Clock(), Draws()).losses) == ["raw"]


ONE_TEXT = ("loss.weights.caption=0", "model.gates.sample=false", "model.gates.raw=false")


def test_one_text_is_one_pass() -> None:
    """Where no term and no gate needs captions, they are neither required nor encoded."""
    both, one = build("model.gates.sample=false", "model.gates.raw=false"), build(*ONE_TEXT)
    one.load_state_dict(both.state_dict())
    given, passes = batch(), []
    one.texts.register_forward_hook(lambda *_: passes.append(1))
    alone = dataclasses.replace(given, second_tokens=None, second_mask=None)
    terms = one(alone, Clock(), Draws())
    assert len(passes) == 1 and one.view.second_text is None
    raw = both(given, Clock(), Draws()).losses["raw"]
    assert list(terms.losses) == ["raw"] and torch.equal(terms.losses["raw"], raw)
    assert list(terms.report) == ["scale"]
    assert build("loss.weights.caption=0").view.second_text is not None  # its gates compare texts


def test_a_dataset_of_one_text_is_trained_on(world: Path, tmp_path: Path) -> None:
    """Karpathy's JSON has no synthetic captions."""
    plain = [
        "model=alip", "recipe=alip_scenes_retrieval", "data=scenes", "data.second_text=null",
        "data.layout=karpathy",
        "data.prepare.train=60", "data.prepare.val=20", "data.prepare.test=20", "batch_size=20",
        "trainer.max_steps=2", "device=cpu", "tracker=none", f"data.root={world / 'data'}",
        f"data.cache={world / 'cache'}", f"out={tmp_path / 'run'}",
    ]  # fmt: skip
    with pytest.raises(UserError, match="second_text"):
        train(compose("train", plain))
    results = train(compose("train", [*plain, *ONE_TEXT]))
    assert results["updates"] == 2 and results["test/rsum"] > 0


def test_repeated_images_are_not_negatives() -> None:
    given, whole = batch(ids=[0, 0, 1, 2, 3, 4]), batch()
    assert total_of(build(), given) != total_of(build(), whole)
    alone = total_of(build(), batch(ids=[5] * 6))
    alone.backward()
    assert torch.isfinite(alone)


def test_the_temperature_is_clamped() -> None:
    model = build()
    for value, kept in ((7.0, math.log(100)), (-0.3, 0.0), (3.0, 3.0)):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.before_step(Clock())
        assert float(model.logit_scale.detach()) == pytest.approx(kept)


def test_weight_decay_groups() -> None:
    model = build()
    groups = {group.name: group for group in model.parameter_groups(1e-3, 0.2)}
    decayed, spared = set(groups["towers"].names), set(groups["undecayed"].names)
    assert {"images.conv1.weight", "texts.text_projection"} <= decayed
    assert {"logit_scale", "images.ln_pre.weight", "texts.ln_final.bias"} <= spared
    assert groups["undecayed"].weight_decay == 0.0
    assert decayed | spared == {name for name, _ in model.named_parameters()}
    habit = build("model.decay_all=true", "loss=sigmoid").parameter_groups(1e-3, 0.2)
    assert [(g.name, g.weight_decay) for g in habit] == [("towers", 0.2), ("loss", 0.0)]
    assert "logit_scale" in habit[0].names


def test_gates_and_losses_are_few_operators() -> None:
    model = build()
    x, t, c = (
        torch.nn.functional.normalize(torch.randn(5, 16), dim=1).requires_grad_() for _ in range(3)
    )

    def criterion() -> None:
        terms = model.criterion(x, t, c, torch.arange(5), 5, Clock(), Draws())
        torch.stack(list(terms.losses.values())).sum().backward()

    assert sum(count_operators(criterion).values()) <= MOST_OF_CRITERION


def test_run_from_files_to_results(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}", "device=cpu"]
    tiny = [
        *SIZES,
        "data.second_text=null",  # the captions of the shards
        "data.prepare.train=60",
        "data.prepare.val=20",
        "data.prepare.test=20",
        "batch_size=20",
        "trainer.epochs=2",
        "tracker=none",
        f"out={run}",
    ]
    results = train(compose("train", ["model=alip", *places, *tiny]))
    assert results["updates"] == 6 and results["test/n_captions"] == 100
    assert results["recipe"] == "alip_scenes_retrieval"
    again = evaluate(compose("eval", [f"checkpoint={run}", *places[:2], "device=cpu"]))
    assert {k: v for k, v in again.items() if k.startswith("test/")} == {
        k: v for k, v in results.items() if k.startswith("test/")
    }


# Other people's files


def test_openai_and_open_clip_checkpoints(tmp_path: Path) -> None:
    model = build()
    state = official.official_state(model)
    halves = {name: value.half() for name, value in state.items()}
    extras = {name: torch.tensor(7) for name in official.OPENAI_EXTRAS}
    torch.save({**halves, **extras}, tmp_path / "openai.pt")
    torch.save({"epoch": 3, "state_dict": official.export(model)}, tmp_path / "open_clip.pt")
    for name, quick in (("openai", True), ("open_clip", False)):
        path = tmp_path / f"{name}.pt"
        assert recognize(path) == "alip"
        loaded, imported = load_official(path, "alip")
        assert imported.config.quick_gelu is quick and imported.report.missing == ["gates.means"]
        assert isinstance(loaded, ALIP) and loaded.config.image.size == PIXELS
        for key, value in official.official_state(loaded).items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, halves[key].float() if quick else state[key])
    assert sorted(official.read(tmp_path / "openai.pt").report.ignored) == sorted(extras)


def test_openai_archive_is_evaluated_and_initializes_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A TorchScript file in half precision, with numbers and masks beside the weights."""
    model, path = build("model.quick_gelu=true"), tmp_path / "ViT-B-32.pt"
    halves = {name: value.half() for name, value in official.official_state(model).items()}
    blocks = [f"transformer.resblocks.{block}.attn_mask" for block in range(2)]
    masks = {name: torch.zeros(LENGTH, LENGTH) for name in blocks}
    for extras in ({}, {**masks, "input_resolution": torch.tensor(PIXELS)}):
        tiny.save_archive({**halves, **extras}, path)
        assert recognize(path) == "alip" and main(["inspect", str(path)]) == 0
        loaded, imported = load_official(path, "alip")
        assert imported.config.quick_gelu and sorted(imported.report.ignored) == sorted(extras)
        with torch.no_grad():
            given = batch()
            found, expected = (one.eval().encode_images(given).pooled for one in (loaded, model))
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    fresh = build("model.quick_gelu=true", "model.image.size=24", f"model.init={path}")
    told = initialize_from(fresh, "alip", str(path))
    assert "resized (1): images.positional_embedding" in " ".join(told)
    assert torch.equal(fresh.texts.text_projection, halves["text_projection"].float())
    with pytest.raises(CheckpointError, match="activation; pass model.quick_gelu=true"):
        initialize_from(build(), "alip", str(path))
    path.write_bytes(path.read_bytes()[:3000])
    assert main(["inspect", str(path)]) == 2
    assert "ViT-B-32.pt" in capsys.readouterr().err


def test_convert_and_export_are_inverse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, ours, back = (tmp_path / name for name in ("a.pt", "b.safetensors", "c.pt"))
    torch.save(official.export(build()), theirs)
    assert main(["convert", str(theirs), str(ours)]) == 0
    assert main(["export", str(ours), str(back)]) == 0
    first, second = (torch.load(path, weights_only=True) for path in (theirs, back))
    assert list(first) == list(second)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert main(["inspect", str(theirs)]) == 0
    shown = capsys.readouterr().out
    assert "method: alip" in shown and "gates.means" in shown


def test_position_embeddings_are_resized() -> None:
    small, large = build(), build("model.image.size=32")
    fitted = large.fit_weights(small.state_dict())
    large.load_state_dict(fitted)
    first = small.state_dict()["images.positional_embedding"]
    assert torch.equal(large.state_dict()["images.positional_embedding"][0], first[0])
    corner = large.state_dict()["images.positional_embedding"][1]
    torch.testing.assert_close(corner, first[1])  # corners stay where they were


# Bad input


def broken(**fields: Any) -> Batch:
    return dataclasses.replace(batch(), **fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (broken(second_tokens=None), "data.second_text=other_caption or data.second_text=FILE"),
        (broken(tokens=torch.ones(6, LENGTH + 1, dtype=torch.long)), f"has {LENGTH} positions"),
        (broken(pixels=torch.ones(6, 3, 24, 24)), "24 x 24 pixels.*model.image.size=24"),
        (broken(pixels=torch.ones(6, 3, 1, 1)), "1 x 1 pixels"),
    ],
)
def test_bad_batches(given: Batch, message: str) -> None:
    with pytest.raises(DataError, match=message):
        total_of(build(), given)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.gather_grad=none", "model.gather_grad=none: .*full, local"),
        ("model.temperature=0.001", "model.temperature=0.001: .*0.01"),
        ("model.crop_scale=[0.9,0.5]", r"model.crop_scale=\[0.9, 0.5\]"),
        ("model.gates.momentum=1.5", "model.gates.momentum=1.5: .*at most 1"),
        ("model.image.size=20", "model.image.size=20: .*model.image.patch=8"),
        ("model.text.heads=5", "heads=5: .*64"),
        ("model.image.patch=null", "model.image.patch"),
        ("model.image.depth=[1,1,1]", r"model.image.depth=\[1, 1, 1\]: .* 32 pixels"),
        ("model.image.head_width=0", "model.image.head_width"),
        ("model.pretrained=true", "start from OpenAI's CLIP with model.init="),
    ],
)
def test_bad_options(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(override)


def test_bad_files(tmp_path: Path) -> None:
    good = official.export(build())
    path = tmp_path / "file.pt"

    def fault(payload: Any, **text: Any) -> str:
        torch.save(payload, path)
        with pytest.raises(CheckpointError) as caught:
            official.read(path, text)
        return str(caught.value)

    assert "not a checkpoint of the authors of ALIP" in fault({"model": [1, 2]})
    assert "missing (1): texts.ln_final.bias" in fault(
        {k: v for k, v in good.items() if k != "module.ln_final.bias"}
    )
    assert "unexpected (1): queue" in fault({**good, "module.queue": torch.zeros(2)})
    narrow = {**good, "module.visual.proj": torch.zeros(64, 15)}
    assert "shape (1): images.proj (64, 15), expected (64, 16)" in fault(narrow)
    assert "model.text.heads" in fault(good, heads=5)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read as a PyTorch checkpoint"):
        official.read(path)
