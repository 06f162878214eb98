"""Golden cases of the authors' files of ALBEF: what is loaded from where, and written back."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itr.official.albef import export, official_state, read
from itr.official.albef_names import second_names
from itr.official.name_table import load_pickle
from tests.parity.albef_build import config_of, image_config, load_official, model_from
from tests.parity.harness import Case


def told(case: Case) -> dict[str, int]:
    """What the weights do not say."""
    if "model" not in case.data:  # names and shapes do not depend on the number of heads
        return {"heads": 1, "image_heads": 1}
    sizes = case.data["model"]
    return {
        "heads": sizes["bert_config"]["num_attention_heads"],
        "image_heads": sizes["vit"]["num_heads"],
    }


def check_import(case: Case, task: str, teacher_from: str = "file") -> None:
    """A file of another task as the initial weights of ``task``: every tensor by its source."""
    path = case.path.parent / case.data["files"][0]
    imported = read(path, told(case))
    image = image_config({**case.data["model"]["vit"], "img_size": case.data["target_image_res"]})
    config = config_of(case, task, image=image, teacher_from=teacher_from)
    text = replace(config.text, depth=imported.config.text.depth)
    torch.manual_seed(0)
    model = model_from(replace(config, text=text), imported.facts)
    case.holds(
        f"{task} starts from {imported.config.task}", imported.config.task in model.starts_from
    )
    if case.below("state."):
        load_official(model, case.below("state."))
        if model.twin is not None:
            model.twin.reset()
    before = {name: value.clone() for name, value in official_state(model).items()}
    fitted = model.fit_weights(imported.state)
    model.load_state_dict(fitted, strict=False)
    found, theirs = official_state(model), load_pickle(path)["model"]
    _check_sources(case, found, theirs, before, set(second_names(config, "")))
    for name in case.below("post."):
        case.check(f"post.{name}", found[name])
    missing = {name for name in before if name not in case.data["sources"]}
    case.holds("missing keys", set(case.data["missing_keys"]) <= missing)


def _check_sources(
    case: Case,
    found: dict[str, Tensor],
    theirs: dict[str, Tensor],
    before: dict[str, Tensor],
    seconds: set[str],
) -> None:
    sources = case.data["sources"]
    case.holds(f"unknown {sources.keys() - found.keys()}", sources.keys() <= found.keys())
    for name, value in found.items():
        source = sources.get(name)
        if name.endswith("position_ids") or source == "resized":
            continue
        if source is not None:
            case.equal(name, value, theirs[source])
        elif f"post.{name}" not in case:
            case.equal(f"{name}, initial", value, before[name])


def check_round_trip(case: Case) -> None:
    """Every weight of a file is read, and the file that is written holds the same.

    A bare file has neither momentum copies, which are then those of its weights, nor queues.
    """
    path = case.path.parent / case.data["files"][0]
    imported = read(path, told(case))
    bare = not case.data.get("top_level", True)
    lost = {name.split(".")[0] for name in imported.report.missing}
    case.holds(f"missing {lost}", lost == ({"image_queue", "text_queue"} if bare else set()))
    model = model_from(imported.config, imported.facts)
    imported.load_into(model)
    payload: Any = load_pickle(path)
    theirs = payload if bare else payload["model"]
    case.holds("names", set(theirs) == set(case.data["keys"]))
    for name, (_, shape) in case.data["keys"].items():
        case.holds(f"shape of {name}", list(theirs[name].shape) == shape)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.pth"
        torch.save(export(model, epoch=7), copy)
        back = load_pickle(copy)["model"]
    for name, value in theirs.items():
        case.equal(name, back[name], value)
    if bare:
        back = {k: v for k, v in back.items() if "_m." not in k and "queue" not in k}
    case.holds(f"added {set(back) - set(theirs)}", set(back) == set(theirs))
