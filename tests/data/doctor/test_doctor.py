"""`itr data check` on unusual but valid data, its known dataset sizes and its two outputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from itr.data.__main__ import main as data_command
from itr.data.checks.fingerprint import content_hash
from itr.data.doctor import cli
from itr.data.doctor.cli import main
from itr.data.layouts.registry import DataConfig, open_split
from itr.errors import DataError
from itr.jobs.run_dir import write_manifest
from itr.jobs.train import train
from tests.conftest import compose
from tests.data import worlds
from tests.data.image_files import encoded, photo
from tests.data.images.test_decode import UNUSUAL


def report_of(capsys, *arguments):
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def notes(report, level="note"):
    return " ".join(f["message"] for f in report["findings"] if f["level"] == level)


TEXTS = (
    "word " * 400,
    "رجل يقف قرب البحر",
    "צילום של כלב",
    "一只猫在桌子上",
    "ﬁne naïve café 🐈",
    '"quoted", with; marks',
    "x",
)


def write_unusual(root):
    """Write unusual but valid images and texts, with one to seven captions per image."""
    contents = {name: make() for name, make in UNUSUAL.items()}
    contents |= {"tall": encoded(photo(4, 2000)), "vast": encoded(photo(120, 100))}
    contents |= {"png called jpg": encoded(photo(seed=9), "PNG")}
    images = []
    for number, (name, data) in enumerate(contents.items()):
        file = f"{number:02d} {name}.jpg"
        (root / file).write_bytes(data)
        captions = [TEXTS[(number + index) % 7] for index in range(1 + number % 7)]
        part = ("train", "train", "train", "val", "test")[number % 5]
        images.append(
            {"filename": file, "split": part, "sentences": [{"raw": text} for text in captions]}
        )
    text = json.dumps({"images": images}, ensure_ascii=False)
    (root / "dataset_odd.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    return images


def test_unusual_but_valid_data_is_clean_and_is_trained_on(tmp_path, capsys, monkeypatch):
    images = write_unusual(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)  # twice as many are a bomb to Pillow
    code, report = report_of(capsys, f"data.root={tmp_path}")
    assert code == 0, notes(report, "refused") + notes(report, "warning")
    messages = notes(report)
    for word in ("mode CMYK", "mode L", "mode P", "transparency", "mode I;16", "EXIF", "under 8",
                 "PNG bytes in a .jpg file", "aspect ratio above 16",
                 "EXIF that cannot be read", "more pixels than Pillow opens"):  # fmt: skip
        assert word in messages, messages
    train_images = [i for i in images if i["split"] == "train"]
    assert report["splits"][0]["captions"] == sum(len(i["sentences"]) for i in train_images)
    assert report["splits"][0]["statistics"]["words_longest"] == 400
    values = compose("train", [
        "model=alip", "data=coco", "recipe=alip_scenes_retrieval", f"data.root={tmp_path}",
        "data.name=odd", "data.protocols=[full]", f"data.cache={tmp_path / 'c'}", "batch_size=4",
        "trainer.max_steps=2", "trainer.validate_every=2", "model.embed_size=16", "tracker=none",
        "model.image.size=32", "model.text.depth=1", "model.image.width=8", "device=cpu",
        f"out={tmp_path / 'run'}",
    ])  # fmt: skip
    results = train(values)
    manifest = json.loads((tmp_path / "run" / "data.json").read_text())
    for entry in report["splits"]:  # the check and a run compute the same hash
        assert entry["hash"] == results[f"data_hash_{entry['split']}"]
        assert entry["hash"] == manifest[entry["split"]]["hash"]


def test_all_layouts_of_a_folder_are_checked(tmp_path, capsys):
    items = worlds.make_items((8, 4, 3), captions=5)
    for layout in ("karpathy", "lists", "precomp"):
        worlds.write(layout, tmp_path, items)
    code, report = report_of(capsys, f"data.root={tmp_path}")
    assert code == 0, report["findings"]
    layouts = [split["layout"] for split in report["splits"]]
    assert layouts == ["precomp"] * 3 + ["karpathy"] * 3 + ["lists"] * 3
    arrays = [s["statistics"] for s in report["splits"] if s["layout"] == "precomp"]
    stored = np.load(tmp_path / "coco_precomp" / "train_ims.npy")
    assert arrays[0]["shape"] == [8, 6, 12] and arrays[0]["rows_not_finite"] == 0
    for key, value in (("mean", stored.mean()), ("std", stored.std()), ("max", stored.max())):
        assert arrays[0][key] == pytest.approx(float(value), rel=1e-4, abs=1e-7)


def test_sizes_are_compared_for_a_named_dataset(tmp_path, capsys):
    worlds.write("karpathy", tmp_path, worlds.make_items())
    code, report = report_of(capsys, f"data.root={tmp_path}", "data=coco")
    assert code == 1 and "coco has 113,287" in json.dumps(report["findings"])
    code, report = report_of(capsys, f"data.root={tmp_path}")
    assert code == 0 and "coco has" not in notes(report)


def test_scan_splits_match_the_known_sizes(tmp_path, capsys):
    """SCAN's test is the first 1,000 images of testall; dev may be cut on purpose."""
    folder = tmp_path / "coco_precomp"
    folder.mkdir()
    for name, images in (("train", 2), ("dev", 4), ("test", 1000)):
        np.save(
            folder / f"{name}_ims.npy", np.random.default_rng(images).random((images, 2, 3), "f4")
        )
        (folder / f"{name}_caps.txt").write_text("a dog\n" * 5 * images)
    arguments = [f"data.root={tmp_path}", "data=coco", f"data.cache={tmp_path / 'c'}"]
    code, report = report_of(capsys, *arguments, "data.max_dev_captions=10")
    known = [f["split"] for f in report["findings"] if "of coco has" in f["message"]]
    assert code == 1 and known == ["train"]
    code, report = report_of(capsys, *arguments)
    known = [f["split"] for f in report["findings"] if "of coco has" in f["message"]]
    assert known == ["train", "dev"]


