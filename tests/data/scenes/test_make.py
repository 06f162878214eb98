"""The embedded data set: ordinary files, neither trivial nor hopeless."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import tarfile
from collections import Counter
from itertools import combinations
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from itr import files
from itr.data.layouts.precomp import read_split
from itr.data.layouts.region_arrays import check_regions_finite
from itr.data.scenes import make
from itr.data.scenes.make import VERSION, prepare
from itr.errors import ConfigError, DataError
from tests.conftest import PATIENCE
from tests.processes import CONTEXT, run_function

SMALL = {"train": 60, "val": 20, "test": 20}
ATTRIBUTES = ("colour", "shape", "size", "fill", "place")


def files_of(folder: Path) -> dict[str, str]:
    """Name -> digest of every file below ``folder``."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("small"), **SMALL, seed=0)


def images_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "dataset_scenes.json").read_text("utf-8"))["images"]


# Made once, the same every time


def test_same_seed_same_bytes_and_made_only_once(small: Path, tmp_path: Path) -> None:
    again = prepare(tmp_path, **SMALL, seed=0)
    assert again.name == f"scenes-{VERSION}-60x20x20-0" == small.name
    assert files_of(again) == files_of(small)
    changed = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    assert prepare(tmp_path, **SMALL, seed=0) == again
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*")} == changed


def test_another_seed_other_scenes(small: Path, tmp_path: Path) -> None:
    other = prepare(tmp_path, **SMALL, seed=1)
    assert images_of(other)[0]["things"] != images_of(small)[0]["things"]


def test_bytes_belong_to_the_version(small: Path) -> None:
    """When this fails the generator gives other scenes: raise VERSION, then renew the digest."""
    text = json.dumps([(i["things"], i["sentences"]) for i in images_of(small)])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert (VERSION, digest) == (1, "9bdac19688273e5d")


def test_test_split_does_not_depend_on_the_training_size(small: Path, tmp_path: Path) -> None:
    other = prepare(tmp_path, train=30, val=10, test=20, seed=0)
    for name in ("test_ims.npy", "test_caps.txt"):
        expected = (small / "scenes_precomp" / name).read_bytes()
        assert (other / "scenes_precomp" / name).read_bytes() == expected


def test_default_size(default: Path) -> None:
    assert default.name == f"scenes-{VERSION}-2000x200x200-0"


# Several processes, and an end before the end


def _prepare_at_once(parent: str, barrier: Barrier, lines: Any) -> None:
    import logging

    def rename(source: Path, target: Path) -> None:
        barrier.wait(PATIENCE)  # both processes have written everything
        os.replace(source, target)

    logging.basicConfig(level=logging.INFO, stream=(stream := io.StringIO()))
    files.os.rename = rename  # type: ignore[assignment]
    folder = prepare(parent, **SMALL, seed=0)
    lines.put((str(folder), "another process made it first" in stream.getvalue()))


