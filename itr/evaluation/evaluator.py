"""A model and a split to results: encode everything once, rank, count. N images, C captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.data.loader import caption_batches, image_batches
from itr.data.records import Split
from itr.data.text import TokenTable
from itr.errors import ConfigError, DataError
from itr.evaluation.protocols import (
    Part,
    applicable,
    evaluate_embeddings,
    evaluate_parts,
    find_protocols,
)
from itr.evaluation.ranks import TIES, Ranks
from itr.evaluation.rerank import Progress, RerankConfig, check_rerank, rank_shortlists, rerank
from itr.models.base import Encoded, RetrievalModel
from itr.view import View

log = logging.getLogger("itr")
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Evaluator:
    """Evaluates models on one split.

    ``protocols`` are names (`PROTOCOLS`) in their order: those that do not fit the split's number
    of images are left out with a warning and named in the results; if none fits, the whole split
    is ranked (``full``), as a validation split of another size than the test split must be. With
    ``strict`` each has to fit. ``precision`` (fp32, bf16, fp16) is that of encoding; scores are
    always float32. ``workers`` threads read images ahead. Raises ConfigError for a name, rule or
    size that cannot be used.
    """

    def __init__(
        self,
        data: Split,
        view: View,
        tokens: TokenTable,
        protocols: Sequence[str] = ("full",),
        batch_size: int = 128,
        ties: str = "pessimistic",
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        strict: bool = False,
        rerank: RerankConfig | None = None,
        workers: int = 0,
    ):
        for key, value, known in (("ties", ties, TIES), ("precision", precision, tuple(AUTOCAST))):
            if value not in known:
                raise ConfigError(
                    f"{key}: '{value}' is unknown; expected one of {', '.join(known)}"
                )
        self.data, self.view, self.tokens = data, view, tokens
        self.batch_size, self.ties, self.device = batch_size, ties, torch.device(device)
        self.dtype, self.workers = AUTOCAST[precision], workers
        self.rerank = rerank or RerankConfig()
        self.protocols, self.left_out = applicable(find_protocols(protocols), data.n_images)
        if self.left_out:
            self._report_left_out(strict)

    def _report_left_out(self, strict: bool) -> None:
        names = ", ".join(f"{p.name} (needs {p.images} images)" for p in self.left_out)
        message = (
            f"split {self.data.name} has {self.data.n_images} images: not evaluated as {names}"
        )
        if strict:
            raise ConfigError(f"{message}; type data.protocols=[full] to rank the whole split")
        log.warning("%s; evaluated as %s", message, ", ".join(p.name for p in self.protocols))

    def run(self, model: RetrievalModel, progress: Progress | None = None) -> dict[str, Any]:
        """Flat results: the metrics of `evaluate_embeddings` and the fields that say what they are.

        Raises DataError if embeddings are not finite.
        """
        data, ranked = self.data, self.reranks(model)
        images, texts = self.encode_all(model, progress, tokens=ranked)
        metrics = evaluate_embeddings(
            images.pooled, texts.pooled, data.text_to_image, self.protocols, self.ties
        )
        if not ranked:
            return {**metrics, **self.fields()}

        def rank(part: Part) -> Ranks:
            lists = rerank(
                model, *_part(images, texts, part), self.rerank, self.dtype, progress=progress
            )
            return rank_shortlists(*lists, part[2], self.ties)

        with torch.inference_mode(), _eval_mode(model):
            final = evaluate_parts(rank, data.text_to_image, data.n_images, self.protocols)
        first = {f"first_stage/{key}": value for key, value in metrics.items()}
        return {**final, **first, **self.fields(), "rerank_k": self.rerank.k}

    def reranks(self, model: RetrievalModel) -> bool:
        """Whether ``model`` is re-ranked. Raises ConfigError if it should be and cannot."""
        wanted = model.reranks if self.rerank.enabled is None else self.rerank.enabled
        if wanted:
            check_rerank(self.rerank, model.reranks, type(model).__name__)
        return wanted

    def fields(self) -> dict[str, Any]:
        """What the metrics are of: strings and integers."""
        fields: dict[str, Any] = {
            "protocol": self.protocols[0].name,
            "tie_rule": self.ties,
            "split": self.data.name,
            "n_images": self.data.n_images,
            "n_captions": self.data.n_captions,
        }
        if self.left_out:
            fields["protocols_left_out"] = ",".join(p.name for p in self.left_out)
        return fields

    def encode(
        self, model: RetrievalModel, progress: Progress | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of every image [N, D] and caption [C, D], as `encode_all` makes them."""
        images, texts = self.encode_all(model, progress)
        return images.pooled, texts.pooled

    def encode_all(
        self, model: RetrievalModel, progress: Progress | None = None, tokens: bool = False
    ) -> tuple[Encoded, Encoded]:
        """Every image and every caption, each encoded once, on the device: ``pooled`` in float32
        and, where asked for, ``tokens`` in the precision of encoding. The model runs in eval mode
        and is left as it was."""
        data = self.data
        images = image_batches(
            data, self.view, self.batch_size, self.workers, late=self.device.type == "cuda"
        )
        captions = caption_batches(data, self.view, self.tokens, self.batch_size)
        with torch.inference_mode(), _eval_mode(model):
            return (
                self._encode(
                    "images", model.encode_images, images, data.n_images, progress, tokens
                ),
                self._encode(
                    "captions", model.encode_texts, captions, data.n_captions, progress, tokens
                ),
            )

    def _encode(
        self,
        what: str,
        encoder: Callable[[Batch], Encoded],
        batches: Iterable[Batch],
        total: int,
        progress: Progress | None,
        with_tokens: bool,
    ) -> Encoded:
        pooled = _Rows(total, torch.float32, torch.nan)
        kept, masks = _Rows(total, self.dtype or torch.float32, 0), _Rows(total, torch.bool, False)
        done = 0
        for batch in batches:
            rows = batch.image_id if what == "images" else batch.caption_id
            assert rows is not None
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                encoded = encoder(batch.to(self.device))
            done, rows = done + len(rows), rows.to(self.device)
            pooled.put(rows, encoded.pooled)
            if with_tokens:
                kept.put(rows, encoded.tokens)
                masks.put(rows, encoded.mask)
            if progress is not None:
                progress(what, done, total)
        assert pooled.values is not None
        self._require_finite(what, pooled.values)
        return Encoded(pooled.values, kept.values, masks.values)

    def _require_finite(self, what: str, embeddings: Tensor) -> None:
        bad = ~torch.isfinite(embeddings).all(dim=1)
        if bad.any():
            raise DataError(
                f"{int(bad.sum())} of {len(embeddings)} embeddings of the {what} of split "
                f"{self.data.name} are not finite (the first is number {int(bad.int().argmax())}): "
                "the weights have diverged or the half precision overflowed; try precision=fp32, "
                "a lower optim.lr or optim.clip_norm, or an earlier checkpoint"
            )


