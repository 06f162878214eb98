"""Clip art with human captions, from hand-made packages."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from itr.data.layouts.registry import DataConfig, open_split
from itr.data.tools.clipart import packages
from itr.data.tools.clipart.cli import main

SVG = """<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY secret SYSTEM "file://{secret}">]>
<svg xmlns="http://www.w3.org/2000/svg"><metadata><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:cc="http://web.resource.org/cc/"
 xmlns:dc="http://purl.org/dc/elements/1.1/"><cc:Work><dc:title>{title}</dc:title>
 <dc:description>Drawn for a {title} lover. See http://x.org. &secret;</dc:description>
 <dc:subject><rdf:Bag><rdf:li>{title}</rdf:li><rdf:li>animal, pet</rdf:li></rdf:Bag></dc:subject>
 <cc:license rdf:resource="http://web.resource.org/cc/{license}"/></cc:Work></rdf:RDF></metadata>
</svg>"""
ANIMALS = "Horse Tiger Zebra Panda Camel Otter Robin Goose Moose Hyena Koala Lemur".split()


@pytest.fixture
def drawn(tmp_path):
    """Twelve animals, one that is not free, one blank, one broken, one filed twice."""
    root, draw = tmp_path / "packages" / "usr/share/openclipart", np.random.default_rng(0)
    (tmp_path / "secret").write_text("hunter2")

    def add(name, title, pixels, license="PublicDomain"):
        for kind in ("svg", "png"):
            (root / kind / "animals").mkdir(parents=True, exist_ok=True)
        text = SVG.format(title=title, license=license, secret=tmp_path / "secret")
        (root / "svg/animals" / f"{name}.svg").write_text(text)
        Image.fromarray(pixels).save(root / "png/animals" / f"{name}.png")

    pictures = [draw.integers(0, 255, (20, 30, 4), np.uint8) for _ in ANIMALS]
    for title, pixels in zip(ANIMALS, pictures, strict=True):
        add(f"{title.lower()}_01", title, pixels)
    add("yak", "Yak", draw.integers(0, 255, (20, 30, 4), np.uint8), "Sampling")
    add("ghost", "Ghost", np.full((20, 30, 3), 255, np.uint8))
    add("twin", "Twin", pictures[0])
    add("broken", "Broken", pictures[1])
    (root / "png/animals/broken.png").write_bytes(b"no picture")
    return tmp_path / "packages"


def test_drawings_become_records_and_what_is_left_out_is_counted(drawn, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(out), "--packages", str(drawn)]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    for words in ("12 images", "1 not marked public domain", "1 the same picture filed twice"):
        assert words in printed, printed
    assert "2 picture unreadable, blank" in printed
    entries = json.loads((out / "dataset_openclipart.json").read_text())["images"]
    assert len(list((out / "images").iterdir())) == len(entries) == 12
    found = {}
    for part in {entry["split"] for entry in entries}:
        split = open_split(DataConfig("openclipart", str(out), "karpathy"), part, "pixels")
        found |= {record.captions[0]: record for record in split.records}
    assert {"Tiger", "Zebra"} <= set(found) and "Yak" not in found
    tiger = found["Tiger"]
    assert tiger.captions[1].startswith("Drawn for a Tiger lover.")
    assert tiger.captions[2] == "Tiger, animals"
    assert not any("hunter2" in c or "http" in c for r in found.values() for c in r.captions)
    with Image.open(str(tiger.image)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (30, 20))


def test_what_is_missing_is_named(drawn, tmp_path, capsys, monkeypatch):
    def fails(*arguments):
        assert main([str(tmp_path / "out"), *arguments]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    monkeypatch.setitem(sys.modules, "lxml.etree", None)
    assert "itr-suite[real]" in fails("--packages", str(drawn))
    monkeypatch.setitem(sys.modules, "lxml.etree", object())  # not reached
    monkeypatch.setattr(packages.shutil, "which", lambda program: None)
    error = fails("--cache", str(tmp_path / "cache"))
    assert "openclipart-svg" in error and "openclipart-png" in error and "--packages" in error
    (tmp_path / "empty").mkdir()
    error = fails("--packages", str(tmp_path / "empty"), "--cache", str(tmp_path / "cache"))
    assert "openclipart-svg_*.deb" in error
    assert "--limit 0" in fails("--limit", "0")
    (tmp_path / "out2").mkdir()
    assert main([str(tmp_path / "out2")]) == 2 and "already exists" in capsys.readouterr().err
