"""Hugging Face repositories are found on this machine first, and a missing hub is reported."""

from __future__ import annotations

import functools
from pathlib import Path

import huggingface_hub
import pytest

from itr import hub
from itr.errors import ConfigError


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty cache at the returned path."""
    cached = functools.partial(huggingface_hub.try_to_load_from_cache, cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    return tmp_path


def test_a_directory_is_returned_as_it_is(offline: Path) -> None:
    assert hub.local_or_hub(str(offline), "model.text.name") == str(offline)


def test_a_cached_repository_needs_no_network(offline: Path) -> None:
    repository = offline / "models--org--bert"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "vocab.txt").write_text("[PAD]")
    found = hub.local_or_hub("org/bert", "model.text.tokenizer", ["vocab.txt"])
    assert found == str(snapshot)
    with pytest.raises(ConfigError):  # its weights are not cached
        hub.local_or_hub("org/bert", "model.text.name")


@pytest.mark.parametrize("name", ["org/bert", "/nowhere/bert"])
def test_what_cannot_be_found_names_the_option(offline: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"model.text.name={name}.*model.text.name=DIR"):
        hub.local_or_hub(name, "model.text.name")


def test_a_reachable_hub_downloads_by_name(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    assert hub.local_or_hub("org/bert", "model.text.name") == "org/bert"
