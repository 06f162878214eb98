"""Words of the command line that Hydra cannot read: paths and names are taken as they are."""

from __future__ import annotations

import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from itr.errors import ConfigError
from itr.hydra_words import expand_paths, readable

VALUES = [
    *("données", "/mnt/数据/coco", "runs#1", "a b", "it's", 'say "hi"', "a&b;c!d^e<f"),
    *("back\\slash", "ends with\\", 'a\\"b', "x=y", "(1)", "a{b}", "20261129", "1e5", "0.5"),
    *("1_000", "nan", "true", ".5", "-3", "run-1/best.safetensors", "C:/x"),
    "set/{00000..00009}.tar",
]


@pytest.mark.parametrize("key", ["out", "data.root", "tracker.wandb.group", "+model.init"])
@pytest.mark.parametrize("value", VALUES)
def test_a_path_is_a_path(key: str, value: str) -> None:
    (argument,) = readable([f"{key}={value}"])
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert override.value() == value and isinstance(override.value(), str)


UNCHANGED = ["out=null", "out=", 'out="a b"', "out='a'", "seed=1", "checkpoint=[a,b]", "out=a,b"]
UNCHANGED += ["-m", "seed=0,1", "~optim", "out=${oc.env:HOME}", "checkpoint=glob(*)"]


@pytest.mark.parametrize("argument", UNCHANGED)
def test_what_hydra_reads_is_left_alone(argument: str) -> None:
    assert readable([argument]) == [argument]


def test_home_and_null() -> None:
    home = os.path.expanduser("~")
    assert readable(["experiment=null", "recipe=null", "seed=1"]) == ["~recipe", "seed=1"]
    assert readable(["out=~/data", "tracker=null"]) == [f"out={home}/data", "tracker=none"]
    values = {"out": "~/x", "data": {"root": "~/y", "name": "~"}, "model": {"init": None}}
    expanded = expand_paths(values)
    assert expanded["out"] == f"{home}/x" and expanded["model"] == {"init": None}
    assert expanded["data"] == {"root": f"{home}/y", "name": "~"}


@pytest.mark.parametrize("argument", ["model=[hrem,user]"])
def test_a_list_of_options_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match="one option is expected"):
        readable([argument])
