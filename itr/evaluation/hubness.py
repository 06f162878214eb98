"""Hubness corrections: lower the scores of candidates that are close to too many queries.

A correction changes the score of a candidate by its scores with a bank of other queries. The bank
is the training split or the evaluated queries themselves; in the latter case a query is no longer
scored independently, as it would be by a search engine. The corrected metrics are reported in rows
of their own and never replace the main result. N images, C captions, M candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from itr.errors import ConfigError
from itr.evaluation.protocol_metrics import evaluate_protocols
from itr.evaluation.protocols import Protocol
from itr.evaluation.ranks import Ranks
from itr.evaluation.retrieval_set import RetrievalSet, Subset
from itr.evaluation.score_tables import EmbeddingTable, Index, MeanTable, Rows, ScoreTable
from itr.options import configured, faults, option

log = logging.getLogger("itr")
METHODS = ("inverted_softmax", "csls", "qb_norm")


@dataclass
@configured("eval.yaml", "hubness")
class HubnessConfig:
    """Which rows to add, and their parameters (defaults: those of the papers, for cosines)."""

    rows: list[str] = option(choices=METHODS)
    beta: float = option(above=0)
    k: int = option(above=0)
    bank_split: str | None = option()
    bank_size: int = option(above=0)


def check_hubness(config: HubnessConfig) -> None:
    """Raises ConfigError for an unknown row or an invalid number."""
    if found := faults(config, "hubness"):
        raise ConfigError("\n".join(found))
    if "qb_norm" in config.rows and config.bank_split is None:
        raise ConfigError(
            "hubness.rows: qb_norm needs a bank of other queries (with the evaluated queries it is "
            "the same as inverted_softmax); pass hubness.bank_split=train"
        )


QueryBank = tuple[Tensor, Tensor]  # embeddings of other images [., D] and of other captions [., D]


def hubness_rows(
    table: ScoreTable,
    retrieval_set: RetrievalSet,
    protocol: Protocol,
    config: HubnessConfig,
    tie_break: str = "pessimistic",
    banks: Sequence[QueryBank] = (),
    ranks_by_name: dict[str, Ranks] | None = None,
) -> dict[str, Any]:
    """Metrics of ``protocol`` under each correction, with the prefix ``hubness_<method>/``.

    ``banks`` holds one bank for each model whose scores ``table`` averages; if it is empty, the
    evaluated queries are the bank. The ranks are added to ``ranks_by_name`` as
    ``hubness_<method>/<protocol>``. Raises ConfigError for what `check_hubness` refuses.
    """
    check_hubness(config)
    results: dict[str, Any] = {}
    for method in config.rows:

        def corrected(subset: Subset, method: str = method) -> ScoreTable:
            base = table.subset(subset.images, subset.captions)
            return CorrectedTable(base, method, config, _bank_tables(base, banks))

        ranks: dict[str, Ranks] = {}
        metrics = evaluate_protocols(corrected, retrieval_set, [protocol], tie_break, ranks)
        results |= {f"hubness_{method}/{key}": value for key, value in metrics.items()}
        if ranks_by_name is not None:
            ranks_by_name |= {f"hubness_{method}/{name}": each for name, each in ranks.items()}
    bank = f"split {config.bank_split}" if banks else "the evaluated queries"
    return results | ({"hubness_bank": bank} if config.rows else {})


def _bank_tables(
    base: ScoreTable, banks: Sequence[QueryBank]
) -> tuple[ScoreTable, ScoreTable] | None:
    if not banks:
        return None
    members = base.tables if isinstance(base, MeanTable) else [base]
    pairs = [(m, bank) for m, bank in zip(members, banks, strict=True)]
    forward = [EmbeddingTable(b[0], m.texts) for m, b in pairs if isinstance(m, EmbeddingTable)]
    backward = [EmbeddingTable(m.images, b[1]) for m, b in pairs if isinstance(m, EmbeddingTable)]
    return MeanTable(forward), MeanTable(backward)


class CandidateBias(NamedTuple):
    """The amount subtracted from the scores of the candidates of one direction."""

    bias: Tensor  # [M]
    hubs: Tensor | None = None  # [M] bool: subtract only if the query's best candidate is one


class CorrectedTable(ScoreTable):
    """``base`` with a hubness correction in each direction.

    ``bank`` scores the bank's queries with the candidates of ``base``, one table per direction:
    bank images with the captions, and the images with bank captions. None: ``base`` itself.
    """

    def __init__(
        self,
        base: ScoreTable,
        method: str,
        config: HubnessConfig,
        bank: tuple[ScoreTable, ScoreTable] | None = None,
    ):
        if base.depth is not None:
            raise ConfigError(
                "hubness.rows: corrections need the scores of all candidates, not of re-ranked "
                "shortlists; pass rerank.enabled=false"
            )
        self.base = base
        self.n_images, self.n_captions, self.device = base.n_images, base.n_captions, base.device
        with torch.inference_mode():
            self.biases = {
                direction: _candidate_bias(table, direction, method, config)
                for direction, table in zip(("i2t", "t2i"), bank or (base, base), strict=True)
            }

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """The scores of ``base`` minus the candidates' bias where it applies."""
        scores = self.base.scores(direction, rows)
        bias, hubs = self.biases[direction]
        if hubs is None:
            return scores - bias
        return torch.where(hubs[scores.argmax(dim=1)][:, None], scores - bias, scores)

    def subset(self, images: Index, captions: Index) -> ScoreTable:
        """Raises ConfigError: the bias depends on all queries and candidates of the table."""
        raise ConfigError("a hubness correction must be computed separately for each subset")


def _candidate_bias(
    bank: ScoreTable, direction: str, method: str, config: HubnessConfig
) -> CandidateBias:
    """The bias of the candidates of ``direction``, computed from the queries of ``bank``.

    Inverted softmax (Smith et al., ICLR 2017): exp(beta s) over its sum over the bank, which
    ranks like s - logsumexp(beta s) / beta. CSLS (Conneau et al., ICLR 2018): 2 s - r(query) -
    r(candidate), r being the mean of the k best, which ranks like s - r(candidate) / 2. QB-Norm
    (Bogolin et al., CVPR 2022): inverted softmax for the queries whose nearest candidate is also
    the nearest candidate of a query of the bank.
    """
    backward = bank.in_direction(direction[::-1])
    candidates, queries = backward.n_queries, backward.n_candidates
    step = bank.tile_rows(queries)

    def by_tile(reduce: Callable[[Tensor], Tensor]) -> Tensor:
        starts = range(0, candidates, step)
        tiles = (backward.of(slice(a, min(a + step, candidates))) for a in starts)
        return torch.cat([reduce(tile) for tile in tiles])

    if method == "csls":
        k = min(config.k, queries)
        if k < config.k:
            log.warning(
                "hubness.k=%d exceeds the %d %s queries of the bank; k=%d is used",
                config.k,
                queries,
                direction,
                k,
            )
        return CandidateBias(by_tile(lambda tile: tile.topk(k, dim=1).values.mean(dim=1)) / 2)
    bias = by_tile(lambda tile: (config.beta * tile).logsumexp(dim=1)) / config.beta
    if method == "inverted_softmax":
        return CandidateBias(bias)
    hubs = torch.zeros(candidates, dtype=torch.bool, device=bank.device)
    forward, step = bank.in_direction(direction), bank.tile_rows(candidates)
    for start in range(0, queries, step):
        tile = forward.of(slice(start, min(start + step, queries)))
        hubs[tile.argmax(dim=1)] = True
    return CandidateBias(bias, hubs)
