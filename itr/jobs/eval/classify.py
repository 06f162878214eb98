"""Zero-shot image classification: classes as prompts, images by folder, accuracies."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from itr.batch import Batch
from itr.data.checks.fingerprint import DIGITS
from itr.data.classification.dataset import ClassificationConfig, ClassificationDataset
from itr.data.loading.eval_batches import caption_batches
from itr.data.records import Record, Split
from itr.data.text.token_table import truncation_notes
from itr.errors import ConfigError
from itr.evaluation.encode import Encoder, Progress
from itr.evaluation.zeroshot import accuracies, class_embeddings, class_logits, predictions
from itr.instantiate import check
from itr.jobs.eval.config import EvalConfig
from itr.jobs.load_checkpoint import LoadedCheckpoint
from itr.jobs.load_tower import load_first
from itr.training.device import resolve_device, resolve_precision

log = logging.getLogger(__name__)


def classify(config: EvalConfig, progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
    """The origin of the weights, and the metrics: accuracies in percent and their counts.

    Raises ConfigError for options and models that cannot classify, DataError for unusable images.
    """
    options = {key: value for key, value in config.data.items() if value is not None}
    if "set" not in options:
        raise ConfigError(
            "task=zeroshot: needs labeled images; pass data=imagefolder data.root=DIR, or "
            "data=labeled_shards data.root=DIR, or data=torchvision data.set=cifar10 data.root=DIR"
        )
    device = resolve_device(config.device)
    classes = ClassificationDataset(check(options, ClassificationConfig, "data"))
    for note in classes.notes:
        log.warning("%s: %s", classes.config.root, note)
    loaded = load_first(config, device)
    view = loaded.model.view
    if view.kind != "pixels":
        raise ConfigError(
            f"task=zeroshot: {type(loaded.model).__name__} reads region features, but this dataset "
            "has images; pass the checkpoint of a model that reads pixels"
        )
    precision = resolve_precision(config.precision or loaded.precision, device)
    encoder = Encoder(loaded.retriever, device, precision, progress=progress)
    size = config.runtime.eval_batch_size
    prompts = class_embeddings(
        lambda texts: encode_prompts(loaded, encoder, texts, size), classes.names, classes.templates
    )
    targets: list[Tensor] = []

    def batches() -> Iterator[Batch]:
        for batch, target in classes.batches(view.pixels_eval, size):
            targets.append(target)
            yield batch

    images = encoder.images(batches(), len(classes), f"images of {classes.config.root}").pooled
    predicted = predictions(class_logits(images, prompts), config.truncate_logits)
    metrics = accuracies(predicted, torch.cat(targets), len(classes.names))
    return {**loaded.origin, "data": classes.config.name}, {
        **metrics,
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
    """Embeddings [C, D] of complete sentences, without the prompt that captions get in retrieval.

    ``size`` is the batch size.
    """
    view = loaded.model.view
    view = dataclasses.replace(view, text_eval=dataclasses.replace(view.text_eval, prompt=""))
    split = Split("prompts", "files", [Record(0, "", tuple(texts), tuple(range(len(texts))))])
    tokens = loaded.tokenizer.tokenize(texts, view.text_eval)
    for line in truncation_notes("prompts", tokens, view.text_eval):
        log.warning("%s", line)
    return encoder.texts(caption_batches(split, view, tokens, size), len(texts), "prompts").pooled
