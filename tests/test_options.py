"""One source for each option: every key has a help, no default stands twice, every one is valid."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from itr import help as help_pages
from itr.data.classification.dataset import ClassificationConfig
from itr.errors import ConfigError
from itr.instantiate import locate
from itr.jobs.eval.config import EvalConfig
from itr.jobs.launch.slurm import SlurmConfig
from itr.losses.infonce import InfoNCE
from itr.models.alip import ALIPConfig
from itr.models.hrem import HREMConfig
from itr.models.multisea import MultiSEAConfig
from itr.options import CONF, bounds_of, configured, faults, option, read, written
from itr.results.trackers.config import TrackerConfig
from itr.training.config import LossConfig, RecipeLossConfig, TrainConfig
from itr.training.optim import OptimConfig

# Only values: their keys are those of other files.
WITHOUT_HELP = ("recipe/", "experiment/", "hydra/output/", "local/")
FILES = [
    name
    for path in sorted(CONF.rglob("*.yaml"))
    if not (name := path.relative_to(CONF).as_posix()).startswith(WITHOUT_HELP)
]
MODELS = [read(name).tree()["model"]["_target_"] for name in FILES if name.startswith("model/")
          and name.count("/") == 1]  # fmt: skip
LOSSES = sorted(
    {
        key.value
        for name in FILES
        if name.startswith("loss/")
        for key in read(name).keys.values()
        if key.name.endswith("._target_")
    }
)


def schemas(schema: Any) -> Iterator[Any]:
    """``schema`` and the dataclasses of its fields."""
    yield schema
    for kind in get_type_hints(schema).values():
        if dataclasses.is_dataclass(kind):
            yield from schemas(kind)


ROOTS = [
    TrainConfig,
    EvalConfig,
    SlurmConfig,
    ClassificationConfig,
    *(locate(target, "model").Config for target in MODELS),
]
SCHEMAS = {schema for root in ROOTS for schema in schemas(root)} - {
    LossConfig,
    RecipeLossConfig,
    TrackerConfig,  # of the chosen nodes, each with a file of its own
}


@pytest.mark.parametrize("name", FILES)
def test_every_key_has_a_help(name: str) -> None:
    keys = read(name).keys.values()
    assert keys or name == "tracker/none.yaml", name
    assert [k.name for k in keys if not k.help and not k.name.endswith("_target_")] == []
    assert read(name).about, f"{name}: no comment at its top says what it is"


@pytest.mark.parametrize("schema", sorted(SCHEMAS, key=str), ids=lambda s: s.__qualname__)
def test_no_dataclass_has_a_default_of_its_own(schema: Any) -> None:
    """LossConfig and RecipeLossConfig are left out: losses and recipes fill them differently."""
    name, at = schema.__configured__
    source = Path(inspect.getfile(schema)).read_text("utf-8")
    body = re.search(rf"^class {schema.__name__}\b.*?(?=^\S)", source + "\nend", re.S | re.M)
    assert body is not None
    fields = re.findall(r"^    \w+: [^=\n]+ = (.+)$", body[0], re.M)
    assert all(default.startswith("option(") for default in fields), fields
    assert (CONF / name).is_file()


@pytest.mark.parametrize("schema", sorted(SCHEMAS, key=str), ids=lambda s: s.__qualname__)
def test_defaults_are_valid_and_those_of_the_file(schema: Any) -> None:
    name, at = schema.__configured__
    node = read(name).tree()
    for part in filter(None, at.split(".")):
        node = node[part]
    required = {
        field.name: None
        for field in dataclasses.fields(schema)
        if field.default is field.default_factory is dataclasses.MISSING
    }
    made = schema(**required)
    assert faults(dataclasses.replace(made), "x") == [] or required
    for field in dataclasses.fields(schema):
        value = getattr(made, field.name)
        simple = not dataclasses.is_dataclass(value) and field.name not in required
        if simple and not str(node[field.name]).startswith("${"):
            assert value == node[field.name], field.name


def test_choices_that_a_help_names_are_those_of_the_type() -> None:
    seen = 0
    for schema in SCHEMAS:
        name, at = schema.__configured__
        for field, bounds in bounds_of(schema).items():
            key = read(name).keys.get(f"{at}.{field}".strip("."))
            if key is None or bounds.choices is None or isinstance(key.value, list):
                continue
            if len(bounds.choices) < 2 or bounds.choices == (None, "auto"):
                continue
            named = re.match(r"[\w+-]+(?: \| [\w+-]+)+", key.help)
            assert named, f"{key.name}: its help begins with the choices: {bounds.choices}"
            known = {written(choice) for choice in bounds.choices if choice is not None}
            assert set(named[0].split(" | ")) == known, key.name
            seen += 1
    assert seen > 15


@pytest.mark.parametrize("target", LOSSES)
def test_a_loss_takes_its_defaults_from_its_file(target: str) -> None:
    cls = locate(target, "loss")
    (file,) = [
        read(name)
        for name in FILES
        if name.startswith("loss/")
        and read(name).tree()["loss"].get("default", {}).get("_target_") == target
    ]
    node = file.tree()["loss"]["default"]
    defaults = {
        p.name: p.default for p in inspect.signature(cls).parameters.values() if p.name != "self"
    }
    assert set(defaults) == set(node) - {"_target_"}
    for key, value in defaults.items():
        assert str(node[key]).startswith("${") or value == node[key]
        assert not bounds_of(cls)[key].fault(value)


def test_a_default_in_the_code_is_refused() -> None:
    with pytest.raises(TypeError, match="epochs"):

        @configured("train.yaml", "trainer")
        class Wrong:
            epochs: int = 3

    with pytest.raises(TypeError, match="no_such_key"):

        @configured("train.yaml", "trainer")
        class Missing:
            no_such_key: int = option()


def test_values_out_of_bounds_are_named() -> None:
    config = OptimConfig()
    config.schedule.rise_share = 1.0
    config.name = "sgd"
    assert [fault.partition(":")[0] for fault in faults(config, "optim")] == [
        "optim.name=sgd",
        "optim.schedule.rise_share=1",
    ]
    with pytest.raises(ConfigError, match="temperature=0"):
        InfoNCE(temperature=0.0)
    assert faults(HREMConfig()) == faults(ALIPConfig()) == faults(MultiSEAConfig()) == []


def test_nested_defaults_are_not_shared() -> None:
    first, second = ALIPConfig(), ALIPConfig()
    first.crop_scale[0] = 0.1
    first.image.size = 1
    assert second.crop_scale == [0.7, 1.0] and second.image.size == 224


def test_the_page_of_all_options_is_up_to_date() -> None:
    page = CONF.resolve().parent / "docs" / "configuration.md"
    assert page.read_text("utf-8") == help_pages.markdown(), (
        "run: itr options --markdown > docs/configuration.md"
    )
