"""What `eval.py task=zeroshot` does: classes as prompts, pictures, accuracies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from itr.batch import Batch
from itr.data.checks.fingerprint import DIGITS
from itr.data.classification.dataset import ClassificationConfig, ClassificationDataset
from itr.data.loading.eval_batches import caption_batches
from itr.data.records import Record, Split
from itr.errors import ConfigError
from itr.evaluation.encode import Encoder, Progress
from itr.evaluation.zeroshot import accuracies, class_embeddings, class_logits, predictions
from itr.instantiate import check
from itr.jobs.load_checkpoint import LoadedCheckpoint, load_checkpoint
from itr.training.device import resolve_device, resolve_precision


class Asked(Protocol):
    """What of the configuration is read here."""

    data: dict[str, Any]
    model: dict[str, Any]
    runtime: Any
    device: str
    precision: str | None
    truncate_logits: bool

    @property
    def checkpoints(self) -> list[str]:
        """The checkpoint, in a list."""


def classify(config: Asked, progress: Progress) -> dict[str, Any]:
    """Flat results: accuracies in per cent and what they are of.

    Raises ConfigError for options and models that cannot classify, DataError for pictures.
    """
    given = {key: value for key, value in config.data.items() if value is not None}
    if "set" not in given:
        raise ConfigError(
            "task=zeroshot: type data=imagefolder data.root=DIR, or data=torchvision "
            "data.set=cifar10 data.root=DIR"
        )
    device = resolve_device(config.device)
    classes = ClassificationDataset(check(given, ClassificationConfig, "data"))
    loaded = load_checkpoint(config.checkpoints[0], config.model, device)
    if loaded.model.view.kind != "pixels":
        raise ConfigError(
            f"task=zeroshot: {type(loaded.model).__name__} reads regions of a detector, and these "
            "are pictures; name a checkpoint of a model that reads pixels"
        )
    precision = resolve_precision(config.precision or loaded.precision, device)
    encoder = Encoder(loaded.model, device, precision, progress=progress)
    size = config.runtime.eval_batch_size
    prompts = class_embeddings(
        lambda texts: encode_prompts(loaded, encoder, texts, size), classes.names, classes.templates
    )
    targets: list[Tensor] = []

    def batches() -> Iterator[Batch]:
        for batch, target in classes.batches(loaded.model.view.pixels_eval, size):
            targets.append(target)
            yield batch

    images = encoder.images(batches(), len(classes), f"pictures of {classes.config.root}").pooled
    predicted = predictions(class_logits(images, prompts), config.truncate_logits)
    found = accuracies(predicted, torch.cat(targets), len(classes.names))
    return loaded.origin | {
        "data": classes.config.name,
        **found,
        "protocol": "zeroshot",
        "reported": "mean_per_class" if classes.mean_per_class else "top1",
        "n_images": len(classes),
        "n_classes": len(classes.names),
        "n_templates": len(classes.templates),
        "truncated_logits": config.truncate_logits,
        "data_hash": classes.digest.hexdigest()[:DIGITS],
    }


def encode_prompts(
    loaded: LoadedCheckpoint, encoder: Encoder, texts: list[str], size: int
) -> Tensor:
    """Embeddings [C, D] of whole sentences: without the prompt that captions get in retrieval."""
    view = loaded.model.view
    view = dataclasses.replace(view, text_eval=dataclasses.replace(view.text_eval, prompt=""))
    split = Split("prompts", "files", [Record(0, "", tuple(texts), tuple(range(len(texts))))])
    tokens = loaded.tokenizer.tokenize(texts, view.text_eval)
    return encoder.texts(caption_batches(split, view, tokens, size), len(texts), "prompts").pooled
