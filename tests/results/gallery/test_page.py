"""itr gallery: the content of the page, that it is self-contained, and its layout."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
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
from itr.data.images.transforms import Choices, transform
from itr.data.records import Record
from itr.evaluation.query_log import read_queries
from itr.evaluation.score_statistics import TopCandidates
from itr.jobs.commands.gallery_cli import main
from itr.jobs.evaluate import evaluate
from itr.jobs.load_checkpoint import load_checkpoint
from itr.models.base import Encoded
from itr.official.__main__ import main as official
from itr.results.gallery import saliency
from itr.results.gallery.evaluated_run import open_run
from itr.results.gallery.overlay import smooth_map
from itr.results.gallery.page import build_page
from itr.results.gallery.query_cases import choose, hubs, worst
from itr.results.gallery.thumbnails import image_label
from itr.view import PixelView
from tests.conftest import PATIENCE, ROOT, compose
from tests.results.synthetic_runs import run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
WIDTHS = {"desktop": 1280, "phone": 390}


class Page(HTMLParser):
    """The URLs that a page refers to, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.urls: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.urls += [value for key, value in attrs if key in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "line", "polyline", "polygon", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "polyline", "polygon"):
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(folder: Path) -> Path:
    out = folder.parent / f"{folder.name}.html"
    assert main([str(folder), "--out", str(out), "--queries", "4", "--heat", "2"]) == 0
    return out


@pytest.fixture(scope="module")
def page(finished: Path) -> Path:
    return page_of(finished)


@pytest.fixture(scope="module")
def pixel_page(of_pixels: Path) -> Path:
    return page_of(of_pixels)


def test_the_page_is_one_well_formed_self_contained_file(page: Path):
    text = page.read_text()
    found = Page(text)
    assert not found.open
    assert found.urls and all(link.startswith(("data:image/jpeg", "#")) for link in found.urls)
    assert "url(" not in text and "@import" not in text
    only_our_script(text)
    anchors = [link[1:] for link in found.urls if link.startswith("#")]
    assert all(f'id="{anchor}"' in text for anchor in anchors)
    assert 'name="viewport"' in text


