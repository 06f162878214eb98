"""Evaluates a model on a split: encode everything once, then rank. N images, C captions."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from itr.data.checks.fingerprint import DIGITS, content_hash
from itr.data.loading.eval_batches import caption_batches, image_batches
from itr.data.records import Split
from itr.data.text.token_table import TokenTable
from itr.errors import ConfigError
from itr.evaluation.encode import AUTOCAST, Encoder, Progress, eval_mode
from itr.evaluation.protocol_metrics import evaluate_protocols
from itr.evaluation.protocols import find_protocols
from itr.evaluation.query_log import build_query_log
from itr.evaluation.ranks import Ranks, check_tie_break
from itr.evaluation.rerank import RerankConfig, SecondStage, check_rerank
from itr.evaluation.retrieval_set import RetrievalSet, applicable_protocols
from itr.evaluation.score_statistics import StatisticsCollector
from itr.evaluation.score_tables import EmbeddingTable, ScoreTable
from itr.evaluation.split_evaluator import SplitEvaluator
from itr.models.base import Encoded, RetrievalModel
from itr.version import __version__
from itr.view import View

log = logging.getLogger("itr")


class Evaluator(SplitEvaluator):
    """Evaluates models on one split.

    ``protocols`` are names (`PROTOCOLS`). Protocols that do not fit the split are skipped with a
    warning and listed in the results. If none fits, the whole split is ranked (``full``), which is
    the usual case for a validation split smaller than the test split. With ``strict`` every
    protocol must fit. ``precision`` (fp32, tf32, bf16, fp16) applies to encoding; scores are always
    computed in float32. ``workers`` threads prefetch images. After `run`, ``ranks`` holds the ranks
    of every query by protocol. ``second`` may be set to a model of another checkpoint, which then
    re-ranks the candidates of the evaluated one as ``rerank`` says. Raises ConfigError for an
    invalid name or size.
    """

    def __init__(
        self,
        data: Split,
        view: View,
        tokens: TokenTable,
        protocols: Sequence[str] = ("full",),
        batch_size: int = 128,
        tie_break: str = "pessimistic",
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        strict: bool = False,
        rerank: RerankConfig | None = None,
        workers: int = 0,
    ):
        check_tie_break(tie_break)
        if precision not in AUTOCAST:
            raise ConfigError(
                f"precision: '{precision}' is unknown; expected one of {', '.join(AUTOCAST)}"
            )
        self.data, self.view, self.tokens = data, view, tokens
        self.batch_size, self.tie_break = batch_size, tie_break
        self.device, self.workers = torch.device(device), workers
        self.precision, self.dtype = precision, AUTOCAST[precision]
        self.rerank = rerank or RerankConfig()
        self.ranks: dict[str, Ranks] = {}
        self.second: SecondModel | None = None
        self.retrieval_set = RetrievalSet.from_split(data)
        self.protocols, self.skipped = applicable_protocols(
            find_protocols(protocols), self.retrieval_set
        )
        if self.skipped:
            self._report_skipped(strict)

    def _report_skipped(self, strict: bool) -> None:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in self.skipped.items())
        message = f"split {self.data.name} has {self.data.n_images} images: cannot use {reasons}"
        if strict:
            raise ConfigError(f"{message}; pass protocol=full to rank the whole split")
        log.warning("%s; using %s", message, ", ".join(p.name for p in self.protocols))

    def run(
        self,
        model: RetrievalModel,
        progress: Progress | None = None,
        encoded: tuple[Encoded, Encoded] | None = None,
        with_query_log: bool = False,
    ) -> dict[str, Any]:
        """Evaluate ``model``: flat metrics of `evaluate_protocols`, and `metadata`.

        ``encoded``: embeddings that `encode_all` returned earlier. With ``with_query_log`` the
        attribute ``query_log`` is filled as well. The metrics before re-ranking are reported as
        ``first_stage/<key>``. Raises DataError if embeddings are not finite.
        """
        reranks = self.reranks(model)
        images, texts = encoded or self.encode_all(model, progress, self.needs_tokens(model))
        first = EmbeddingTable(images.pooled, texts.pooled)
        self.ranks, self.query_log = {}, None
        collected = None
        if with_query_log and not reranks:
            collected = StatisticsCollector(first, self.retrieval_set.text_to_image)
        metrics = self.rank(collected.watch() if collected else first, self.ranks)
        if not reranks:
            if with_query_log:
                self.log_queries(first, collected)
            return {**metrics, **self.metadata()}
        first_ranks = {f"first_stage/{name}": ranks for name, ranks in self.ranks.items()}
        self.ranks = {}
        second = self._second_stage(model, (images, texts), first, progress)
        with torch.inference_mode(), eval_mode(second.model):
            final = evaluate_protocols(
                second, self.retrieval_set, self.protocols, self.tie_break, self.ranks
            )
        self.ranks |= first_ranks
        if with_query_log:
            self.log_queries(second.whole or first)
        first_stage = {f"first_stage/{k}": v for k, v in metrics.items() if isinstance(v, float)}
        depth = min(self.rerank.k, max(self.data.n_images, self.data.n_captions))
        return {**final, **first_stage, **self.metadata(), "rerank_k": depth}

    def _second_stage(
        self,
        model: RetrievalModel,
        encoded: tuple[Encoded, Encoded],
        first: EmbeddingTable,
        progress: Progress | None,
    ) -> SecondStage:
        """The second stage of ``model``, or that of ``second``, which then encodes the split."""
        dtype = self.dtype
        if self.second is not None:
            model, evaluator = self.second
            encoded, dtype = evaluator.encode_all(model, progress, tokens=True), evaluator.dtype
        return SecondStage(model, *encoded, self.rerank, dtype, progress, first)

    def log_queries(self, table: ScoreTable, collected: StatisticsCollector | None = None) -> None:
        """Fill ``query_log`` from the scores of ``table`` and the collected ``ranks``."""
        self.query_log = build_query_log(
            table, self.retrieval_set, self.protocols, self.ranks, collected
        )

    def rank(
        self, table: ScoreTable, ranks_by_name: dict[str, Ranks] | None = None
    ) -> dict[str, Any]:
        """`evaluate_protocols` on a table of the whole split."""
        return evaluate_protocols(
            lambda subset: table.subset(subset.images, subset.captions),
            self.retrieval_set,
            self.protocols,
            self.tie_break,
            ranks_by_name,
        )

    def reranks(self, model: RetrievalModel) -> bool:
        """Whether ``model`` is re-ranked. Raises ConfigError if it should be but cannot."""
        if self.second is not None:
            return True
        enabled = model.has_rerank() if self.rerank.enabled is None else self.rerank.enabled
        if enabled:
            check_rerank(self.rerank, model.has_rerank(), type(model).__name__)
        return enabled

    def needs_tokens(self, model: RetrievalModel) -> bool:
        """Whether ``model`` itself re-ranks, which needs the tokens of `encode_all`."""
        return self.second is None and self.reranks(model)

    def metadata(self) -> dict[str, Any]:
        """How the metrics were computed: strings and integers."""
        metadata: dict[str, Any] = {
            "protocol": self.protocols[0].name,
            "tie_break": self.tie_break,
            "rerank_k": None,
            "split": self.data.name,
            "precision": self.precision,
            "data_hash": self.data_hash,
        }
        if self.skipped:
            metadata["protocols_skipped"] = ",".join(self.skipped)
        if self.tokens.truncated:
            metadata["truncated_captions"] = self.tokens.truncated
        return metadata

    def provenance(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that embeddings of this split by the checkpoint of ``origin`` depend on."""
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
        """Pooled embeddings of every image [N, D] and caption [C, D], as from `encode_all`."""
        images, texts = self.encode_all(model, progress)
        return images.pooled, texts.pooled

    def encode_all(
        self, model: RetrievalModel, progress: Progress | None = None, tokens: bool = False
    ) -> tuple[Encoded, Encoded]:
        """Encode every image and every caption once, on the device.

        ``pooled`` is float32. With ``tokens``, the tokens are returned in the precision of
        encoding. The model runs in eval mode and gets its previous modes back.
        """
        data, encoder = self.data, Encoder(model, self.device, self.precision, tokens, progress)
        images = image_batches(
            data,
            self.view,
            self.batch_size,
            self.workers,
            finish_on_device=self.device.type == "cuda",
        )
        captions = caption_batches(data, self.view, self.tokens, self.batch_size)
        return (
            encoder.images(images, data.n_images, f"images of split {data.name}"),
            encoder.texts(captions, data.n_captions, f"captions of split {data.name}"),
        )


class SecondModel(NamedTuple):
    """A model that re-ranks, and the evaluator that reads the split for it."""

    model: RetrievalModel
    evaluator: Evaluator
