"""USER beyond its golden cases: keys and queues, laws of speed, files, mistakes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from itr import checkpoint
from itr.data.images.regions import Regions
from itr.data.layouts.precomp import read_split
from itr.errors import CheckpointError, ConfigError, DataError
from itr.evaluation.encode import eval_mode
from itr.jobs.train import train
from itr.models.build import model_meta, restore
from itr.models.user import USER
from itr.official.__main__ import main as official
from itr.official.load import load_official, recognize
from itr.training.config import check_config
from tests.conftest import compose
from tests.models.tiny import ALL_SIZES, Steps, batch, build

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "user"


def user(*overrides: str, **facts: int | None) -> USER:
    model = build("user", *overrides, **facts)
    assert isinstance(model, USER)
    return model


# Keys and queues


def test_keys_are_enqueued_after_their_batch_of_any_size() -> None:
    steps = Steps("user", model := user())
    written = []
    for number, size in enumerate((10, 10, 10)):  # 24 rows: the third batch wraps around
        given = batch(size, seed=number, image_id=torch.arange(size) + 100 * number)
        before = model.text_queue.features.clone()
        model.before_step(steps.clock)
        model(given, steps.clock, steps.draws)
        assert torch.equal(model.text_queue.features, before)  # not yet
        assert model.pending is not None
        written += [(model.pending.texts[row], 100 * number + row) for row in range(size)]
        model.after_step(steps.clock)
        assert model.pending is None
    for place, (key, image) in enumerate(written):
        slot = place % 24
        if place + 24 < len(written):
            continue  # written over
        assert torch.equal(model.text_queue.features[slot], key)
        assert int(model.text_queue.ids[slot]) == int(model.image_queue.ids[slot]) == image


def test_momentum_encoders_keep_their_modes() -> None:
    dropping = ("model.enhance_dropout=0.4", "model.text.dropout=0.1")
    model, given = user(*dropping).train(), batch()
    with eval_mode(model):
        model.encode_images(given)
        first, second = model.keys(given), model.keys(given)
        assert not torch.equal(first.images, second.images)  # dropout of the enhancement
        assert torch.equal(first.texts, second.texts)  # none in BERT
    assert model.training
    again = model.encode_texts(given).pooled, model.encode_texts(given).pooled
    assert not torch.equal(*again)  # while the encoder that is trained has it


def test_gradients_and_decay_reach_only_the_encoders() -> None:
    steps = Steps("user", model := user())
    assert all(not name.startswith("twin") for name, _ in model.named_parameters())
    keys = {name: value.clone() for name, value in model.twin.state_dict().items()}
    steps(batch())
    moved = model.twin.state_dict()
    weights = {name for name, _ in model.named_parameters()}
    assert all(torch.equal(moved[name], keys[name]) for name in keys if name in weights)
    steps(batch(seed=1))  # now the encoders have moved, and the keys follow
    assert not torch.equal(moved["images.project.weight"], keys["images.project.weight"])
    asleep = dict(model.named_parameters())["images.mlp.unused_norm.weight"]
    assert torch.equal(asleep, torch.ones_like(asleep))  # not even decayed


def test_queue_weight_zero_builds_no_momentum_encoders() -> None:
    model = user("loss.weights.queue=0")
    assert not any(name.startswith(("twin", "text_queue")) for name in model.state_dict())
    steps = Steps("user", model)
    assert torch.isfinite(steps(batch()))


@pytest.mark.parametrize("loss", ["user", "uto", "triplet", "infonce", "vse_slots"])
def test_losses_in_its_slots(loss: str) -> None:
    """All captions of one image too: there is no negative then, and no NaN either."""
    chosen = [f"loss={loss}"]
    if loss == "vse_slots":
        form = "{_target_: itr.losses.uto.UTO, positive: drop, mask_same_image: true}"
        chosen = [f"loss.slots.{slot}={form}" for slot in ("batch", "queue")]
    steps = Steps("user", model := user(*chosen))
    before = model.texts.project.weight.detach().clone()
    for ids in (torch.arange(8), torch.zeros(8, dtype=torch.int64)):
        pairs = 8 if ids.any() else 64
        assert torch.isfinite(steps(batch(image_id=ids, positive_pairs=pairs)))
    assert not torch.equal(model.texts.project.weight, before)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


# Files


def test_a_checkpoint_rebuilds_its_model(tmp_path: Path) -> None:
    steps = Steps("user", model := user())
    steps(batch())
    path = tmp_path / "best.safetensors"
    loss = compose("train", ["model=user"])["loss"]
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    checkpoint.write(path, tensors, {**model_meta(model), "loss": loss})
    again = restore(path, checkpoint.read_meta(path))
    found = again.state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
    given = batch(seed=3)
    with torch.no_grad():
        mine, theirs = model.eval().encode_images(given), again.eval().encode_images(given)
    assert torch.equal(mine.pooled, theirs.pooled)


def test_weights_without_momentum_encoders_initialize_a_run() -> None:
    """From a checkpoint of the authors, of VSE's encoders, or with a queue of another length."""
    source, model = user("loss.weights.queue=0"), user()
    model.load_state_dict(model.fit_weights(source.state_dict()))
    for name, value in source.state_dict().items():
        assert torch.equal(model.twin.state_dict()[name], value), name
    longer = user("model.queue_size=48")
    longer.load_state_dict(longer.fit_weights(model.state_dict()))
    assert len(longer.text_queue) == 48