def test_shards_and_tables_named_by_options(tmp_path, capsys):
    items = worlds.make_items()
    worlds.write("shards", tmp_path / "a", items)
    worlds.write("table", tmp_path / "b", items)
    for option, layout in (
        (f"data.shards={tmp_path / 'a' / 'wds'}", "shards"),
        (f"data.train={tmp_path / 'b' / 'pairs.csv'}", "table"),
    ):
        code, report = report_of(capsys, option, f"data.cache={tmp_path / 'c'}")
        assert code == 0, report["findings"]
        sizes = [(s["layout"], s["split"], s["images"]) for s in report["splits"]]
        assert sizes == [(layout, "train", 6), (layout, "val", 3), (layout, "test", 3)]


def test_a_layout_with_training_data_only_is_valid(tmp_path, capsys):
    """The checkpoint may be selected on another dataset."""
    worlds.write("shards", tmp_path, worlds.make_items((6, 0, 0)))
    code, report = report_of(capsys, f"data.root={tmp_path}", f"data.cache={tmp_path / 'c'}")
    assert code == 0, report["findings"]
    assert [(s["split"], s["images"]) for s in report["splits"]] == [("train", 6)]
    assert "pass data=table to see what training reads" in str(report["findings"])
    _, report = report_of(
        capsys, "data=table", f"data.root={tmp_path}", f"data.cache={tmp_path / 'c'}"
    )
    assert [s["split"] for s in report["splits"]] == ["train", "val", "test"]


