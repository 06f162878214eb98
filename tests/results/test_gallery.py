"""python -m itr.gallery: what the page shows, that it needs nothing else, how it looks."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from itr.batch import Batch
from itr.evaluation.queries import read_queries
from itr.gallery import main
from itr.models.base import Encoded
from itr.results import maps
from itr.results.cases import choose, hubs
from itr.results.gallery import build_page, open_gallery
from itr.results.heat import smooth_map
from tests.results.made import run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
WIDTHS = {"desktop": 1280, "phone": 390}


class Page(HTMLParser):
    """What a page asks for, and its words."""

    def __init__(self, text: str):
        super().__init__()
        self.asked: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.asked += [value for key, value in attrs if key in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "line", "polyline", "polygon"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "polyline", "polygon"):
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "gallery.html"
    assert main([str(finished), "--out", str(out), "--queries", "4", "--heat", "2"]) == 0
    return out


def test_the_page_is_one_well_formed_file_without_a_network(page: Path):
    text = page.read_text()
    found = Page(text)
    assert not found.open
    assert found.asked and all(link.startswith(("data:image/jpeg", "#")) for link in found.asked)
    assert "url(" not in text and "@import" not in text and "<script" not in text
    anchors = [link[1:] for link in found.asked if link.startswith("#")]
    assert all(f'id="{anchor}"' in text for anchor in anchors)
    assert 'name="viewport"' in text


def test_the_page_shows_the_worst_queries_with_their_ranks(page: Path, finished: Path):
    log, words = read_queries(finished), " ".join(Page(page.read_text()).words)
    captions = open_gallery(finished).captions
    ranks = log.ranks["full"].t2i
    worst = choose(log, "full", "t2i", "worst", 4)
    assert worst[0].rank == ranks.max() and len({case.truths for case in worst}) == 4
    for case in worst:
        assert captions[case.query] in words
        assert re.search(rf"rank\s+{int(case.rank)}\b", words)
        assert case.truths == (log.text_to_image[case.query],)
        assert all(c.right == (c.number in case.truths) for c in case.candidates)
    assert all(1 < case.rank <= 3 for case in choose(log, "full", "i2t", "near", 50))
    assert "how much of the score is lost" in words


def test_words_from_the_data_cannot_break_the_page(finished: Path):
    gallery = open_gallery(finished)
    gallery.captions = ["<script>alert(1)</script> & more"] * len(gallery.captions)
    text = build_page(gallery, count=2, heat=0)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_data_that_changed_since_is_refused(finished: Path, tmp_path: Path, capsys):
    copy = run(tmp_path / "other", images=7)
    log, facts = read_queries(copy), read_queries(finished).facts
    log.save(copy, "test", facts)
    assert main([str(copy)]) == 2
    assert "holds 20 images and 100 captions, the evaluation" in capsys.readouterr().err
    assert main([str(run(tmp_path / "bare"))]) == 2
    assert "came without a data set" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no such file; it holds the ranks of each query" in capsys.readouterr().err


def test_hubs_count_the_answers(finished: Path):
    log = read_queries(finished)
    skewness, top = hubs(log, "t2i")
    times = [(log.answers["t2i"].candidates == image).sum() for image in range(20)]
    assert top[0] == (int(np.argmax(times)), max(times))
    centred = times - np.mean(times)
    assert skewness == pytest.approx(np.mean(centred**3) / np.std(times) ** 3)


def test_a_region_counts_as_much_as_the_score_loses_without_it(finished: Path):
    gallery = open_gallery(finished)
    model, tokenizer = maps.load_model(finished / "checkpoints" / "best.safetensors")
    cache = Path(gallery.data.cache)
    (seen,) = maps.look(model, tokenizer, gallery.split, [(3, 16)], cache)
    regions = torch.from_numpy(np.array(gallery.split.regions[3], dtype=np.float32))
    text = maps_text(model, tokenizer, gallery.captions[16], cache)

    def score(values: torch.Tensor) -> float:
        mask = torch.ones(1, len(values), dtype=torch.bool)
        batch = Batch(image_id=torch.zeros(1), regions=values[None], region_mask=mask)
        with torch.inference_mode():
            return float(model.encode_images(batch).pooled[0] @ text)

    assert seen.score == pytest.approx(score(regions), abs=1e-5)
    for region in (0, 5):
        others = torch.cat([regions[:region], regions[region + 1 :]]).mean(dim=0)
        without = regions.clone()
        without[region] = others
        lost = max(0.0, score(regions) - score(without))
        assert seen.values[region] == pytest.approx(lost, abs=2e-5)


def maps_text(model, tokenizer, caption: str, cache: Path) -> torch.Tensor:
    from itr.data.text import build_table

    ids = torch.from_numpy(
        build_table(tokenizer, [caption], model.view.text_eval, cache).ids(0).astype(np.int64)
    )
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    batch = Batch(caption_id=torch.zeros(1), tokens=ids[None], token_mask=mask)
    batch = dataclasses.replace(batch, min_token_length=len(ids))
    with torch.inference_mode():
        return model.encode_texts(batch).pooled[0]


class Corner:
    """A model that sees nothing but the top left of a picture."""

    heat = staticmethod(lambda images, texts: None)

    def encode_images(self, images: Batch) -> Encoded:
        assert images.pixels is not None
        return Encoded(images.pixels[:, :, :6, :6].mean(dim=(2, 3)))

    def encode_texts(self, texts: Batch) -> Encoded:
        return Encoded(torch.ones(1, 3))


def test_a_hidden_square_is_hot_where_the_model_looks():
    pixels = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)) + 0.5
    seen = maps._look(Corner(), Batch(pixels=pixels), Batch())  # type: ignore[arg-type]
    assert seen.values.shape == (8, 8) and seen.values[0, 0] == seen.values.max() > 0
    assert (seen.values > 0).sum() == 1  # squares are 6 pixels
    smooth = smooth_map(seen.values, 40, 60)
    assert smooth.shape == (40, 60) and smooth.max() == 1.0
    assert np.unravel_index(smooth.argmax(), smooth.shape) < (6, 8)
    assert not smooth_map(np.ones((4, 4)), 8, 8).any()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page was not drawn")
@pytest.mark.parametrize("name", WIDTHS)
def test_the_page_in_a_real_browser(page: Path, tmp_path: Path, name: str):
    """Drawn without a network: every picture decodes, nothing sticks out at the side."""
    assert CHROMIUM is not None
    width = WIDTHS[name]
    probe = (
        "<script>onload=()=>{const i=[...document.images];i.forEach(x=>x.loading='eager');"
        "Promise.all(i.map(x=>x.decode())).then(()=>{document.title='ok '+i.length+' '+"
        "Math.max(...[...document.querySelectorAll('main *')].map("
        "e=>e.closest('.scroll')?0:e.getBoundingClientRect().right))+' '+innerWidth})"
        ".catch(e=>{document.title='broken '+e})}</script>"
    )
    (tmp_path / "page.html").write_text(page.read_text() + probe)
    # A window is at least 500 pixels wide; a frame in it is as narrow as a phone.
    frame, shot = tmp_path / "frame.html", tmp_path / "shot.png"
    frame.write_text(
        f'<title></title><iframe src="page.html" style="width:{width}px;height:2000px;border:0">'
        "</iframe><script>setInterval(()=>{document.title=frames[0].document.title},50)</script>"
    )
    common = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
              "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
              "--allow-file-access-from-files", "--virtual-time-budget=20000",
              f"--window-size={max(width, 500) + 40},2040"]  # fmt: skip
    for _ in range(3):  # on a busy machine the browser's own clock may run out before the pictures
        found = subprocess.run(
            [*common, f"--screenshot={shot}", "--dump-dom", frame.as_uri()],
            capture_output=True, text=True, timeout=240, check=True,
        ).stdout  # fmt: skip
        title = re.search(r"<title>(ok|broken) ([^<]*)</title>", found)
        if title is not None:
            break
    assert title is not None and title[1] == "ok", found[:300]
    images, right, inner = title[2].split()
    assert int(images) > 20 and float(right) <= float(inner) == width
    with Image.open(shot) as drawn:
        colours = drawn.convert("RGB").getcolors(maxcolors=2**24)
        assert colours is not None and len(colours) > 500  # pictures and letters, no blank page
