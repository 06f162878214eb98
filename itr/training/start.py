"""Where a run's weights begin: another run, a checkpoint of ours, or an authors' file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from itr import checkpoint
from itr.data.text import Tokenizer
from itr.errors import CheckpointError
from itr.models.base import RetrievalModel
from itr.official.loading import IMPORTERS, recognise
from itr.training import state

SHOWN = 8  # names in a line of the log


def stored_tokenizer(source: str | None) -> Tokenizer | None:
    """The tokenizer with which the weights of ``source`` were trained; None if it says none.

    Raises CheckpointError if there is no such file.
    """
    if source is None:
        return None
    path = state.resolve(Path(source), "model.init")
    if path.suffix != ".safetensors":
        return None
    stored = checkpoint.read_meta(path)["tokenizer"]
    return None if stored is None else Tokenizer.from_json(stored)


def start_from(model: RetrievalModel, name: str, source: str) -> list[str]:
    """Take the weights of ``source`` (``model.init``) that ``model``, of method ``name``, has.

    Returns lines for the log: what was taken, changed, not used and left as initialised. Raises
    CheckpointError for another method and for weights of other sizes; queues of another size begin
    anew.
    """
    path = state.resolve(Path(source), "model.init")
    given = _weights(path, name, model)
    fitted, own = model.fit_weights(given), model.state_dict()
    taken = {k: v for k, v in fitted.items() if k in own and v.shape == own[k].shape}
    parameters = dict(model.named_parameters())
    wrong = [
        f"{k} {tuple(fitted[k].shape)}, expected {tuple(own[k].shape)}"
        for k in fitted
        if k in own and k not in taken and k in parameters
    ]
    if wrong or not taken.keys() & parameters.keys():
        raise CheckpointError(
            f"model.init={source}: weights of another size: {', '.join(wrong[:SHOWN])}"
            f"{' ...' if len(wrong) > SHOWN else ''}; set the model's sizes to the checkpoint's"
            if wrong
            else f"model.init={source}: holds none of the weights of {type(model).__name__}"
        )
    model.load_state_dict({**own, **taken})
    changed = [k for k in taken if given[k].shape != taken[k].shape]
    share = f"all {len(own)}" if len(taken) == len(own) else f"{len(taken)} of {len(own)}"
    told = [f"start: {share} weights are those of {path}"]
    for what, names in (
        ("resized", changed),
        ("not used", [k for k in given if k not in taken]),
        ("left as initialised", [k for k in own if k not in taken]),
    ):
        if names:
            told.append(f"start: {what} ({len(names)}): {_listed(names)}")
    return told


def _listed(names: list[str]) -> str:
    """``names``, or where they are many, how many each module has."""
    if len(names) <= SHOWN:
        return ", ".join(names)
    modules = Counter(".".join(n.split(".")[: 2 if n.startswith("twin.") else 1]) for n in names)
    return ", ".join(f"{module}.* ({count})" for module, count in modules.items())


def _weights(path: Path, name: str, model: RetrievalModel) -> dict[str, Tensor]:
    """By our names. Raises CheckpointError for another method."""
    if path.suffix == ".safetensors":
        found = checkpoint.read_meta(path)["model_name"]
    else:
        found = recognise(path)
    if found != name:
        raise CheckpointError(f"model.init={path}: a checkpoint of model={found}, not of {name}")
    if path.suffix == ".safetensors":
        return checkpoint.read_tensors(path, "model/")
    importer: Any = IMPORTERS[name][0]
    # An importer may need to be told what no weight says, such as numbers of heads.
    if hasattr(importer, "told"):
        told = importer.told(model.config)
    else:
        told = {"num_attention_heads": model.config.text.num_attention_heads}
    imported = importer.read(path, told)
    if hasattr(importer, "misfit") and (fault := importer.misfit(imported.config, model.config)):
        raise CheckpointError(f"model.init={path}: {fault}")
    return imported.state