def test_two_processes_at_once_end_with_one_folder(small: Path, tmp_path: Path) -> None:
    barrier, lines = CONTEXT.Barrier(2), CONTEXT.Queue()
    arguments = (str(tmp_path), barrier, lines)
    workers = [CONTEXT.Process(target=_prepare_at_once, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [lines.get(timeout=PATIENCE) for _ in workers]
    for worker in workers:
        worker.join(PATIENCE)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sorted(second for _, second in answers) == [False, True]
    (folder,) = tmp_path.iterdir()
    assert {path for path, _ in answers} == {str(folder)}
    assert files_of(folder) == files_of(small)


def _prepare_and_be_interrupted(parent: Path, how: signal.Signals) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores SIGINT
    make._write_shards = lambda *_: os.kill(os.getpid(), how)  # type: ignore[assignment]
    prepare(parent, **SMALL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_leaves_nothing_of_the_final_name(tmp_path: Path, how: signal.Signals) -> None:
    process = run_function(_prepare_and_be_interrupted, tmp_path, how)
    assert process.returncode == (-how if how == signal.SIGKILL else 1), process.stderr
    assert ("KeyboardInterrupt" in process.stderr) == (how == signal.SIGINT)
    left = list(tmp_path.iterdir())
    assert not [path for path in left if path.name.startswith("scenes-")]
    assert len(left) == (how == signal.SIGKILL)  # SIGINT leaves time to clean up
    assert prepare(tmp_path, **SMALL).is_dir()


# What cannot be used


def test_folder_of_another_version_is_refused(small: Path, tmp_path: Path) -> None:
    folder = prepare(tmp_path, **SMALL)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    assert manifest["version"] == VERSION and manifest["seed"] == 0
    assert manifest["images"] == SMALL
    path.write_text(json.dumps({**manifest, "version": 0}), "utf-8")
    with pytest.raises(DataError, match=r'manifest\.json.*"version": 0.*expected.*Remove'):
        prepare(tmp_path, **SMALL)
    path.unlink()
    with pytest.raises(DataError, match=r"manifest\.json.*not a complete.*Remove"):
        prepare(tmp_path, **SMALL)


@pytest.mark.parametrize(("key", "value"), [("train", 0), ("val", -1), ("test", 2.5), ("seed", -1)])
def test_sizes_that_cannot_be(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.prepare\.{key}={value}: expected"):
        prepare(tmp_path, **{**SMALL, key: value})
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file.*cannot be written.*data\.root="):
        prepare(tmp_path / "file", **SMALL)


# The formats


def test_karpathy_layout(small: Path) -> None:
    content = json.loads((small / "dataset_scenes.json").read_text("utf-8"))
    assert content["dataset"] == "scenes"
    assert Counter(image["split"] for image in content["images"]) == SMALL
    for number, image in enumerate(content["images"]):
        assert image["imgid"] == number
        assert image["sentids"] == [5 * number + i for i in range(5)]
        assert [s["sentid"] for s in image["sentences"]] == image["sentids"]
        assert len({s["raw"] for s in image["sentences"]}) == 5
        for sentence in image["sentences"]:
            assert sentence["imgid"] == number
            assert sentence["tokens"] == re.findall(r"[a-z]+", sentence["raw"].lower())
        with Image.open(small / image["filepath"] / image["filename"]) as picture:
            picture.load()
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (112, 112))


def test_precomp_layout_read_by_the_ordinary_reader(small: Path) -> None:
    images = images_of(small)
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test")):
        opened = read_split(small / "scenes_precomp", name)
        check_regions_finite(opened)
        assert opened.regions is not None and isinstance(opened.regions, np.memmap)
        assert opened.regions.shape == (SMALL[split], 36, 128)
        assert opened.regions.dtype == np.float32
        assert opened.captions() == [
            s["raw"] for image in images if image["split"] == split for s in image["sentences"]
        ]


def test_shards(default: Path) -> None:
    folder = default
    images = images_of(folder)
    samples: dict[str, dict[str, bytes]] = {}
    shards = sorted((folder / "wds").iterdir())
    assert [path.name for path in shards] == [f"{i:05d}.tar" for i in range(4)]
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar:
                key, ending = member.name.split(".")
                file = tar.extractfile(member)
                assert file is not None
                samples.setdefault(key, {})[ending] = file.read()
    training = [image for image in images if image["split"] == "train"]
    assert list(samples) == [image["filename"].removesuffix(".jpg") for image in training]
    agreement: dict[bool, list[float]] = {True: [], False: []}
    for image, sample in zip(training, samples.values(), strict=True):
        assert set(sample) == {"jpg", "txt", "json"}
        assert sample["jpg"] == (folder / "images" / image["filename"]).read_bytes()
        meta = json.loads(sample["json"])
        assert meta["image_id"] == image["imgid"]
        shown = {f"{t['colour']} {t['shape']}" for t in image["things"]}
        named = set(re.findall(r"an? ([a-z]+ [a-z]+)", meta["synthetic_caption"]))
        assert named and named <= shown
        raw = sample["txt"].decode()
        said = [t for t in shown if t in raw]
        agreement[meta["raw_matched"]].append(len(said) / 2)
    assert 0.2 < len(agreement[False]) / len(training) < 0.3
    assert np.mean(agreement[True]) == 1
    assert np.mean(agreement[False]) < 0.25


# What the captions and pictures say


COLOURS = "red green blue yellow orange purple pink brown black cyan".split()
SHAPES = "circle square triangle star cross diamond".split()
PLAIN = {
    "violet": "purple",
    "disc": "circle",
    "box": "square",
    "plus": "cross",
    "rhombus": "diamond",
}


def pairs_in(text: str, image: dict[str, Any]) -> list[dict[str, Any] | None]:
    """The thing of each adjacent colour and shape in ``text``; None where there is none."""
    words = [PLAIN.get(word, word) for word in re.findall(r"[a-z]+", text.lower())]
    return [
        next((t for t in image["things"] if (t["colour"], t["shape"]) == pair), None)
        for pair in zip(words, words[1:], strict=False)
        if pair[0] in COLOURS and pair[1] in SHAPES
    ]


LESS = {"left": ("x", 1), "right": ("x", -1), "above": ("y", 1), "below": ("y", -1)}
RELATION = {"over": "above", "on top": "above", "under": "below", "beneath": "below"}


def test_captions_are_true_and_say_only_part(default: Path) -> None:
    places = relations = partial = 0
    for image in images_of(default):
        for text in (sentence["raw"] for sentence in image["sentences"]):
            things = pairs_in(text, image)
            assert None not in things, text
            partial += len(things) < len(image["things"])
            for name, place in re.findall(r"(\w+ \w+) at the (\w+ \w+)", text):
                for thing in pairs_in(name, image):
                    assert thing is not None and thing["place"] == place, text
                    places += 1
            if " at the " in text or not (word := re.search("|".join([*LESS, *RELATION]), text)):
                continue
            first = pairs_in(text[: word.start()], image)
            second = pairs_in(text[word.end() :].split(" and ")[0], image)
            axis, sign = LESS[RELATION.get(word[0], word[0])]
            for one, other in zip(first, second, strict=False):
                assert one is not None and other is not None
                assert sign * (other[axis] - one[axis]) > 0, text
                relations += 1
    assert min(places, relations, partial) > 1000


def test_pictures_show_the_colours_that_captions_name(small: Path) -> None:
    """An image holds pixels of its own things' colours, at their places."""
    from itr.data.scenes.render import RGB

    for image in images_of(small):
        with Image.open(small / "images" / image["filename"]) as file:
            pixels = np.asarray(file).astype(np.int64)
        for thing in image["things"]:
            row, column = 56 * ("bottom" in thing["place"]), 56 * ("right" in thing["place"])
            quarter = pixels[row : row + 56, column : column + 56]
            near = np.abs(quarter - RGB[thing["colour"]]).max(-1) < 40
            assert near.sum() > 40, (image["filename"], thing)


def bag(image: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(sorted(t[name] for t in image["things"])) for name in ATTRIBUTES)


def binding(image: dict[str, Any]) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(t[name] for name in ATTRIBUTES) for t in image["things"])


def test_splits_share_no_scene_and_hold_near_misses(default: Path) -> None:
    images = images_of(default)
    for first, second in combinations(("train", "val", "test"), 2):
        bags = [{bag(i) for i in images if i["split"] == split} for split in (first, second)]
        assert not bags[0] & bags[1]
    assert len({binding(image) for image in images}) == len(images)
    for split in ("train", "val", "test"):
        shared = Counter(bag(image) for image in images if image["split"] == split)
        twins = sum(count for count in shared.values() if count > 1)
        assert 0.3 < twins / sum(shared.values()) < 0.7


def test_scenes_are_compositional(default: Path) -> None:
    images = images_of(default)
    assert {len(image["things"]) for image in images} == {2, 3, 4}
    seen = {name: {t[name] for i in images for t in i["things"]} for name in ATTRIBUTES}
    assert [len(seen[name]) for name in ATTRIBUTES] == [10, 6, 3, 2, 4]
    words = {w for i in images for s in i["sentences"] for w in s["tokens"]}
    assert len(words) < 150


# A fair first test: a linear baseline


def means(folder: Path, split: str, vocabulary: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean region of each image, and mean one-hot word vector of each caption."""
    opened = read_split(folder / "scenes_precomp", split)
    texts = [re.findall(r"[a-z]+", caption.lower()) for caption in opened.captions()]
    if split == "train":
        for word in sorted({word for text in texts for word in text}):
            vocabulary[word] = len(vocabulary)
    bags = np.zeros((len(texts), len(vocabulary)))
    for row, text in enumerate(texts):
        for word in text:
            if word in vocabulary:
                bags[row, vocabulary[word]] += 1 / len(text)
    return np.asarray(opened.regions).mean(1, dtype=np.float64), bags


def whitener(values: np.ndarray, ridge: float) -> np.ndarray:
    """(covariance + ridge)^(-1/2)."""
    scale, axes = np.linalg.eigh(values.T @ values / len(values) + ridge * np.eye(values.shape[1]))
    return axes * scale**-0.5 @ axes.T


def linear_r1(folder: Path, ridge: float) -> tuple[float, float]:
    """R@1 (i2t, t2i) in per cent of one matrix a side: canonical correlations of the means."""
    vocabulary: dict[str, int] = {}
    (image, text), (image_test, text_test) = (
        means(folder, split, vocabulary) for split in ("train", "test")
    )
    for train, test in ((image, image_test), (text, text_test)):
        centre, spread = train.mean(0), train.std(0) + 1e-6
        for values in (train, test):
            values -= centre
            values /= spread
    white_image, white_text = whitener(image, ridge), whitener(text, ridge)
    cross = np.repeat(image, 5, axis=0).T @ text / len(text)
    left, strength, right = np.linalg.svd(white_image @ cross @ white_text, full_matrices=False)
    image_test = image_test @ white_image @ left * strength**0.5
    text_test = text_test @ white_text @ right.T * strength**0.5
    image_test /= np.linalg.norm(image_test, axis=1, keepdims=True)
    text_test /= np.linalg.norm(text_test, axis=1, keepdims=True)
    scores = image_test @ text_test.T  # [images, captions]
    i2t = np.mean(scores.argmax(1) // 5 == np.arange(len(scores)))
    t2i = np.mean(scores.argmax(0) == np.arange(scores.shape[1]) // 5)
    return 100 * float(i2t), 100 * float(t2i)


@pytest.mark.parametrize("ridge", [0.1, 1.0, 3.0])
def test_linear_baseline_learns_but_stays_low(default: Path, ridge: float) -> None:
    i2t, t2i = linear_r1(default, ridge)
    assert 5 < i2t < 20  # chance 2.5
    assert 1 < t2i < 20  # chance 0.5