def test_authors_files_of_user_and_vse_are_distinguished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bert = json.loads((GOLDEN / "forward_eval.json").read_text())["bert_config"]
    heads = {"heads": bert["num_attention_heads"]}
    for name, file in (
        ("user", GOLDEN / "official_checkpoint.pth"),
        ("vse", GOLDEN / "vse_infty_official_checkpoint.pth"),
    ):
        assert recognize(file) == name
        other = "vse" if name == "user" else "user"
        with pytest.raises(CheckpointError, match="not a checkpoint of the authors"):
            load_official(file, other, heads)
        ours, back = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.pth"
        given = ["--heads", str(heads["heads"])]
        assert official(["convert", str(file), str(ours), *given]) == 0
        assert official(["export", str(ours), str(back)]) == 0
        first, second = (load_official(f, name, heads)[1] for f in (file, back))
        assert all(torch.equal(value, second.state[key]) for key, value in first.state.items())
    damaged = tmp_path / "cut.pth"
    damaged.write_bytes((GOLDEN / "official_checkpoint.pth").read_bytes()[:5000])
    assert official(["inspect", str(damaged)]) == 2
    assert "truncated" in capsys.readouterr().err


def test_a_weight_of_another_size_is_named(tmp_path: Path) -> None:
    payload = torch.load(GOLDEN / "official_checkpoint.pth", weights_only=False)
    payload["model"][0]["mlp.layers.0.weight"] = torch.zeros(3, 3)
    del payload["model"][1]["linear.bias"]
    payload["model"][1]["bert.embeddings.position_ids"] = torch.arange(4)  # dropped, not refused
    torch.save(payload, path := tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as caught:
        load_official(path, "user", {"heads": 4})
    told = str(caught.value)
    assert "images.mlp.inner.weight (3, 3)" in told and "texts.project.bias" in told
    assert "position_ids" not in told


# Mistakes


def test_another_number_of_regions_is_rejected_before_training() -> None:
    with pytest.raises(ConfigError, match="10 regions per image; pass model.regions=10"):
        user(regions=10)
    assert user("model.enhance=none", regions=10).images.enhance is None
    model = user()
    few = batch(regions=torch.randn(8, 5, 12), region_mask=torch.ones(8, 5, dtype=torch.bool))
    with pytest.raises(DataError, match="5 regions"):
        model.eval().encode_images(few)


def test_invalid_enhancement_options_are_rejected() -> None:
    with pytest.raises(ConfigError, match="model.region_drop=0"):
        user("model.region_drop=0.2")
    with pytest.raises(ConfigError, match="expected one of none, sge, cge"):
        user("model.enhance=clip")
    one = dataclasses.replace(
        batch(2),
        **{
            name: getattr(batch(2), name)[:1]
            for name in ("image_id", "regions", "region_mask", "tokens", "token_mask")
        },
    )
    with pytest.raises(ConfigError, match="batch_size.*at least 2"):
        Steps("user", user())(one)


def test_clip_guided_enhancement(tmp_path: Path) -> None:
    """Read from its file; V = x + a g for each guide, attention on the plain regions."""
    np.save(tmp_path / "train_ims.npy", np.random.rand(4, 6, 12).astype(np.float32))
    np.save(tmp_path / "train_clip.npy", clip := np.random.rand(4, 5).astype(np.float16))
    (tmp_path / "train_caps.txt").write_text("a\n" * 4)
    fetched = Regions(read_split(tmp_path, "train")).fields(np.array([2, 0]))
    assert torch.equal(fetched["guides"], torch.from_numpy(clip[[2, 0]]).float())
    np.save(tmp_path / "train_clip.npy", clip[:3])
    with pytest.raises(DataError, match=r"expected floats of shape \(4, width\)"):
        read_split(tmp_path, "train")
    with pytest.raises(ConfigError, match="model.enhance: .*<split>_clip.npy"):
        user("model.enhance=cge")
    given = batch(guides=torch.randn(8, 5))
    with pytest.raises(ConfigError, match="5 wide.*12; pass model.guide_projection=linear"):
        user("model.enhance=cge", "model.guide_projection=none", guide_width=5)
    with pytest.raises(ConfigError, match="expected one of linear, mlp, none"):
        user("model.guide_projection=conv")
    equal = user("model.enhance=cge", "model.guide_projection=none", guide_width=12)
    assert not list(equal.images.enhance.parameters())
    for choice, kind in (("cge", "linear"), ("sge+cge", "linear"), ("sge+cge", "mlp")):
        model = user(f"model.enhance={choice}", f"model.guide_projection={kind}", guide_width=5)
        assert torch.isfinite(Steps("user", model)(given))
        model.eval()
        x, enhanced = given.regions, model.images.enhance
        expected = x.clone()
        for name, guide in enhanced.guides.items():
            g = guide.project(given.guides) if name == "clip" else guide(x)
            g = g / g.norm(dim=1, keepdim=True)
            a = torch.softmax((x * g[:, None]).sum(dim=2), dim=1)
            expected += (a / a.norm(dim=1, keepdim=True))[:, :, None] * g[:, None]
        torch.testing.assert_close(enhanced(x, given.guides), expected, atol=1e-5, rtol=1e-5)
        with pytest.raises(DataError, match="model.enhance: .*_clip.npy"):
            model.encode_images(batch())


def test_a_run_from_files_to_results(world: Path, tmp_path: Path) -> None:
    """And the same files with another ``model.regions`` leave nothing behind."""
    overrides = [
        "model=user",
        *ALL_SIZES["vse"],
        "model.text.width=32",
        "model.text.vocabulary_size=300",
        "model.queue_size=64",
        "model.text.max_positions=64",
        "batch_size=30",
        "trainer.epochs=1",
        "data.prepare.train=60",
        "data.prepare.val=20",
        "data.prepare.test=20",
        "tracker=none",
        "device=cpu",
        f"data.root={world / 'data'}",
        f"data.cache={world / 'cache'}",
        f"out={tmp_path / 'run'}",
    ]
    results = train(compose("train", overrides))
    assert results["recipe"] == "user_scenes_retrieval" and 0 <= results["test/rsum"] <= 600
    wrong = [*overrides, "model.regions=10", f"out={tmp_path / 'other'}"]
    with pytest.raises(ConfigError, match="36 regions per image; pass model.regions=36"):
        train(compose("train", wrong))
    assert not (tmp_path / "other").exists()


def test_a_recipe_sets_options_of_the_models_default_loss_only() -> None:
    for options, mu in (((), 30.0), (("data=f30k", "data.root=x"), 90.0)):
        slots = compose("train", ["model=user", *options])["loss"]["slots"]
        assert slots["batch"]["mu"] == slots["queue"]["mu"] == mu
    assert compose("train", ["model=user", "loss=uto"])["loss"]["default"]["mu"] == 90.0
    with pytest.raises(ConfigError, match=r"recipe.loss.mux: unknown key; nearest: mu"):
        check_config(compose("train", ["model=user", "+recipe.loss.mux=3"]))
