"""What a user does with trained models: evaluate, keep embeddings, average, classify, search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fico_itr import instance_retrieval
from PIL import Image
from safetensors.torch import load_file

import itr
from itr.data.layouts.registry import DataConfig, open_split
from itr.errors import ConfigError, DataError, UserError
from itr.evaluation.query_log import read_queries
from itr.evaluation.ranks import rank_scores
from itr.evaluation.statistics import METRICS
from itr.jobs.commands.embed_search_cli import embed, search
from itr.jobs.evaluate import evaluate
from itr.jobs.train import train
from itr.results.collect import collect, find_results
from itr.results.compare import compare
from tests.conftest import compose
from tests.data.worlds import write_tar
from tests.results.trackers.test_tracker import items, records

SIZES = (
    "data.prepare.train=60",
    "data.prepare.val=20",
    "data.prepare.test=20",
    "model.image.size=32",
    "model.embed_size=16",
    "model.image.width=8",
    "model.text.width=16",
    "model.text.heads=2",
    "model.text.depth=1",
    "batch_size=20",
    "trainer.max_steps=1",
    "tracker=none",
    "device=cpu",
)


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of ALIP that differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    for seed in (0, 1):
        chosen = [f"seed={seed}", f"out={folder / str(seed)}"]
        train(compose("train", ["model=alip", *SIZES, *places, *chosen]))
    return [folder / "0", folder / "1"]


@pytest.fixture
def given(world: Path) -> list[str]:
    return [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}", "device=cpu"]


@pytest.fixture(scope="module")
def pictures(world: Path) -> list[Path]:
    """The pictures of the tiny world's test split, in its order."""
    values = compose("eval", ["data=scenes", f"data.root={world / 'data'}"])["data"]
    root = next((world / "data").iterdir())
    data = DataConfig(name=values["name"], root=str(root))
    return [Path(str(record.image)) for record in open_split(data, "test", "pixels").records]


def of(results: dict[str, Any], below: str) -> dict[str, Any]:
    return {k.removeprefix(below): v for k, v in results.items() if k.startswith(below)}


def test_stored_embeddings_score_the_same_and_go_stale(
    runs: list[Path], given: list[str], tmp_path: Path
) -> None:
    kept = f"embeddings={tmp_path / 'kept.safetensors'}"
    first = evaluate(compose("eval", [f"checkpoint={runs[0]}", *given, kept]))
    again = evaluate(compose("eval", [f"checkpoint={runs[0]}", *given, kept]))
    assert first == again
    trained = json.loads((runs[0] / "results.json").read_text())
    assert of(first, "test/") == of(trained, "test/")
    assert (len(first["checkpoint_sha256"]), len(first["test/data_hash"])) == (64, 16)
    assert first["select_on"] == "val" and first["test/captions"] == "all"
    out = tmp_path / "out"
    evaluate(compose("eval", [f"checkpoint={runs[0]}", *given, f"out={out}"]))
    (row,) = collect(find_results([runs[0], out]), resamples=0)  # the run and its evaluation
    assert row.runs[0].folder == out and row.values["rsum"] == [trained["test/rsum"]]
    with pytest.raises(DataError, match="checkpoint_sha256.*delete the file"):
        evaluate(compose("eval", [f"checkpoint={runs[1]}", *given, kept]))
    with pytest.raises(DataError, match="data_hash"):
        evaluate(compose("eval", [f"checkpoint={runs[0]}", *given, kept, "split=val"]))


