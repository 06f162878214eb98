"""Atomic writes: a file is complete or absent, and nothing temporary is left behind."""

import logging
import os
import stat

import pytest

from itr.errors import TrainingError
from itr.files import (
    atomic_path,
    atomic_write,
    atomic_write_or_warn,
    explain_write_error,
    parse_json,
    parse_yaml,
)


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "results.json"
    with atomic_write(path) as file:
        file.write(b"{}")
        file.flush()
        assert not path.exists()
        (temporary,) = path.parent.iterdir()
        assert temporary.match(".results.json.*.tmp")
    assert path.read_bytes() == b"{}"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_keeps_the_old_file_and_removes_the_temporary_one(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of the new o")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_share_a_temporary_path(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"  # the outer block ends last


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_and_its_folder_are_synced(tmp_path, monkeypatch, durable):
    synced = []

    def fsync(descriptor):
        mode = os.fstat(descriptor).st_mode
        synced.append("folder" if stat.S_ISDIR(mode) else os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_path(tmp_path / "file", durable) as temporary:
        temporary.write_bytes(b"12345")
    assert synced == ([5, "folder"] if durable else [])


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "not_a_folder").write_text("")
    path = tmp_path / "not_a_folder" / "cache.npz"
    with caplog.at_level(logging.WARNING):
        atomic_write_or_warn(path, lambda file: file.write(b""), "token ids")
    assert str(path) in caplog.text and "token ids" in caplog.text


def test_a_write_error_names_the_file_and_the_key(tmp_path):
    (tmp_path / "not_a_folder").write_text("")
    path = tmp_path / "not_a_folder" / "results.json"
    with (
        pytest.raises(TrainingError, match="results.json: the results .*out=DIR"),
        explain_write_error(path, "the results"),
        atomic_write(path),
    ):
        pass


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "aliases"),
        ("a: &a [*a]", "aliases"),
        ("[" * 100_000, "deep"),
        ("x: !!bool maybe", "maybe"),
        ("x: !!timestamp 1", "group"),
        ("x: !!python/object:os.system 1", "constructor"),
        ("a: " + "b" * 5_000_000, "characters"),
    ],
)
def test_yaml_that_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_yaml(text)


def test_deep_json_is_refused():
    with pytest.raises(ValueError, match="deep"):
        parse_json("[" * 200_000)
    assert parse_json('{"a": [1]}') == {"a": [1]} and parse_yaml("a: [1]") == {"a": [1]}