def only_our_script(text: str) -> None:
    """One script, which is a file of the package, and a policy that lets no other one run."""
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert text.count("<script") == 1
    assert script == (ROOT / "itr/results/gallery/gallery.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None and "default-src &#39;none&#39;" in policy[1]
    assert policy[1].endswith(f"script-src &#39;sha256-{digest}&#39;")


def test_the_page_shows_the_worst_queries_with_their_ranks(page: Path, finished: Path):
    log, words = read_queries(finished), " ".join(Page(page.read_text()).words)
    captions = open_run(finished).captions
    ranks = log.ranks["full"].t2i
    worst = choose(log, "full", "t2i", "worst", 4)
    assert worst[0].rank == ranks.max() and len({case.matches for case in worst}) == 4
    for case in worst:
        assert captions[case.query] in words
        assert re.search(rf"rank\s+{int(case.rank)}\b", words)
        assert case.matches == (log.text_to_image[case.query],)
        assert all(c.is_match == (c.index in case.matches) for c in case.candidates)
    assert all(1 < case.rank <= 3 for case in choose(log, "full", "i2t", "near", 50))
    assert saliency.OCCLUSION in words


def test_equal_ranks_are_ordered_by_confidence():
    """Beyond the re-ranked candidates all ranks are equal."""
    top = TopCandidates(
        np.zeros((5, 1), np.int32),
        np.array([[0.5], [0.9], [0.7], [0.8], [0.6]], np.float32),
        np.array([0.1, np.nan, np.nan, 0.75, 0.6], np.float32),
        np.zeros(5, np.int32),
        np.zeros(1, np.float32),
    )
    ranks = np.array([12.0, 12.0, 12.0, 3.0, np.nan])
    assert worst(ranks, top, np.random.default_rng(0)).tolist() == [1, 2, 0, 3]


def test_images_are_called_by_their_files(finished: Path, pixel_page: Path):
    assert image_label(Record(7, "/data/a b.jpg", ("x",), (0,))) == "a b.jpg"
    assert image_label(Record(7, "", ("x",), (0,))) == "image 7"
    assert re.search(r"[\w-]+\.(jpg|png)", " ".join(Page(pixel_page.read_text()).words))


def test_text_of_the_data_is_escaped(finished: Path):
    evaluated = open_run(finished)
    evaluated.captions = ["<script>alert(1)</script> & more"] * len(evaluated.captions)
    text = build_page(evaluated, count=2, heat=0)
    only_our_script(text)
    assert "&lt;script&gt;" in text


def test_data_that_has_changed_is_refused(finished: Path, tmp_path: Path, capsys):
    copy = run(tmp_path / "other", images=7)
    log, facts = read_queries(copy), read_queries(finished).metadata
    log.save(copy, "test", facts)
    assert main([str(copy)]) == 2
    assert "20 images and 100 captions" in capsys.readouterr().err
    assert main([str(run(tmp_path / "bare"))]) == 2
    assert "without a dataset" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing")]) == 2
    assert "queries-test.npz: no such file" in capsys.readouterr().err


def test_hubs_count_the_top_candidates(finished: Path):
    log = read_queries(finished)
    skewness, top = hubs(log, "t2i")
    times = [(log.top_candidates["t2i"].candidates == image).sum() for image in range(20)]
    assert top[0] == (int(np.argmax(times)), max(times))
    centred = times - np.mean(times)
    assert skewness == pytest.approx(np.mean(centred**3) / np.std(times) ** 3)


def test_the_saliency_of_a_region_is_the_drop_of_the_score(finished: Path):
    evaluated = open_run(finished)
    loaded = load_checkpoint(finished)
    model, tokenizer = loaded.model, loaded.tokenizer
    cache = Path(evaluated.data.cache)
    (seen,) = saliency.saliency_maps(model, tokenizer, evaluated.split, [(3, 16)], cache)
    regions = torch.from_numpy(np.array(evaluated.split.regions[3], dtype=np.float32))
    text = maps_text(model, tokenizer, evaluated.captions[16], cache)

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
    from itr.data.text.token_cache import tokenize_cached

    ids = torch.from_numpy(
        tokenize_cached(tokenizer, [caption], model.view.text_eval, cache).ids(0).astype(np.int64)
    )
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    batch = Batch(caption_id=torch.zeros(1), tokens=ids[None], token_mask=mask)
    batch = dataclasses.replace(batch, min_token_length=len(ids))
    with torch.inference_mode():
        return model.encode_texts(batch).pooled[0]


class Corner:
    """A model that sees only the top left corner of an image."""

    heat = staticmethod(lambda images, texts: None)

    def encode_images(self, images: Batch) -> Encoded:
        assert images.pixels is not None
        return Encoded(images.pixels[:, :, :6, :6].mean(dim=(2, 3)))

    def encode_texts(self, texts: Batch) -> Encoded:
        return Encoded(torch.ones(1, 3))


def test_occlusion_highlights_what_the_model_sees():
    pixels = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)) + 0.5
    seen = saliency._saliency_map(Corner(), Batch(pixels=pixels), Batch())  # type: ignore[arg-type]
    assert seen.values.shape == (8, 8) and seen.values[0, 0] == seen.values.max() > 0
    assert (seen.values > 0).sum() == 1  # squares are 6 pixels
    smooth = smooth_map(seen.values, 40, 60)
    assert smooth.shape == (40, 60) and smooth.max() == 1.0
    assert np.unravel_index(smooth.argmax(), smooth.shape) < (6, 8)
    assert not smooth_map(np.ones((4, 4)), 8, 8).any()


@pytest.mark.parametrize("size", [(300, 100), (90, 160), (64, 64)])
def test_a_map_covers_the_visible_area(size: tuple[int, int]):
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 255, (5, 9, 3), dtype=np.uint8))
    picture = coarse.resize(size, Image.Resampling.BICUBIC)

    def given(picture: Image.Image, view: PixelView) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return transform(pixels, view, Choices(), "torchvision").float()

    middle = PixelView(size=48, resize="shortest")
    part = saliency.visible_area(picture, middle)
    assert part.size == (min(size), min(size))
    assert (given(part, middle) - given(picture, middle)).abs().mean() < 3  # a pixel's rounding
    assert saliency.visible_area(picture, PixelView(size=48)).size == size


