"""What annotations name is not copied blindly, a full disk is a sentence, nothing half is left."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from itr.data.__main__ import main
from tests.data import worlds
from tests.data.worlds import make_items


def karpathy(folder: Path, first: str | None = None) -> Path:
    """A Karpathy dataset; its first image is named ``first``, relative to the dataset."""
    worlds.write_karpathy(folder, make_items((6, 3, 3)))
    path = folder / "dataset_coco.json"
    content = json.loads(path.read_text())
    if first is not None:
        directory, name = os.path.split(first)
        content["images"][0].update(filepath=directory, filename=name)
    path.write_text(json.dumps(content))
    return path


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond ``limit`` bytes. Python ignores SIGXFSZ, so writes fail."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("target", ["wds", "arrow"])
@pytest.mark.parametrize("absolute", [False, True])
def test_files_outside_are_not_copied(
    target: str, absolute: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret.txt").write_text("TOP-SECRET")
    picture = make_items((1, 1, 1))[0].jpeg
    (tmp_path / "other.jpg").write_bytes(picture)
    for name, flags, code in (
        ("secret.txt", [], 2),
        ("secret.txt", ["--follow-outside"], 2),
        ("other.jpg", [], 2),
        ("other.jpg", ["--follow-outside"], 0),
    ):
        first = str(tmp_path / name) if absolute else f"../{name}"
        source = karpathy(tmp_path / "set", first)
        out = tmp_path / f"out-{name}-{len(flags)}" / target
        assert main(["convert", str(source), str(out), *flags]) == code
        printed = capsys.readouterr().err
        assert code == 0 or (name in printed and ("outside" in printed or "no image" in printed))
        assert out.exists() == (code == 0)
        assert not any("TOP" in f.read_text("latin-1") for f in out.rglob("*") if f.is_file())


@pytest.mark.parametrize("target", ["wds", "arrow", "dataset_x.json", "pairs.csv", "pairs.parquet"])
def test_a_full_disk_is_a_sentence(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worlds.write("shards", tmp_path / "set", make_items((6, 3, 3)))
    out = tmp_path / "out" / target
    arguments = ["convert", str(tmp_path / "set"), str(out)]
    with full_disk(600):
        assert main(arguments) == 2
    assert str(out) in capsys.readouterr().err
    assert [*out.parent.iterdir()] == []
    assert main(arguments) == 0  # as soon as there is room


def test_features_on_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = karpathy(tmp_path / "set").parent
    out = tmp_path / "coco_precomp"
    arguments = ["features", "--images", str(source), "--backbone", "resnet10t", "--size", "64"]
    arguments += ["--weights", "none", "--grid", "2", "--out", str(out), "--device", "cpu"]
    with full_disk(4000):
        assert main(arguments) == 2
    assert str(out) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    assert main(arguments) == 0


@pytest.mark.parametrize("place", ["file/below", "pairs.csv"])
def test_a_place_that_cannot_be_written(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = karpathy(tmp_path / "set")
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / place
    assert main(["convert", "--to", "table", str(source), str(target)]) == 2
    assert str(target) in capsys.readouterr().err


def test_a_killed_conversion_leaves_no_dataset(tmp_path: Path) -> None:
    """The draft of a killed process is no dataset, and the next conversion removes it."""
    from itr import files

    source = karpathy(tmp_path / "set")
    child = os.fork()
    if child == 0:  # the killed process
        files._draft(tmp_path / "wds").mkdir()
        os._exit(0)
    os.waitpid(child, 0)
    drafts = [*tmp_path.glob(".wds.*.tmp")]
    assert len(drafts) == 1
    mine = files._draft(tmp_path / "wds")  # of a living process
    mine.mkdir()
    files._remove_orphans.cache_clear()
    assert main(["convert", str(source), str(tmp_path / "wds")]) == 0
    assert [*tmp_path.glob(".*.tmp")] == [mine]
