"""Where a run's weights begin: another run, a checkpoint of ours, or an authors' file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from itr import checkpoint
from itr.data.text.tokenizer import Tokenizer
from itr.errors import CheckpointError
from itr.models.base import RetrievalModel
from itr.models.build import model_config
from itr.nn.bert.bert import SIZES
from itr.official.load import IMPORTERS, recognise
from itr.official.name_table import SHOWN, listed, told_of
from itr.training import checkpointing
from itr.view import Facts

QUEUED = "_queue.ids"  # of what stands in a queue: other images than those of this run
# Sizes of the towers, by the names that the methods give them.
BROUGHT = {
    "text": (*SIZES, "pad_id", "fusion_layer"),
    "image": "patch width depth heads head_width mlp_ratio".split(),
}


def stored_tokenizer(source: str | None) -> Tokenizer | None:
    """The tokenizer with which the weights of ``source`` were trained; None if it says none.

    Raises CheckpointError if there is no such file.
    """
    if source is None:
        return None
    path = checkpointing.resolve(Path(source), "model.init")
    if path.suffix != ".safetensors":
        return None
    stored = checkpoint.read_meta(path)["tokenizer"]
    return None if stored is None else Tokenizer.from_json(stored)


def skip_pretrained(node: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], Facts]:
    """A model ``node`` and the data's ``facts``, changed for a run that starts from the weights of
    its ``init``: no pre-trained ones are looked for, since all would be overwritten.

    What those would have brought (sizes of the towers, number of token ids) is then the
    checkpoint's; an authors' file is expected to fit the sizes in ``node``. Both as they are where
    ``init`` or ``pretrained`` is not set. Raises CheckpointError if there is no such file.
    """
    if node.get("init") is None or not model_config(node).__dict__.get("pretrained"):
        return dict(node), facts
    settled = {**node, "pretrained": False}
    path = checkpointing.resolve(Path(node["init"]), "model.init")
    if path.suffix != ".safetensors":
        return settled, facts
    meta = checkpoint.read_meta(path)
    if meta.get("model_name") != node["name"]:
        return settled, facts  # `initialize_from` refuses it
    for part, keys in BROUGHT.items():
        stored, own = meta["model_config"].get(part), settled.get(part)
        if own is not None:
            settled[part] = {**own, **{k: stored[k] for k in keys if k in stored}}
    return settled, dataclasses.replace(facts, vocabulary=meta["facts"]["vocabulary"])


def initialize_from(model: RetrievalModel, name: str, source: str) -> list[str]:
    """Take the weights of ``source`` (``model.init``) that ``model``, of method ``name``, has.

    Returns lines for the log: what an importer did, what was taken, changed, not used and left as
    initialised. Queued features are taken without the ids of their images, which number another
    data set's. Raises CheckpointError for another method and for weights of other sizes; queues of
    another size begin anew.
    """
    path = checkpointing.resolve(Path(source), "model.init")
    given, told = _weights(path, name, model)
    queued = [k for k in given if k.endswith(QUEUED)]
    given = {k: v for k, v in given.items() if k not in queued}
    fitted, own = model.fit_weights(given), model.state_dict()
    taken = {  # what a model filled in from its own stays as initialised
        k: v
        for k, v in fitted.items()
        if k in own and v.shape == own[k].shape and v.data_ptr() != own[k].data_ptr()
    }
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
    share = f"all {len(own)}" if len(taken) == len(own) else f"{len(taken)} of {len(own)}"
    told.append(f"start: {share} weights are those of {path}")
    for what, names in (
        ("resized", [k for k in taken if k in given and given[k].shape != taken[k].shape]),
        ("momentum copies made", [k for k in taken if k.startswith("twin.") and k not in given]),
        ("not used", [k for k in given if k not in taken]),
        ("not used, ids of another data set's images", queued),
        ("left as initialised", [k for k in own if k not in taken]),
    ):
        if names:
            told.append(f"start: {what} ({len(names)}): {listed(names)}")
    return told


def _weights(path: Path, name: str, model: RetrievalModel) -> tuple[dict[str, Tensor], list[str]]:
    """By our names, and lines on what an importer did. Raises CheckpointError for another
    method."""
    if path.suffix == ".safetensors":
        found = checkpoint.read_meta(path)["model_name"]
    else:
        found = recognise(path)
    if found != name:
        raise CheckpointError(f"model.init={path}: a checkpoint of model={found}, not of {name}")
    if path.suffix == ".safetensors":
        return checkpoint.read_tensors(path, "model/"), []
    importer: Any = IMPORTERS[name][0]
    imported = importer.read(path, told_of(importer.TOLD, dataclasses.asdict(model.config)))
    if hasattr(importer, "misfit") and (fault := importer.misfit(imported.config, model.config)):
        raise CheckpointError(f"model.init={path}: {fault}")
    return imported.state, imported.report.lines(path)
