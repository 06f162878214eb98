"""Zero-shot classification: class names in prompts are texts, pictures retrieve them.

N images, K classes, T templates, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SCALE = 100.0  # of the cosines; it matters where logits are cut to whole numbers


def class_embeddings(
    encode: Callable[[list[str]], Tensor], names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Unit vectors [K, D]: the mean over the templates of the unit embeddings of each prompt.

    ``encode`` gives the embeddings [K * T, D] of all prompts. Source: Radford et al. 2021, 3.1.4.
    """
    prompts = [template.replace("{}", name) for name in names for template in templates]
    prompt_vectors = F.normalize(encode(prompts).float(), dim=-1)
    return F.normalize(prompt_vectors.unflatten(0, (len(names), -1)).mean(dim=1), dim=-1)


def class_logits(images: Tensor, classes: Tensor) -> Tensor:
    """100 x cosine [N, K] of images [N, D] with classes [K, D]."""
    return SCALE * F.normalize(images.float(), dim=-1) @ classes.t()


def predictions(logits: Tensor, truncate: bool = False) -> Tensor:
    """The best class [N] int64.

    ``truncate``: the habit of ALIP's authors, whose logits lose their fraction; which of the many
    equal ones then wins is up to the sort.
    """
    scores = logits.cpu().to(torch.int64) if truncate else logits
    return scores.topk(1, dim=1).indices[:, 0]


def accuracies(predicted: Tensor, targets: Tensor, classes: int) -> dict[str, float]:
    """``top1`` and ``mean_per_class`` in per cent; a class without pictures does not count."""
    right = (predicted.cpu() == targets.cpu()).double()
    size = torch.bincount(targets.cpu(), minlength=classes)
    hits = torch.bincount(targets.cpu(), right, minlength=classes)
    seen = size > 0
    return {
        "top1": 100.0 * float(right.mean()),
        "mean_per_class": 100.0 * float((hits[seen] / size[seen]).mean()),
    }