class _Rows:
    """A tensor that is filled some rows at a time; later batches may be shorter or longer."""

    def __init__(self, total: int, dtype: torch.dtype, empty: float):
        self.total, self.dtype, self.empty = total, dtype, empty
        self.values: Tensor | None = None

    def put(self, rows: Tensor, values: Tensor | None) -> None:
        """``values`` [B, ...] become the rows ``rows`` [B]; past their length a row stays empty."""
        if values is None:
            return
        had, shape = self.values, (self.total, *values.shape[1:])
        if had is None or had.shape[1] < shape[1]:
            self.values = values.new_full(shape, self.empty, dtype=self.dtype)
            if had is not None:
                self.values[:, : had.shape[1]] = had
        assert self.values is not None
        self.values[rows, : shape[1]] = values.to(self.dtype)


def _part(images: Encoded, texts: Encoded, part: Part) -> tuple[Encoded, Encoded]:
    def cut(encoded: Encoded, rows: Any) -> Encoded:
        if isinstance(rows, np.ndarray):
            rows = torch.from_numpy(rows).to(encoded.pooled.device)
        tokens, mask = encoded.tokens, encoded.mask
        return Encoded(
            encoded.pooled[rows],
            None if tokens is None else tokens[rows],
            None if mask is None else mask[rows],
        )

    return cut(images, part[0]), cut(texts, part[1])


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode; afterwards each module gets back its own mode (they may differ)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
