"""Two runs side by side, the filter and the larger view, and the size of a page."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from itr.evaluation.predictions import read_predictions
from itr.evaluation.query_log import read_queries
from itr.jobs.commands.gallery_cli import main
from itr.jobs.train import train
from itr.results.gallery import page as gallery_page
from itr.results.gallery.evaluated_run import open_run
from tests.conftest import compose
from tests.results.gallery.test_page import CHROMIUM, Page, only_our_script
from tests.results.synthetic_runs import run
from tests.training.sizes import overrides


@pytest.fixture(scope="module")
def other(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second run on the same queries, with other answers to some."""
    log = read_queries(finished)
    ranks = next(iter(log.ranks.values()))
    ranks.i2t[:] = np.where(np.arange(len(ranks.i2t)) % 4 == 0, 1, ranks.i2t + 1)
    ranks.t2i[:] = np.where(ranks.t2i == 1, 7, ranks.t2i)
    ranks.t2i[5:9] = 1
    folder = tmp_path_factory.mktemp("other") / "other"
    folder.mkdir()
    log.save(folder, "test", log.metadata)
    return folder


@pytest.fixture(scope="module")
def written(finished: Path, other: Path) -> Path:
    out = other.parent / "page.html"
    assert main([str(finished), "--against", str(other), "--out", str(out)]) == 0
    return out


def test_it_shows_what_one_run_alone_answers(written: Path, finished: Path, other: Path) -> None:
    text = written.read_text()
    page = Page(text)
    assert not [url for url in page.urls if not url.startswith(("#", "data:"))]
    logs = [read_queries(folder) for folder in (finished, other)]
    first, second = (next(iter(log.ranks.values())) for log in logs)
    words = [word.strip() for word in page.words]
    captions = open_run(finished).captions
    for direction, name in (("i2t", "image → text"), ("t2i", "text → image")):
        a, b = getattr(first, direction) == 1, getattr(second, direction) == 1
        counts = [(a & b).sum(), (a & ~b).sum(), (b & ~a).sum(), (~a & ~b).sum()]
        place = words.index(name)
        shown = [word for word in words[place + 1 : place + 9] if word][:4]
        assert shown == [str(count) for count in counts], direction
        for letter, only in (("A", a & ~b), ("B", b & ~a)):
            cases = section(text, f"{letter}-{direction}")
            assert cases.count("<article") == min(8, only.sum())
            if direction == "t2i":
                found = {q for q, caption in enumerate(captions) if f">{caption}<" in cases}
                queries = re.findall(r'<div class="query">\s*(.*?)\s*</div>', cases)
                assert set(queries) <= {captions[q] for q in np.flatnonzero(only)} and (
                    found or not only.any()
                )


def section(text: str, name: str) -> str:
    start = text.find(f'<details id="{name}"')
    return "" if start < 0 else text[start : text.find('<details id="', start + 10)]


def test_runs_on_other_queries_are_refused(finished: Path, tmp_path: Path, capsys: Any) -> None:
    assert main([str(finished), "--against", str(run(tmp_path / "else"))]) == 2
    assert "different queries" in capsys.readouterr().err
    assert main([str(finished), "--against", str(tmp_path / "none")]) == 2
    assert "queries-test.npz" in capsys.readouterr().err


def test_a_page_that_is_too_large_gets_smaller_pictures(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_page, "SIDES", (192, 64, 48))  # scenes are small
    sizes = []
    for limit in (5_000_000, 1000):
        monkeypatch.setattr(gallery_page, "LARGEST", limit)
        text = gallery_page.build_page(open_run(finished), count=2)
        pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
        opened = [Image.open(io.BytesIO(base64.b64decode(picture))) for picture in pictures]
        sizes.append(max(max(picture.size) for picture in opened))
    assert sizes[1] == 48 < sizes[0]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_filter_and_larger_view_work_in_a_browser(written: Path, tmp_path: Path) -> None:
    text = written.read_text()
    word = re.search(r'<div class="query">\s*([^<]+?)\s*</div>', text)
    assert word is not None
    stranger = "<script>document.title='a stranger ran'</script>"
    (tmp_path / "page.html").write_text(text + stranger)
    owner = tmp_path / "owner.html"
    owner.write_text(
        "<title></title><script>function act(){const d=frames[0].document,"
        f"b=d.getElementById('filter');b.value={word[1]!r};"
        "b.dispatchEvent(new Event('input'));d.querySelector('article img').click();"
        "document.title=[...d.querySelectorAll('article')].filter(a=>!a.hidden).length+' '+"
        "d.querySelector('dialog').open+' '+d.title}</script>"
        '<iframe src="page.html" onload="act()"></iframe>'
    )
    found = subprocess.run(
        [str(shutil.which(str(CHROMIUM))), "--headless", "--no-sandbox", "--disable-gpu",
         "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", owner.as_uri()],
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    title = re.search(r"<title>(\d+) (\w+) ([^<]*)</title>", found)
    assert title is not None and int(title[1]) >= 1 and title[2] == "true"
    assert int(title[1]) < text.count("<article")
    assert " against " in title[3]  # the policy of the page lets no other script run


def test_maps_of_chosen_captions(finished: Path, tmp_path: Path, capsys: Any) -> None:
    evaluated, out = open_run(finished), tmp_path / "page.html"
    word = max(evaluated.captions[0].split(), key=len)
    given = [str(finished), "--out", str(out), "--queries", "1", "--heat", "2", "--heat-for"]
    assert main([*given, word.upper()]) == 0
    maps = section(out.read_text(), "heat")
    queries = re.findall(r'<div class="query">\s*(.*?)\s*</div>', maps)
    expected = [caption for caption in evaluated.captions if word in caption.lower()]
    assert queries == expected[:2]
    assert main([*given, "zebra"]) == 2
    assert "--heat-for 'zebra': no caption of the test split" in capsys.readouterr().err


def test_two_runs_of_a_task(tmp_path: Path, world: Path, capsys: Any) -> None:
    """The items that one run alone gets right, with both answers."""
    options = overrides("albef", world, "task=entailment", "trainer.max_steps=1", "data=scenes")
    assert train(compose("train", [*options, f"out={tmp_path / 'a'}"]))
    first = read_predictions(tmp_path / "a", "test")
    first.scores[:] = np.arange(len(first.scores)) % 2
    first.save(tmp_path / "a", "test")
    other = tmp_path / "b"
    other.mkdir()
    first.scores[:] = np.arange(len(first.scores)) % 3 == 0
    first.predicted[:] = ["<b>neutral</b>"] * len(first.scores)
    first.save(other, "test")
    out = tmp_path / "page.html"
    assert main([str(tmp_path / "a"), "--against", str(other), "--out", str(out)]) == 0
    text = out.read_text()
    only_our_script(text)
    right = np.arange(len(first.scores))
    a, b = right % 2 == 1, right % 3 == 0
    words = " ".join(Page(text).words)
    assert f"8 of {int((a & ~b).sum())}" in words and f"8 of {int((b & ~a).sum())}" in words
    assert text.count("<article") == 16 and "A: " in words and "B: <b>neutral</b>" in words
    first.texts[0] = "another"
    first.save(other, "test")
    assert main([str(tmp_path / "a"), "--against", str(other)]) == 2
    assert "different items" in capsys.readouterr().err