def test_a_page_with_heat_maps_over_images(of_pixels: Path, pixel_page: Path):
    """The image of each caption is shown without and with the model's heat map."""
    text = pixel_page.read_text()
    assert saliency.GRAD_CAM in text and "heat map of " in text and 'class="bars"' not in text
    sources = re.findall(r'<div class="two"><img src="data:image/jpeg;base64,([^"]+)"[^>]*>'
                         r'<img src="data:image/jpeg;base64,([^"]+)"', text)  # fmt: skip
    assert len(sources) >= 2
    for pair in sources:
        plain, hot = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(one))), dtype=float) for one in pair
        )
        assert plain.shape == hot.shape
        assert 2 < np.abs(plain - hot).mean() < 200  # blended, but still visible
    evaluated, loaded = open_run(of_pixels), load_checkpoint(of_pixels)
    cache = Path(evaluated.data.cache)
    (seen,) = saliency.saliency_maps(
        loaded.model, loaded.tokenizer, evaluated.split, [(3, 16)], cache
    )
    assert seen.values.shape == (4, 4) and seen.values.max() > 0


def test_the_page_of_an_ensemble_explains_why_it_has_no_maps(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(finished.parent)
    both = "checkpoint=[run,run/checkpoints/best.safetensors]"
    evaluate(compose("eval", [both, "ensemble=true", "out=mean", "device=cpu"]))
    monkeypatch.chdir(tmp_path)
    assert main([str(finished.parent / "mean"), "--queries", "2"]) == 0
    words = " ".join(Page((finished.parent / "mean" / "gallery-test.html").read_text()).words)
    best = finished / "checkpoints" / "best.safetensors"
    assert (
        f"the mean of 2 models. For the maps of one model, run python eval.py checkpoint={best}"
        in (" ".join(words.split()))
    )


def test_an_authors_checkpoint_is_opened_with_the_options_of_its_evaluation(
    finished: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its tokenizer and heads are options of the evaluation, relative to its working directory."""
    best = finished / "checkpoints" / "best.safetensors"
    assert official(["export", str(best), str(tmp_path / "model_best.pth")]) == 0
    words = load_checkpoint(finished).tokenizer.tokens
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(words))
    monkeypatch.chdir(tmp_path)
    evaluate(compose("eval", [
        "model=hrem", "data=scenes", "checkpoint=model_best.pth", "out=out", "device=cpu",
        "model.text.tokenizer=words", "model.text.heads=2",
        "data.prepare.train=60", "data.prepare.val=20", "data.prepare.test=20",
        f"data.root={world / 'data'}", f"data.cache={world / 'cache'}",
    ]))  # fmt: skip
    monkeypatch.chdir(world)
    assert main([str(tmp_path / "out"), "--queries", "1", "--heat", "1"]) == 0
    assert saliency.OCCLUSION in (tmp_path / "out" / "gallery-test.html").read_text()
    (tmp_path / "model_best.pth").unlink()
    assert main([str(tmp_path / "out"), "--queries", "1", "--heat", "1"]) == 0
    assert (
        "model_best.pth does not exist any more"
        in (tmp_path / "out" / "gallery-test.html").read_text()
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page was not drawn")
@pytest.mark.parametrize(
    ("name", "kind"), [("phone", "page"), ("phone", "pixel_page"), ("desktop", "pixel_page")]
)
def test_the_page_in_a_real_browser(
    tmp_path: Path, name: str, kind: str, request: pytest.FixtureRequest
):
    """Rendered without a network: every image decodes, and nothing overflows the width."""
    assert CHROMIUM is not None
    width, page = WIDTHS[name], request.getfixturevalue(kind)
    (tmp_path / "page.html").write_text(page.read_text())
    # A window is at least 500 pixels wide; a frame in it is as narrow as a phone. The page runs no
    # script but its own, so the frame's owner looks at it.
    frame, shot = tmp_path / "frame.html", tmp_path / "shot.png"
    frame.write_text(
        "<title></title><script>function look(){const d=frames[0].document,i=[...d.images];"
        "i.forEach(x=>x.loading='eager');Promise.all(i.map(x=>x.decode())).then(()=>{"
        "document.title='ok '+i.length+' '+Math.max(...[...d.querySelectorAll('main *')].map("
        "e=>e.closest('.scroll')?0:e.getBoundingClientRect().right))+' '+frames[0].innerWidth})"
        ".catch(e=>{document.title='broken '+e})}</script>"
        f'<iframe src="page.html" onload="look()" style="width:{width}px;height:2000px;border:0">'
        "</iframe>"
    )
    common = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
              "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
              "--allow-file-access-from-files", "--virtual-time-budget=20000",
              f"--window-size={max(width, 500) + 40},2040"]  # fmt: skip
    for _ in range(3):  # on a busy machine the browser's own clock may run out before the pictures
        found = subprocess.run(
            [*common, f"--screenshot={shot}", "--dump-dom", frame.as_uri()],
            capture_output=True, text=True, timeout=PATIENCE, check=True,
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
