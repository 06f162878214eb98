"""The page of all runs: what is on it, that it is text, and that its script runs in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from itr.results.__main__ import main
from itr.results.results_file import read_results
from tests.results.synthetic_runs import run
from tests.results.trackers.test_tracker import lines

HOSTILE = "<script>alert(1)<b> \u202eevil \x1b[31m"
CHROMIUM = next((p for name in ("chromium", "google-chrome") if (p := shutil.which(name))), None)


class Page(HTMLParser):
    """The texts of cells, the links and the elements of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.data = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1] == (
            "script", {"type": "application/json", "id": "data"},
        ):  # fmt: skip
            self.data += data
        elif data.strip():
            self.texts.append(data.strip())


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: a real one, one that failed under a hostile name, damaged ones, one of a paper."""
    root = tmp_path_factory.mktemp("page")
    runs = root / "runs"
    shutil.copytree(finished, runs / "real", ignore=shutil.ignore_patterns("wandb"))
    (runs / "real" / "gallery-test.html").write_text("x")
    shutil.copytree(runs / "real", runs / HOSTILE)
    (runs / HOSTILE / "results.json").unlink()
    log = "run directory: x\nplanned updates: 30\nthe job failed: <i>no such folder</i>\n"
    (runs / HOSTILE / "train.log").write_text(log)
    config = (
        (runs / HOSTILE / "config.yaml").read_text().replace("embed_size: 32", "embed_size: 64")
    )
    (runs / HOSTILE / "config.yaml").write_text(config)
    shutil.copytree(runs / "real", runs / "damaged")
    (runs / "damaged" / "results.json").write_text("{")
    published = {"data": "f30k", "trained_on": "f30k", "test/protocol": "f30k_1k"}
    (run(runs / "f30k", **published) / "metrics.jsonl").write_text("")
    for name, text in (
        ("pair", json.dumps({"sweep": HOSTILE, "rows": [
            {"model.heads": 4, "n": 2, "test/rsum": {"mean": 150.25, "deviation": 1.5}}]})),
        ("broken", "[]"),
    ):  # fmt: skip
        (runs / "sweeps" / name).mkdir(parents=True)
        (runs / "sweeps" / name / "table.json").write_text(text)
    assert main(["page", str(runs), "--out", str(root / "site")]) == 0
    return root


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "site" / "index.html").read_text("utf-8"))


def test_every_run_is_there_with_its_numbers(page: Page, folder: Path) -> None:
    results = read_results(folder / "runs" / "real")
    for text in ("real", "damaged", "f30k", "finished", f"{results['test/rsum']:.1f}"):
        assert text in page.texts, text
    assert any("valid JSON" in text for text in page.texts)  # why it is damaged
    assert "150.2 ± 1.5" in page.texts and any("broken" in text for text in page.texts)
    paper = [text for text in page.texts if "(ours)" in text or "HREM, released" in text]
    assert len(paper) >= 2 and any(text.startswith("ours - ") for text in page.texts)
    data = json.loads(page.data)
    known = {each["name"]: each for each in data["runs"]}
    logged = lines(folder / "runs" / "real" / "metrics.jsonl")
    drawn = known["real"]["curves"]
    assert drawn["selection"] == [[r["epoch"], r["val/rsum"]] for r in logged if "val/rsum" in r]
    assert drawn["loss"][-1][0] == max(r["step"] for r in logged if "train/loss" in r)
    place = data["keys"].index("model.embed_size")
    values = {n: data["values"][place][r["options"][place]] for n, r in known.items()
              if r["options"][place] >= 0}  # fmt: skip
    assert values["real"] == "32" and set(values.values()) == {"32", "64"}


def test_nothing_is_loaded_and_every_link_is_a_file(page: Page, folder: Path) -> None:
    loading = [a for tag, a in page.elements if "src" in a or tag in ("link", "iframe", "img")]
    assert not loading
    links = [str(a["href"]) for tag, a in page.elements if tag == "a"]
    files = [unquote(link) for link in links if not link.startswith("#")]
    assert any(link.endswith("gallery-test.html") for link in files)
    for link in files:
        if not link.endswith("table.md"):  # which a real sweep has
            assert (folder / "site" / link).exists(), link
    anchors = {a["id"] for _, a in page.elements if "id" in a}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors


def test_hostile_names_stay_text(page: Page, folder: Path) -> None:
    assert [a for tag, a in page.elements if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert not [tag for tag, _ in page.elements if tag == "b"]
    assert any("<script>alert(1)<b> \\u202eevil \\x1b[31m" in text for text in page.texts)
    assert any("<i>no such folder</i>" in text for text in page.texts)
    whole = (folder / "site" / "index.html").read_text("utf-8")
    assert (
        "\u202e" not in whole
        and "\x1b" not in whole
        and not re.search("https?://(?!www.w3)", whole)
    )


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_its_script_runs_in_a_browser(folder: Path, tmp_path: Path) -> None:
    address = (folder / "site" / "index.html").as_uri()
    ended = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
         f"--user-data-dir={tmp_path}",
         "--virtual-time-budget=2000", "--enable-logging=stderr", "--dump-dom", address],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "CONSOLE" not in ended.stderr  # where errors of scripts are logged
    shown = Page(ended.stdout)
    assert [tag for tag, _ in shown.elements].count("polyline") >= 2
    assert "model.embed_size" in shown.texts and "64" in shown.texts
    assert not [tag for tag, _ in shown.elements if tag == "b"]


def test_no_runs_and_no_folder_are_errors(tmp_path: Path, capsys: Any) -> None:
    assert main(["page", str(tmp_path), "--out", str(tmp_path / "site")]) == 2
    assert "train first" in capsys.readouterr().err
    assert main(["page", str(tmp_path / "x"), "--out", str(tmp_path / "site")]) == 2
    assert "no such folder" in capsys.readouterr().err
