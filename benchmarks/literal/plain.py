"""What the literal re-writings share. N images, C captions, P rows of weights, M candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from itr.data.images.regions import Regions
from itr.data.records import Split
from itr.data.text.token_table import CaptionPadder, TokenTable
from itr.models.base import RetrievalModel

Choose = Callable[[Tensor], Tensor]  # weights [P, M] -> a column for each row, [P] int64
Encode = Callable[[Tensor, Tensor], Tensor]
BATCH = 128  # captions that are encoded at once in evaluation


def multinomial(weights: Tensor) -> Tensor:
    """A column for each row of ``weights`` [P, M], from the default generator."""
    return torch.multinomial(weights, 1)[:, 0]


def one(choose: Choose, weights: Tensor) -> int:
    """A column of one row of ``weights`` [M], read from the device at once."""
    return int(choose(weights[None])[0].item())


def lengths_of(mask: Tensor) -> Tensor:
    """[B] int64."""
    return mask.sum(dim=1)


def padding_mask(lengths: Tensor, longest: int) -> Tensor:
    """[B, longest] bool, True at what is there; row by row."""
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, : int(length)] = True
    return mask


def follow(own: nn.Module, source: nn.Module, momentum: float) -> None:
    """k <- m k + (1 - m) q, weight by weight, each into a new tensor."""
    with torch.no_grad():
        for key, query in zip(own.parameters(), source.parameters(), strict=True):
            key.data = key.data * momentum + query.data * (1.0 - momentum)


def update(model: RetrievalModel, optimizer: torch.optim.Optimizer, clip: float | None) -> None:
    """Clip and step, weight by weight."""
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip, foreach=False)
    optimizer.step()


# Evaluation


def ranks(scores: np.ndarray, matches: Callable[[int], Iterable[int]]) -> np.ndarray:
    """Ranks from 0 of each row's best match: sort the row, read it backwards, look for each."""
    found = np.zeros(len(scores))
    for query in range(len(scores)):
        order = np.argsort(scores[query])[::-1]
        best = len(order)
        for match in matches(query):
            best = min(best, int(np.where(order == match)[0][0]))
        found[query] = best
    return found


def metrics(i2t: np.ndarray, t2i: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Recalls of two score matrices, [N, C] and [C, N]; ``owner`` [C] is each caption's image."""
    captions: dict[int, list[int]] = {}
    for caption, image in enumerate(owner.tolist()):
        captions.setdefault(image, []).append(caption)
    result: dict[str, float] = {}
    for name, found in (
        ("i2t", ranks(i2t, lambda image: captions[image])),
        ("t2i", ranks(t2i, lambda caption: [int(owner[caption])])),
    ):
        for k in (1, 5, 10):
            result[f"{name}_r{k}"] = 100.0 * len(np.where(found < k)[0]) / len(found)
        result[f"{name}_medr"] = float(np.floor(np.median(found)) + 1)
        result[f"{name}_meanr"] = float(found.mean() + 1)
    return result


def evaluate_regions(
    model: RetrievalModel, images: Encode, texts: Encode, split: Split, tokens: TokenTable
) -> dict[str, float]:
    """As the region methods do: a sample is a caption with its image, so that every image is
    encoded once for each of its captions; embeddings and scores in double precision.

    ``images`` and ``texts`` encode [B, R, W] regions and [B, L] ids with their lengths [B].
    """
    read, words = Regions(split), CaptionPadder(tokens, model.view.text_eval)
    owner = split.text_to_image
    kept: list[np.ndarray] = []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(owner), BATCH):
            captions = np.arange(start, min(start + BATCH, len(owner)))
            fields = read.fields(owner[captions], None, model.view.regions_eval.min_pad)
            places, count = tokens.positions(captions)
            fields |= words.fields(tokens.flat[places], count)
            v = images(fields["regions"], lengths_of(fields["region_mask"]))
            u = texts(fields["tokens"], lengths_of(fields["token_mask"]))
            kept.append(np.stack([v.numpy(), u.numpy()]).astype(np.float64))
    v_all, u_all = np.concatenate(kept, axis=1)
    first = np.array([int(np.where(owner == image)[0][0]) for image in range(split.n_images)])
    scores = v_all[first] @ u_all.T
    return metrics(scores, scores.T, owner)
