"""Re-ranking by a model of another checkpoint: ``eval.py ... rerank.checkpoint=RUN``."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from itr.data.layouts.registry import DataConfig
from itr.data.records import SEQUENTIAL_ID, Split
from itr.data.text.token_table import truncation_notes
from itr.errors import CheckpointError, ConfigError, DataError
from itr.evaluation.evaluator import Evaluator, SecondModel
from itr.evaluation.rerank import check_rerank
from itr.jobs.eval.config import EvalConfig
from itr.jobs.eval.retrieval_split import data_config, evaluator_of, open_retrieval_split
from itr.jobs.load_checkpoint import LoadedCheckpoint, load_checkpoint
from itr.models.base import RetrievalModel

log = logging.getLogger("itr")
FACTS = ("checkpoint", "checkpoint_sha256", "model", "trained_on")  # told of the second model


def load_second(config: EvalConfig, device: torch.device) -> LoadedCheckpoint | None:
    """The model of ``rerank.checkpoint``; None: the evaluated model is on its own.

    Raises ConfigError for a model without a second stage, and as `load_checkpoint`.
    """
    if (source := config.second) is None:
        return None
    loaded = load_checkpoint(source, {}, device, verify=config.runtime.verify_checkpoints)
    model = loaded.model
    if not isinstance(model, RetrievalModel) or not model.has_rerank():
        raise ConfigError(
            f"rerank.checkpoint={source}: a {type(model).__name__}, which has no second stage for "
            "retrieval; expected a checkpoint that scores pairs, of model=albef, blip or multisea. "
            "Pass one, or leave rerank.checkpoint out"
        )
    return loaded


def attach_second(
    config: EvalConfig,
    evaluator: Evaluator,
    first: LoadedCheckpoint,
    second: LoadedCheckpoint,
) -> None:
    """Let ``second`` re-rank the candidates that ``evaluator`` finds with ``first``.

    It reads the images and captions of the split through its own view. Raises ConfigError or
    CheckpointError if it cannot, or if the images or captions are others.
    """
    data = data_config(config, first)
    split = _split_for(config, evaluator.data, first, second, data)
    reader = evaluator_of(config, second, data, split, evaluator.device, ["full"])
    for line in truncation_notes(
        f"rerank.checkpoint: {config.split}", reader.tokens, reader.view.text_eval
    ):
        log.warning("%s", line)
    check_rerank(reader.rerank, True, type(second.model).__name__)
    evaluator.rerank = reader.rerank
    evaluator.second = SecondModel(second.retriever, reader)


def second_facts(second: LoadedCheckpoint) -> dict[str, Any]:
    """Result fields about the model that re-ranked: ``rerank_checkpoint`` and others."""
    return {f"rerank_{key}": second.origin[key] for key in FACTS if key in second.origin}


def _split_for(
    config: EvalConfig,
    split: Split,
    first: LoadedCheckpoint,
    second: LoadedCheckpoint,
    data: DataConfig,
) -> Split:
    """``split`` as ``second`` reads it: itself, or opened again as regions or pixels."""
    own, other = first.model.view.kind, second.model.view.kind
    if own == other:
        return split
    name = type(second.model).__name__
    try:
        opened = open_retrieval_split(config, data, config.split, other)
    except (ConfigError, DataError) as error:
        raise ConfigError(
            f"rerank.checkpoint={config.second}: {name} reads {other}, but the first stage reads "
            f"{own}, and the data does not offer both ({error}). Pass the checkpoint of a model "
            f"that reads {own}, or a data.root that holds both"
        ) from error
    if (difference := _difference(split, opened)) is not None:
        raise CheckpointError(
            f"rerank.checkpoint={config.second}: {name} reads {other} from {opened.source}, which "
            f"holds other {difference} than {split.source} of the first stage; expected the same "
            f"images and captions in one order. Pass the checkpoint of a model that reads {own}, "
            "or correct the files"
        )
    return opened


def _difference(first: Split, second: Split) -> str | None:
    """What differs between two readings of a split; None: nothing.

    Region arrays often come with captions that were taken apart into words, so case, spaces and
    punctuation don't count.
    """
    if first.n_images != second.n_images:
        return f"images ({second.n_images} against {first.n_images})"
    if not np.array_equal(first.text_to_image, second.text_to_image):
        return f"numbers of captions of an image ({second.n_captions} against {first.n_captions})"
    for one, other in zip(first.records, second.records, strict=True):
        if _letters(one.captions) != _letters(other.captions):
            return f"captions (those of image {one.image_id})"
    for own, other_id in zip(_given_ids(first), _given_ids(second), strict=False):
        if own != other_id:
            return f"images ({other_id} in the place of {own})"
    return None


def _given_ids(split: Split) -> list[int]:
    """The ids of the images; none where they are running numbers, which say nothing."""
    ids = [record.image_id for record in split.records]
    counted = any(SEQUENTIAL_ID in record.extra for record in split.records)
    return [] if counted or ids == list(range(len(ids))) else ids


def _letters(captions: Iterable[str]) -> list[str]:
    """Letters and digits of each caption, in lower case."""
    return ["".join(filter(str.isalnum, caption)).lower() for caption in captions]