def test_an_ensemble_is_the_mean_of_the_matrices(
    runs: list[Path], given: list[str], tmp_path: Path
) -> None:
    names = [tmp_path / f"{number}.safetensors" for number in (0, 1)]
    single = [
        evaluate(compose("eval", [f"checkpoint={run}", *given, f"embeddings={name}"]))
        for run, name in zip(runs, names, strict=True)
    ]
    both = f"checkpoint=[{runs[0]},{runs[1]}]"
    out = tmp_path / "mean"
    chosen = ["ensemble=true", "hubness.rows=[csls]", f"out={out}"]
    found = evaluate(compose("eval", [both, *given, *chosen]))
    stored = [load_file(name) for name in names]
    mean = sum(s["images"] @ s["texts"].t() for s in stored) / 2
    owner = np.repeat(np.arange(20), 5)
    expected = itr.evaluate(mean, owner)
    forward, backward = instance_retrieval(mean.numpy(), captions_per_image=owner.tolist())
    for way, theirs in (("i2t", forward), ("t2i", backward)):
        for k in (1, 5, 10):  # the scores of trained models as another library counts
            assert found[f"test/{way}_r{k}"] == pytest.approx(float(theirs[f"R@{k}"]), rel=1e-12)
    assert {k: v for k, v in of(found, "test/").items() if k in expected} == {
        k: v for k, v in expected.items() if k in of(found, "test/")
    }
    log, ranks = read_queries(out), rank_scores(mean, owner)
    assert np.array_equal(log.ranks["full"].i2t, ranks.i2t)
    assert np.array_equal(log.ranks["full"].t2i, ranks.t2i)
    np.testing.assert_allclose(log.top_candidates["i2t"].scores[:, 0], mean.amax(dim=1), rtol=1e-5)
    for number, alone in enumerate(single, 1):
        for key in ("rsum", "i2t_r1", "t2i_medr"):
            assert found[f"test/member_{number}/{key}"] == alone[f"test/{key}"]
    assert found["ensemble"] == 2 and found["seed"] == "0,1" and found["model"] == "alip"
    assert found["test/hubness_bank"] == "the evaluated queries"
    np.savez(tmp_path / "sims.npz", scores=mean.numpy(), text_to_image=owner)
    out = tmp_path / "out"
    alone = evaluate(compose("eval", [f"scores={tmp_path / 'sims.npz'}", f"out={out}"]))
    assert alone["test/rsum"] == found["test/rsum"] and (out / "results.json").is_file()
    protocol, same = compare(tmp_path / "mean", out)  # every query has the same rank
    assert protocol == "full" and all(pair.wins == pair.losses == 0 for pair in same.values())
    rows = {row.name: row for row in collect(find_results([tmp_path / "mean"]), resamples=50)}
    assert all(set(row.intervals) == set(METRICS) for row in rows.values())
    assert len(rows) == 4 and sorted(row.ensemble for row in rows.values()) == [1, 1, 2, 2]
    whole = next(row for row in rows.values() if not row.variant)
    assert whole.intervals["rsum"].value == pytest.approx(found["test/rsum"])