def test_the_second_text_and_the_decoder_are_checked(tmp_path, capsys, monkeypatch):
    items = worlds.make_items()
    worlds.write("karpathy", tmp_path, items)
    path = tmp_path / "blip.json"
    arguments = [
        f"data.root={tmp_path}",
        f"data.cache={tmp_path / 'c'}",
        f"data.second_text={path}",
    ]
    path.write_text(json.dumps({str(item.cocoid): "a thing" for item in items}))
    code, report = report_of(capsys, *arguments)
    data = DataConfig("coco", str(tmp_path), second_text=str(path))
    split = open_split(data, "train", "pixels", second=True)
    assert code == 0 and report["splits"][0]["hash"] == content_hash(split)
    path.write_text(json.dumps({str(item.cocoid): "a thing" for item in items[1:]}))
    code, report = report_of(capsys, *arguments)
    assert code == 2 and "no caption for 1 of 6 images" in notes(report, "refused")
    image = tmp_path / "val2014" / items[7].file  # too large for Pillow, not for torchvision
    image.write_bytes(encoded(photo(120, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    for decoder, level in (("torchvision", 0), ("pillow", 2)):
        arguments = [
            f"data.root={tmp_path}",
            f"data.cache={tmp_path / 'c'}",
            f"data.decoder={decoder}",
        ]
        code, report = report_of(capsys, *arguments)
        assert code == level


def test_an_internal_error_has_its_own_exit_code(tmp_path, capsys, monkeypatch):
    worlds.write("karpathy", tmp_path, worlds.make_items())
    monkeypatch.setattr(cli, "check_captions", None)
    assert main([f"data.root={tmp_path}"]) == 3
    assert "TypeError" in capsys.readouterr().err


def test_truncated_captions_are_noted(tmp_path, capsys):
    worlds.write("karpathy", tmp_path, worlds.make_items())
    path = tmp_path / "dataset_coco.json"
    content = json.loads(path.read_text())
    content["images"][0]["sentences"][0]["raw"] = "dog " * 400
    path.write_text(json.dumps(content))
    code, report = report_of(
        capsys, f"data.root={tmp_path}", "data=coco", "model=alip",
        "model.text.tokenizer=clip-from-captions", "model.text.vocabulary_size=600",
    )  # fmt: skip
    assert code == 1 and "1 of 21 captions exceed the model's 77" in notes(report)
    assert report["splits"][0]["statistics"]["ids_longest"] > 400


def test_tables_for_people(tmp_path, capsys):
    worlds.write("precomp", tmp_path, worlds.make_items((8, 4, 3), captions=5))
    assert data_command(["check", f"data.root={tmp_path}"]) == 0
    output = capsys.readouterr().out
    assert "6x12 float32" in output and "train" in output and "clean" in output
    stored = np.load(tmp_path / "coco_precomp" / "train_ims.npy")
    rest = f"to {stored.max():.4g}, mean {stored.mean():.4g}, std {stored.std():.4g}, 0.0 % zeros"
    assert f"precomp train: features from {stored.min():.4g} {rest}" in output
    array = np.load(tmp_path / "coco_precomp" / "dev_ims.npy")
    array[7] = np.inf
    np.save(tmp_path / "coco_precomp" / "dev_ims.npy", array)
    assert data_command(["check", f"data.root={tmp_path}"]) == 2
    assert "training would refuse" in capsys.readouterr().out


def test_unusable_folders_and_arguments(tmp_path, capsys):
    assert main(["--help"]) == 0
    assert "data.root=DIR" in capsys.readouterr().out
    assert main([f"data.root={tmp_path}"]) == 2
    assert "no known layout" in capsys.readouterr().out
    for arguments, words in (
        ([f"data.root={tmp_path / 'no'}"], "no such folder"),
        (["root=DIR"], "'root=DIR'"),
        ([f"data.root={tmp_path}", "data=cocoo"], "nearest: coco"),
        ([f"data.root={tmp_path}", "data.rot=1"], "data.rot: unknown key"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_the_hash_depends_on_the_content_not_on_the_location(tmp_path):
    def hashed(folder):
        return content_hash(open_split(DataConfig("coco", str(folder)), "train", "pixels"))

    items = worlds.make_items()
    for name in ("a", "b", "c"):
        worlds.write("karpathy", tmp_path / name, items)
    assert hashed(tmp_path / "a") == hashed(tmp_path / "b")
    path = tmp_path / "c" / "dataset_coco.json"
    path.write_text(path.read_text().replace("A red", "A rad", 1))
    assert hashed(tmp_path / "c") != hashed(tmp_path / "a")
    file = tmp_path / "b" / "val2014" / items[0].file
    Image.new("RGB", (9, 9)).save(file)
    assert hashed(tmp_path / "b") != hashed(tmp_path / "a")
    worlds.write("shards", tmp_path / "s", items)
    first = hashed(tmp_path / "s")
    worlds.write("shards", tmp_path / "t", items)
    assert hashed(tmp_path / "t") == first


def test_the_hash_includes_second_texts(tmp_path):
    def hashed(root, **options):
        data = DataConfig("coco", str(root), cache=str(tmp_path / "cache"), **options)
        return content_hash(open_split(data, "train", "pixels", second=True))

    items = worlds.make_items()
    path = tmp_path / "blip.json"
    for layout in ("karpathy", "shards"):
        worlds.write(layout, tmp_path / layout, items)
        hashes = []
        for word in ("bright", "bright", "dark"):
            path.write_text(json.dumps({str(i.cocoid): f"a {word} {i.number}" for i in items}))
            hashes.append(hashed(tmp_path / layout, second_text=str(path), layout=layout))
        assert hashes[0] == hashes[1] != hashes[2]
        assert hashed(tmp_path / layout, layout=layout, second_text="other_caption") not in hashes
    table = worlds.write_table(tmp_path / "table", items)
    first = hashed(table.parent, layout="table")
    assert hashed(table.parent, layout="table") == first
    table.write_text(table.read_text("utf-8-sig").replace("a picture of", "no picture of", 1))
    assert hashed(table.parent, layout="table") != first


def test_a_run_refuses_to_resume_on_other_data(tmp_path):
    began = {"train": {"hash": "a", "source": "x.json"}, "val": {"hash": "b", "source": "y.json"}}
    write_manifest(tmp_path / "run", began)
    write_manifest(tmp_path / "run", began)
    assert json.loads((tmp_path / "run" / "data.json").read_text()) == began
    now = {**began, "val": {"hash": "c", "source": "z.json"}}
    with pytest.raises(DataError, match="z.json: not the data .* began with .content of val"):
        write_manifest(tmp_path / "run", now)
