"""`itr data bench` runs on regions and images and reports every stage."""

from __future__ import annotations

import re

import pytest

from itr.data.scenes.make import prepare
from itr.data.tools.bench import main


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    prepare(folder, train=60, val=20, test=20, seed=0)
    return folder


@pytest.mark.parametrize(
    "model, stages",
    [
        ("hrem", ["regions, all stages"]),
        ("albef", ["read", "decode", "crop and resize", "augment and normalize", "images, all"]),
    ],
)
def test_every_stage_has_a_rate(here, capsys, monkeypatch, model, stages):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = [
        "data=scenes", f"model={model}", f"data.root={here}", "data.prepare.train=60",
        "data.prepare.val=20", "data.prepare.test=20", f"data.cache={here / 'cache'}",
        f"recipe={model}_scenes_retrieval", "seconds=0.02", "workers=0,2", "batch_size=16",
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    output = capsys.readouterr().out
    for stage in (*stages, "captions, tokenized", "captions, cached", "2 workers"):
        line = next(line for line in output.splitlines() if stage in line)
        rate, milliseconds = (
            float(n.replace(",", "")) for n in re.findall(r"[\d,.]+\d", line)[-2:]
        )
        assert rate > 0 and milliseconds > 0


def test_unusable_arguments(capsys):
    assert main(["data=scenes", "seconds=fast"]) == 2
    assert "seconds" in capsys.readouterr().err
    assert main(["data=scens"]) == 2
    assert "nearest: scenes" in capsys.readouterr().err
