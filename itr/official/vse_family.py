"""The checkpoint format that VSE-infinity, USER and HREM share.

A pickled ``{model: [image encoder, text encoder], opt: Namespace, epoch, best_rsum, Eiters}``. It
holds no tokenizer (the authors always use bert-base-uncased).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from itr.errors import CheckpointError
from itr.nn.bert.bert import TextConfig
from itr.official.name_table import (
    ImportReport,
    NameTable,
    load_pickle,
    require_fit,
    to_json,
    without_prefix,
)

SIDES = ("img_enc.", "txt_enc.")
POSITION_IDS = "txt_enc.bert.embeddings.position_ids"  # a constant, written by old transformers


def encoder_weights(payload: Any) -> dict[str, Tensor] | None:
    """Weights of both encoders, with the prefixes in `SIDES`; None for another format."""
    model = payload.get("model") if isinstance(payload, Mapping) else None
    if not (isinstance(model, list | tuple) and len(model) == 2):
        return None
    if not all(isinstance(state, Mapping) and state for state in model):
        return None
    return {
        side + name: value
        for side, state in zip(SIDES, model, strict=True)
        for name, value in without_prefix(state).items()
    }


def read_encoders(
    path: Path, recognizes: Any, authors: str
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """The weights (`encoder_weights`), the authors' options, and information about the file.

    Raises CheckpointError for a damaged file and for one that ``recognizes`` rejects.
    """
    payload = load_pickle(path)
    if not recognizes(payload):
        content = sorted(map(str, payload)) if isinstance(payload, Mapping) else type(payload)
        raise CheckpointError(
            f"{path}: not a checkpoint of the authors of {authors}: it holds {content}; expected a "
            "dictionary whose `model` lists the weights of the image and the text encoder"
        )
    theirs = encoder_weights(payload)
    assert theirs is not None
    options = to_json(payload.get("opt") or {})
    info = {key: to_json(payload.get(key)) for key in ("epoch", "best_rsum", "Eiters")}
    return theirs, options, {**info, "opt": options}


def text_config_of(
    path: Path, theirs: Mapping[str, Tensor], text: Mapping[str, Any] | None
) -> tuple[TextConfig, int]:
    """The text encoder's options from its weights, and its vocabulary size.

    ``text`` holds options that weights do not determine: ``tokenizer`` and ``name``
    (bert-base-uncased), ``heads`` (12), ``dropout``. Raises CheckpointError if sizes cannot be
    determined.
    """
    text = dict(text or {})
    embeddings, layer = "txt_enc.bert.embeddings.", "txt_enc.bert.encoder.layer."
    try:
        positions, hidden = theirs[f"{embeddings}position_embeddings.weight"].shape
        sizes: dict[str, Any] = {
            "width": hidden,
            "max_positions": positions,
            "token_types": len(theirs[f"{embeddings}token_type_embeddings.weight"]),
            "mlp_width": len(theirs[f"{layer}0.intermediate.dense.weight"]),
        }
        vocabulary = len(theirs[f"{embeddings}word_embeddings.weight"])
    except (KeyError, ValueError) as error:
        raise size_error(path, error) from error
    sizes["depth"] = 1 + max(
        int(name[len(layer) :].split(".")[0]) for name in theirs if name.startswith(layer)
    )
    if hidden != 768 and "heads" not in text:
        raise CheckpointError(
            f"{path}: its BERT is {hidden} wide, not the authors' 768, and the weights do not "
            "determine the number of attention heads; set model.text.heads (itr official: --heads)"
        )
    return replace(TextConfig(), **sizes, **text), vocabulary


def size_error(path: Path, error: Exception) -> CheckpointError:
    """The error for a missing or misshapen weight that determines a size."""
    return CheckpointError(
        f"{path}: cannot determine the model's sizes: weight {error} is missing or has an "
        "unexpected shape"
    )


def fit(
    path: Path,
    theirs: Mapping[str, Tensor],
    table: NameTable,
    expected: Mapping[str, Tensor],
    optional: set[str],
) -> tuple[dict[str, Tensor], ImportReport]:
    """Rename the weights ``theirs`` to our names and check them. Raises as `require_fit`."""
    report, state = ImportReport(), {}
    for name, value in theirs.items():
        if name == POSITION_IDS:
            report.ignored.append(name)
            continue
        ours = table.to_ours(name) or name  # unknown: `require_fit` lists it
        report.renamed.append((name, ours))
        state[ours] = value
    report.missing = require_fit(path, state, expected, optional)
    return state, report


def official_file(
    state: Mapping[str, Tensor], options: Mapping[str, Any], epoch: int, rsum: float, updates: int
) -> dict[str, Any]:
    """The authors' checkpoint for ``state`` (by their names) and ``options``."""
    return {
        "model": [
            {name[len(side) :]: value for name, value in state.items() if name.startswith(side)}
            for side in SIDES
        ],
        "opt": argparse.Namespace(**options),
        "epoch": epoch,
        "best_rsum": rsum,
        "Eiters": updates,
    }
