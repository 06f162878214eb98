"""Zero-shot classification: images retrieve class names, written as prompts.

N images, K classes, T templates, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SCALE = 100.0  # logit scale; it matters when logits are truncated to integers


def class_embeddings(
    encode: Callable[[list[str]], Tensor], names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Unit vectors [K, D]: the normalized mean over templates of the prompts' unit embeddings.

    ``encode`` returns the embeddings [K * T, D] of all prompts. Source: Radford et al. 2021, 3.1.4.
    """
    prompts = [template.replace("{}", name) for name in names for template in templates]
    prompt_vectors = F.normalize(encode(prompts).float(), dim=-1)
    return F.normalize(prompt_vectors.unflatten(0, (len(names), -1)).mean(dim=1), dim=-1)


def class_logits(images: Tensor, classes: Tensor) -> Tensor:
    """100 x cosine similarity [N, K] of images [N, D] and unit class vectors [K, D]."""
    return SCALE * F.normalize(images.float(), dim=-1) @ classes.t()


def predictions(logits: Tensor, truncate: bool = False) -> Tensor:
    """The best class of each image, [N] int64.

    ``truncate``: cut the logits to integers first, as ALIP's authors do. Which of several equal
    logits wins then depends on the sort.
    """
    scores = logits.cpu().to(torch.int64) if truncate else logits
    return scores.topk(1, dim=1).indices[:, 0]


def accuracies(predicted: Tensor, targets: Tensor, classes: int) -> dict[str, float]:
    """``top1`` and ``mean_per_class`` in per cent; classes without images are ignored."""
    correct = (predicted.cpu() == targets.cpu()).double()
    size = torch.bincount(targets.cpu(), minlength=classes)
    hits = torch.bincount(targets.cpu(), correct, minlength=classes)
    present = size > 0
    return {
        "top1": 100.0 * float(correct.mean()),
        "mean_per_class": 100.0 * float((hits[present] / size[present]).mean()),
    }
