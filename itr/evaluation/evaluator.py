"""A model and a split to results: encode everything once, rank, count. N images, C captions."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.data.checks.fingerprint import DIGITS, content_hash
from itr.data.loading.loader import caption_batches, image_batches
from itr.data.records import Split
from itr.data.text.open import TokenTable
from itr.errors import ConfigError
from itr.evaluation.encode import AUTOCAST, Encoder, Progress, eval_mode
from itr.evaluation.protocols import (
    Gallery,
    Part,
    applicable,
    evaluate_gallery,
    find_protocols,
)
from itr.evaluation.queries import QueryLog, log_queries
from itr.evaluation.ranks import TIES, Ranks
from itr.evaluation.rerank import RerankConfig, ShortlistTable, check_rerank, rerank
from itr.evaluation.score_tables import EmbeddingTable, ScoreTable
from itr.models.base import Encoded, RetrievalModel
from itr.version import __version__
from itr.view import View

log = logging.getLogger("itr")


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
        self.precision = precision
        self.rerank = rerank or RerankConfig()
        self.queries: QueryLog | None = None
        self.ranks: dict[str, Ranks] = {}
        self.gallery = Gallery.of(data)
        self.protocols, self.left_out = applicable(find_protocols(protocols), self.gallery)
        if self.left_out:
            self._report_left_out(strict)

    def _report_left_out(self, strict: bool) -> None:
        names = ", ".join(f"{name} ({why})" for name, why in self.left_out.items())
        message = (
            f"split {self.data.name} has {self.data.n_images} images: not evaluated as {names}"
        )
        if strict:
            raise ConfigError(f"{message}; type protocol=full to rank the whole split")
        log.warning("%s; evaluated as %s", message, ", ".join(p.name for p in self.protocols))

    def run(
        self,
        model: RetrievalModel,
        progress: Progress | None = None,
        encoded: tuple[Encoded, Encoded] | None = None,
        keep_queries: bool = False,
    ) -> dict[str, Any]:
        """Flat results: the metrics of `evaluate_gallery` and the fields that say what they are.

        ``encoded``: what `encode_all` gave earlier. `ranks` then holds those of every query, by
        protocol (and as ``first_stage/<protocol>``); with ``keep_queries``, `queries` all that was
        found of each. Raises DataError if embeddings are not finite.
        """
        ranked = self.reranks(model)
        images, texts = encoded or self.encode_all(model, progress, tokens=ranked)
        first = EmbeddingTable(images.pooled, texts.pooled)
        self.ranks, self.queries = {}, None
        metrics = self.rank(first, self.ranks)
        if not ranked:
            if keep_queries:
                self.keep(first)
            return {**metrics, **self.fields()}
        before = {f"first_stage/{name}": own for name, own in self.ranks.items()}
        self.ranks = {}
        second = _SecondStage(model, images, texts, self.rerank, self.dtype, progress)
        with torch.inference_mode(), eval_mode(model):
            final = evaluate_gallery(second, self.gallery, self.protocols, self.ties, self.ranks)
        self.ranks |= before
        if keep_queries:
            self.keep(second.whole or first)
        first_stage = {f"first_stage/{k}": v for k, v in metrics.items() if isinstance(v, float)}
        depth = min(self.rerank.k, max(self.data.n_images, self.data.n_captions))
        return {**final, **first_stage, **self.fields(), "rerank_k": depth}

    def keep(self, table: ScoreTable) -> None:
        """Let `queries` hold the scores of ``table`` and what `ranks` holds."""
        self.queries = log_queries(table, self.gallery, self.protocols, self.ranks)

    def rank(self, table: ScoreTable, kept: dict[str, Ranks] | None = None) -> dict[str, Any]:
        """The metrics of a table of the whole split under every protocol; ``kept`` as for
        `evaluate_gallery`."""

        def cut(part: Part) -> ScoreTable:
            return table.part(part.images, part.captions)

        return evaluate_gallery(cut, self.gallery, self.protocols, self.ties, kept)

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
            "rerank_k": None,
            "split": self.data.name,
            "precision": self.precision,
            "data_hash": self.data_hash,
        }
        if self.left_out:
            fields["protocols_left_out"] = ",".join(self.left_out)
        return fields

    def made_from(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        """What embeddings of this split by the checkpoint of ``origin`` depend on."""
        return {
            "checkpoint_sha256": origin["checkpoint_sha256"],
            "data_hash": self.data_hash,
            "tokens": hashlib.sha256(self.tokens.flat.tobytes()).hexdigest()[:DIGITS],
            "precision": self.precision,
            "decoder": self.data.decoder,
            "split": self.data.name,
            "version": __version__,
        }

    @functools.cached_property
    def data_hash(self) -> str:
        """`content_hash` of the split."""
        return content_hash(self.data)

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
        data, encoder = self.data, Encoder(model, self.device, self.precision, tokens, progress)
        images = image_batches(
            data, self.view, self.batch_size, self.workers, late=self.device.type == "cuda"
        )
        captions = caption_batches(data, self.view, self.tokens, self.batch_size)
        return (
            encoder.images(images, data.n_images, f"images of split {data.name}"),
            encoder.texts(captions, data.n_captions, f"captions of split {data.name}"),
        )


class _SecondStage:
    """Re-ranked scores of a part; protocols often share theirs, so the last one is kept."""

    def __init__(
        self,
        model: RetrievalModel,
        images: Encoded,
        texts: Encoded,
        config: RerankConfig,
        dtype: torch.dtype | None,
        progress: Progress | None,
    ):
        self.model, self.encoded, self.config = model, (images, texts), config
        self.dtype, self.progress = dtype, progress
        self.last: tuple[Part, ShortlistTable] | None = None
        self.whole: ShortlistTable | None = None  # of all images with all captions

    def __call__(self, part: Part) -> ShortlistTable:
        if self.last is not None and _same(self.last[0], part):
            return self.last[1]
        images, texts = _cut(self.encoded[0], part.images), _cut(self.encoded[1], part.captions)
        lists = rerank(self.model, images, texts, self.config, self.dtype, progress=self.progress)
        table = ShortlistTable(*lists, EmbeddingTable(images.pooled, texts.pooled))
        self.last = (part, table)
        if (len(images.pooled), len(texts.pooled)) == tuple(len(e.pooled) for e in self.encoded):
            self.whole = table
        return table


def _same(one: Part, other: Part) -> bool:
    return all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True)
    )


def _cut(encoded: Encoded, rows: slice | np.ndarray) -> Encoded:
    index: Any = rows
    if isinstance(rows, np.ndarray):
        index = torch.from_numpy(rows).to(encoded.pooled.device)
    tokens, mask = encoded.tokens, encoded.mask
    return Encoded(
        encoded.pooled[index],
        None if tokens is None else tokens[index],
        None if mask is None else mask[index],
    )
