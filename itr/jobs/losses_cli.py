"""Print which loss fits which model: itr losses > docs/losses.md"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from itr.compose import CONF
from itr.errors import ConfigError
from itr.models import compatibility
from itr.models.build import build_slots, model_class, model_config

MODELS = ("hrem", "user", "vse", "alip", "albef", "multisea")
OWN = "loss.default.learnable=true loss.default.use_model_scale=false"
LOSSES = (  # every file in conf/loss, and the options that could matter to a pair
    "loss=triplet",
    "loss=triplet loss.default.negatives=sum",
    "loss=triplet loss.default.negatives=hardest",
    "loss=triplet loss.default.mask_repeats=false",
    "loss=distance_triplet",
    "loss=distance_triplet loss.default.exhausted=zero",
    "loss=uto",
    "loss=uto loss.default.own=drop",
    "loss=uto loss.default.mask_repeats=true",
    "loss=infonce",
    "loss=infonce loss.default.use_model_scale=false",
    "loss=infonce loss.default.learnable=true",
    f"loss=infonce {OWN}",
    "loss=sigmoid",
    "loss=sigmoid loss.default.learnable=false",
    "loss=sigmoid loss.default.use_model_scale=true",
    "loss=sigmoid loss.default.learnable=false loss.default.use_model_scale=true",
    *(f"loss={model}" for model in MODELS),
)
HEAD = """# Which loss fits which model

Made by `itr losses`; a test compares. Each model is as `model=...` leaves it.

* **yes**: allowed. `loss=NAME` fills every slot of the model, `loss.slots.SLOT=...` one. A model's
  own terms (matching, masked words, regulariser) stay, by their weights:
  `model=albef loss=triplet loss.weights.itm=0.5`.
* **hard**: allowed with hard matches. The model would hand in soft targets and the loss takes none:
  distillation is off in that slot, and the run logs it.
* **no**: refused at start-up, before any data is read. With a number: for the reason below the
  table; without: the file fills the slots of its own model by name, and these are others.

Options that are not listed change nothing in their row. Options of a model may:
`model=multisea model.distill=true` hands in soft targets (**hard**, as albef),
`model=albef model.distill=false` does not (**yes**), and without normalisation
(`model.normalise=false`, `model.normalise_images=false`) hrem, user and vse refuse what needs
cosines, as multisea does.
"""


def root(model: str) -> DictConfig:
    """The configuration of ``python train.py model=MODEL``, not resolved."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose("train", overrides=[f"model={model}"])


def with_loss(config: DictConfig, choice: str) -> dict[str, Any]:
    """``config``, resolved, with the loss that ``choice`` ("loss=NAME key=value ...") names."""
    name, *changes = choice.removeprefix("loss=").split()
    loss = OmegaConf.load(CONF / "loss" / f"{name}.yaml")
    OmegaConf.set_struct(config, False)
    changed = OmegaConf.merge(
        {key: value for key, value in config.items_ex(resolve=False) if key != "loss"},
        {"loss": OmegaConf.merge(loss, {"weights": config.loss.weights})},
        OmegaConf.from_dotlist(changes),
    )
    values = OmegaConf.to_container(changed, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def verdict(values: Mapping[str, Any]) -> compatibility.Verdict:
    """What becomes of the losses that ``values`` put into the model's slots."""
    cls, config = model_class(values["model"]), model_config(values["model"])
    try:
        slots = build_slots(values["loss"], cls, config)
    except ConfigError as error:
        return compatibility.Verdict("refused", str(error))
    found = [compatibility.judge(cls, config, slot, loss) for slot, loss in slots.items()]  # type: ignore[arg-type]
    return next((one for one in found if one.kind != "allowed"), compatibility.Verdict("allowed"))


def table() -> str:
    """The table of all pairs as Markdown."""
    roots = {model: root(model) for model in MODELS}
    lines = [HEAD, f"| | {' | '.join(MODELS)} |", "|---" * (1 + len(MODELS)) + "|"]
    reasons: list[str] = []
    for loss in LOSSES:
        found = [verdict(with_loss(roots[model], loss)) for model in MODELS]
        cells = [_cell(one, reasons, by_name=loss[5:] in MODELS) for one in found]
        lines.append(f"| `{loss}` | {' | '.join(cells)} |")
    notes = [f"{number}. `{reason}`" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes, ""])


def _cell(found: compatibility.Verdict, reasons: list[str], by_name: bool) -> str:
    """What a cell says; the reason of a refusal joins ``reasons`` unless it is the slots' names."""
    if found.kind == "refused" and not by_name:
        if found.reason not in reasons:
            reasons.append(found.reason)
        return f"no {reasons.index(found.reason) + 1}"
    return {"allowed": "yes", "hard": "hard", "refused": "no"}[found.kind]


def main(arguments: list[str]) -> int:
    """Print the table."""
    print(table(), end="")
    return 0