def test_an_evaluation_may_be_a_run_of_its_own_at_weights_and_biases(
    runs: list[Path], given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("WANDB_TAGS", "sweep:seeds")
    out = tmp_path / "tracked"
    tracker = ["tracker=wandb", "tracker.wandb.mode=offline", f"out={out}"]
    found = evaluate(compose("eval", [f"checkpoint={runs[0]}", *given, *tracker]))
    parts = records(out)
    (run,) = [part.run for part in parts if part.WhichOneof("record_type") == "run"]
    assert (run.job_type, run.run_group, run.display_name) == (
        "eval",
        "alip-scenes-retrieval",
        "tracked",
    )
    assert {"alip", "scenes", "retrieval", "sweep:seeds"} <= set(run.tags)
    config = items(run.config.update)
    assert [config[key]["name"] for key in ("model", "data", "loss")] == ["alip", "scenes", "alip"]
    history, summary = {}, {}
    for part in parts:
        if part.WhichOneof("record_type") == "history":
            history |= items(part.history.item)
        elif part.WhichOneof("record_type") == "summary":
            summary |= items(part.summary.update)
    assert history["test/rsum"] == summary["test/rsum"] == found["test/rsum"]
    assert summary["test/hard_queries/nrows"] > 16 and summary["test/hard_queries/ncols"] == 8
    assert not (out / "wandb" / "run-id").exists()  # the next evaluation is another run


def test_every_kind_of_evaluation_can_be_tracked(
    runs: list[Path],
    given: list[str],
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    folder = tmp_path / "classes"
    for number, name in enumerate(("circle", "star")):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").write_bytes(pictures[number].read_bytes())
    owner = np.repeat(np.arange(20), 5)
    scores = np.random.default_rng(0).normal(size=(20, 100))
    np.savez(tmp_path / "sims.npz", scores=scores, text_to_image=owner)
    shots = ["task=zeroshot", "data=imagefolder", "device=cpu", f"data.root={folder}"]
    for kind, options, key, pictured in (
        ("mean", [f"checkpoint=[{runs[0]},{runs[1]}]", "ensemble=true", *given], "rsum", True),
        ("shots", [f"checkpoint={runs[0]}", *shots], "top1", False),
        ("file", [f"scores={tmp_path / 'sims.npz'}"], "rsum", False),
    ):
        out = tmp_path / kind
        tracker = ["tracker=wandb", "tracker.wandb.mode=offline", f"out={out}"]
        found = evaluate(compose("eval", [*options, *tracker]))
        kept: dict[str, Any] = {}
        for part in records(out):
            if part.WhichOneof("record_type") == "summary":
                kept |= items(part.summary.update)
        assert kept[f"test/{key}"] == found[f"test/{key}"], kind
        assert ("test/hard_queries/nrows" in kept) == pictured, kind


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "checkpoint=RUN_DIR, or scores=FILE.npz"),
        (["checkpoint=a", "scores=b"], "checkpoint and scores"),
        (["checkpoint=[a,b]"], "checkpoint: 2 .* ensemble=true"),
        (["checkpoint=a", "ensemble=true"], r"'checkpoint=\[RUN_A,RUN_B\]'"),
        (["checkpoint=a", "hubness.rows=[cls]"], r"hubness\.rows=cls: .*nearest: csls"),
        (["checkpoint=a", "task=pretrain"], "task=pretrain: .*retrieval, zeroshot"),
        (["checkpoint=a", "task=zeroshot"], "data=imagefolder data.root=DIR"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        evaluate(compose("eval", overrides))


def test_the_vectors_of_the_evaluator(
    runs: list[Path], given: list[str], pictures: list[Path], tmp_path: Path
) -> None:
    kept = tmp_path / "kept.safetensors"
    evaluate(compose("eval", [f"checkpoint={runs[0]}", *given, f"embeddings={kept}"]))
    stored, model = load_file(kept), itr.load(runs[0], device="cpu", batch_size=128)
    images = model.encode_images(pictures)
    torch.testing.assert_close(images, stored["images"], rtol=0, atol=1e-6)
    root = next(Path(given[0].removeprefix("data.root=")).iterdir())
    captions = open_split(DataConfig(name="scenes", root=str(root)), "test", "pixels").captions()
    texts = model.encode_texts(captions)
    torch.testing.assert_close(texts, stored["texts"], rtol=0, atol=1e-6)
    ranks = rank_scores(images @ texts.t(), np.repeat(np.arange(20), 5))
    assert len(ranks.t2i) == 100
    for call, told in (
        (lambda: model.encode_images([]), "no images to encode"),
        (lambda: model.encode_texts([]), "no texts to encode"),
        (lambda: model.encode_texts(["a", " "]), "text 1 is ' '"),
        (lambda: model.encode_images([tmp_path / "no.jpg"]), "no.jpg: cannot be read"),
    ):
        with pytest.raises(UserError, match=told):
            call()


@pytest.fixture
def folder(pictures: list[Path], tmp_path: Path) -> Path:
    """A user's folder: three pictures, one of them below, a broken one, and another file."""
    place = tmp_path / "mine"
    (place / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.PNG", "more/c.png")):
        Image.open(pictures[number]).convert("RGB").save(place / name, format="PNG")
    (place / "broken.jpg").write_bytes(b"\xff\xd8no picture")
    (place / "notes.txt").write_text("nothing")
    return place


def test_search_in_ones_own_folder(
    runs: list[Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(runs[0]), tmp_path / "mine.safetensors"
    lines = tmp_path / "lines.txt"
    lines.write_text("a red circle\n\na blue square\n")
    wanted = ["--images", str(folder), "--device", "cpu"]
    assert embed([run, *wanted, "--texts", str(lines), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "skipped 1 of 4" in told and "broken.jpg" in told
    found = load_file(out)
    assert found["images"].shape == (3, 16) and found["texts"].shape == (2, 16)
    assert search([run, "a red circle", *wanted, "--top", "2"]) == 0
    direct = capsys.readouterr().out
    assert search([run, "a red circle", "--embeddings", str(out), "--top", "2"]) == 0
    stored = capsys.readouterr().out
    best = int((found["texts"][0] @ found["images"].t()).argmax())
    name = sorted(str(folder / n) for n in ("a.png", "b.PNG", "more/c.png"))[best]
    assert stored.splitlines()[1].endswith(name) and stored.splitlines()[1].startswith("   1")
    assert stored.splitlines()[-2:] == direct.splitlines()[-2:] and len(stored.splitlines()) == 3
    assert search([str(runs[1]), "a", "--embeddings", str(out)]) == 2
    assert "embeddings of another checkpoint" in " ".join(capsys.readouterr().err.split())


def test_folders_without_pictures(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for place, told in (("empty", "contains no images"), ("no", "no such folder")):
        assert search([str(runs[0]), "a", "--images", str(tmp_path / place)]) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_zero_shot_over_a_folder_of_folders(
    runs: list[Path], pictures: list[Path], tmp_path: Path
) -> None:
    root = tmp_path / "classes"
    for number, picture in enumerate(pictures[:9]):
        place = root / ("red_circle", "blue_square", "star")[number % 3 if number < 8 else 0]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(picture.read_bytes())
    given = [f"checkpoint={runs[0]}", "task=zeroshot", "data=imagefolder", "device=cpu"]
    templates = 'data.templates=["a {}.", "the {}"]'
    found = evaluate(compose("eval", [*given, f"data.root={root}", templates]))
    model = itr.load(runs[0], device="cpu")
    names = ["blue square", "red circle", "star"]
    prompts = [
        torch.nn.functional.normalize(
            sum(_unit(model, text.replace("{}", name)) for text in ("a {}.", "the {}")), dim=1
        )
        for name in names
    ]
    files = [sorted((root / name.replace(" ", "_")).iterdir()) for name in names]
    right = [
        (model.encode_images(own) @ torch.cat(prompts).t()).argmax(dim=1) == number
        for number, own in enumerate(files)
    ]
    assert found["test/top1"] == pytest.approx(100 * float(torch.cat(right).double().mean()))
    mean = np.mean([float(own.double().mean()) for own in right])
    assert found["test/mean_per_class"] == pytest.approx(100 * mean)
    assert (found["test/n_images"], found["test/n_classes"], found["test/n_templates"]) == (9, 3, 2)
    assert found["data"] == "imagefolder" and len(found["test/data_hash"]) == 16
    for options, told in (
        ([f"data.root={tmp_path / 'no'}"], "no such folder"),
        ([f"data.root={root / 'star'}"], "expected one folder of images per class"),
        ([f"data.root={root}", "data.templates=[a]"], r"data\.templates: 'a'.*\{\}"),
        ([f"data.root={root}", f"data.classes={root / 'x.json'}"], "x.json: cannot be read"),
    ):
        with pytest.raises(UserError, match=told):
            evaluate(compose("eval", [*given, *options]))


def test_zero_shot_over_tars_with_class_numbers(
    runs: list[Path], pictures: list[Path], tmp_path: Path
) -> None:
    names, templates = ["blue square", "red circle", "star"], ["a {}.", "the {}"]
    (tmp_path / "tars").mkdir()
    members: list[tuple[str, bytes]] = []
    for number, picture in enumerate(pictures[:9]):
        place = tmp_path / "folders" / names[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(picture.read_bytes())
    for label, name in enumerate(names):
        for path in sorted((tmp_path / "folders" / name).iterdir()):
            members += [
                (f"s{path.stem}.png", path.read_bytes()),
                (f"s{path.stem}.cls", b"%d" % label),
            ]
    for number in range(2):
        write_tar(
            tmp_path / "tars" / "test" / f"{number}.tar", members[8 * number :][: 8 + 2 * number]
        )
    (tmp_path / "tars" / "classnames.txt").write_text("\n".join(names) + "\n")
    lines = [line.replace("{}", "{c}") for line in templates]
    prompts = tmp_path / "tars" / "zeroshot_classification_templates.txt"
    prompts.write_text("\n".join(lines))
    given = [f"checkpoint={runs[0]}", "task=zeroshot", "device=cpu"]
    tars = [*given, "data=labeled_shards", f"data.root={tmp_path / 'tars'}"]
    folders = [*given, "data=imagefolder", f"data.root={tmp_path / 'folders'}"]
    asked = ['data.templates=["a {}.", "the {}"]']
    found, expected = (evaluate(compose("eval", [*a])) for a in (tars, [*folders, *asked]))
    for key in ("top1", "mean_per_class", "n_images", "n_classes", "n_templates"):
        assert found[f"test/{key}"] == expected[f"test/{key}"]
    prompts.unlink()
    with pytest.raises(UserError, match="zeroshot_classification_templates.txt.*data.templates="):
        evaluate(compose("eval", tars))
    assert evaluate(compose("eval", [*tars, *asked]))["test/top1"] == expected["test/top1"]
    (tmp_path / "tars" / "classnames.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="class 2 is not in classnames.txt, which has 2 lines"):
        evaluate(compose("eval", [*tars, *asked]))
    write_tar(tmp_path / "tars" / "test" / "1.tar", [("k.png", b"x"), ("k.cls", b"dog")])
    with pytest.raises(UserError, match="1.tar: k.cls: is 'dog'"):
        evaluate(compose("eval", [*tars, *asked]))


def test_zero_shot_over_a_set_that_torchvision_reads(
    runs: list[Path], pictures: list[Path], tmp_path: Path
) -> None:
    place, listed = tmp_path / "food-101", {}
    for number, name in enumerate(("red_circle", "blue_square")):
        (place / "images" / name).mkdir(parents=True)
        listed[name] = [f"{name}/{row}" for row in range(3)]
        for row in range(3):
            picture = Image.open(pictures[3 * number + row]).convert("RGB")
            picture.save(place / "images" / name / f"{row}.jpg", quality=95)
    (place / "meta").mkdir()
    (place / "meta" / "test.json").write_text(json.dumps(listed))
    given = [f"checkpoint={runs[0]}", "task=zeroshot", "data=torchvision", "device=cpu"]
    given += ["data.set=food101", f"data.root={tmp_path}"]
    found = evaluate(compose("eval", given))
    model = itr.load(runs[0], device="cpu")
    names = sorted(name.replace("_", " ") for name in listed)
    prompts = torch.cat([_unit(model, f"a photo of {name}, a type of food.") for name in names])
    right = [
        (
            model.encode_images(sorted((place / "images" / name.replace(" ", "_")).iterdir()))
            @ prompts.t()
        ).argmax(dim=1)
        == number
        for number, name in enumerate(names)
    ]
    assert found["test/top1"] == pytest.approx(100 * float(torch.cat(right).double().mean()))
    assert (found["test/n_images"], found["test/n_classes"], found["test/n_templates"]) == (6, 2, 1)
    (place / "images" / "red_circle" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="of food101 cannot be read"):
        evaluate(compose("eval", given))


def _unit(model: Any, text: str) -> torch.Tensor:
    return torch.nn.functional.normalize(model.encode_texts([text]), dim=1)


def test_named_sets_name_what_is_missing(runs: list[Path], tmp_path: Path) -> None:
    given = [f"checkpoint={runs[0]}", "task=zeroshot", "data=torchvision", f"data.root={tmp_path}"]
    with pytest.raises(DataError, match="data.root=.*CIFAR10 cannot read this folder"):
        evaluate(compose("eval", [*given, "data.set=cifar10"]))
    with pytest.raises(ConfigError, match="data.set=cifar: unknown; nearest: cifar"):
        evaluate(compose("eval", [*given, "data.set=cifar"]))
