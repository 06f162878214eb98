"""Corrections for hubs: candidates that are near to too many queries. N images, C captions.

They change a candidate's score by how it scores with a bank of other queries: those of the training
split, or the evaluated queries themselves (then no query is scored alone, which a user of a search
engine would be). Rows of their own, named after the method, never the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from itr.errors import ConfigError
from itr.evaluation.protocols import Gallery, Part, Protocol, evaluate_gallery
from itr.evaluation.ranks import Ranks
from itr.evaluation.score_tables import EmbeddingTable, Index, MeanTable, Rows, ScoreTable
from itr.instantiate import nearest

METHODS = ("inverted_softmax", "csls", "qb_norm")


@dataclass
class HubnessConfig:
    """Which rows to add, and their numbers (those of the papers, for cosines)."""

    rows: list[str] = field(default_factory=list)  # of METHODS
    beta: float = 20.0  # inverse temperature of inverted softmax and QB-Norm
    k: int = 10  # neighbours of CSLS
    bank: str | None = None  # a split whose queries are the bank; None: the evaluated ones
    bank_size: int = 5000  # images of that split, with their captions


def check_hubness(config: HubnessConfig) -> None:
    """Raises ConfigError for an unknown row or an impossible number."""
    for name in config.rows:
        if name not in METHODS:
            raise ConfigError(
                f"hubness.rows: '{name}' is unknown{nearest(name, METHODS)} "
                f"(known: {', '.join(METHODS)})"
            )
    for key, value in (("beta", config.beta), ("k", config.k), ("bank_size", config.bank_size)):
        if value <= 0:
            raise ConfigError(f"hubness.{key}: {value} must be above 0")
    if "qb_norm" in config.rows and config.bank is None:
        raise ConfigError(
            "hubness.rows: qb_norm needs a bank of other queries (with the evaluated ones it is "
            "inverted_softmax); type hubness.bank=train"
        )


Bank = tuple[Tensor, Tensor]  # embeddings of other images [., D] and of other captions [., D]


def hubness_rows(
    table: ScoreTable,
    gallery: Gallery,
    protocol: Protocol,
    config: HubnessConfig,
    ties: str = "pessimistic",
    banks: Sequence[Bank] = (),
    kept: dict[str, Ranks] | None = None,
) -> dict[str, Any]:
    """Metrics of ``protocol`` under each correction, as ``hubness_<method>/...``; into ``kept`` go
    the ranks, as ``hubness_<method>/<protocol>``.

    ``banks``: one for each model whose scores ``table`` holds (their mean, if several); none: the
    evaluated queries are the bank. Raises ConfigError for what `check_hubness` refuses.
    """
    check_hubness(config)
    results: dict[str, Any] = {}
    for method in config.rows:

        def corrected(part: Part, method: str = method) -> ScoreTable:
            base = table.part(part.images, part.captions)
            return CorrectedTable(base, method, config, _bank_tables(base, banks))

        ranks: dict[str, Ranks] = {}
        found = evaluate_gallery(corrected, gallery, [protocol], ties, ranks)
        results |= {f"hubness_{method}/{key}": value for key, value in found.items()}
        if kept is not None:
            kept |= {f"hubness_{method}/{name}": own for name, own in ranks.items()}
    bank = f"split {config.bank}" if banks else "the evaluated queries"
    return results | ({"hubness_bank": bank} if config.rows else {})


def _bank_tables(base: ScoreTable, banks: Sequence[Bank]) -> tuple[ScoreTable, ScoreTable] | None:
    if not banks:
        return None
    members = base.tables if isinstance(base, MeanTable) else [base]
    pairs = [(m, bank) for m, bank in zip(members, banks, strict=True)]
    forward = [EmbeddingTable(b[0], m.texts) for m, b in pairs if isinstance(m, EmbeddingTable)]
    backward = [EmbeddingTable(m.images, b[1]) for m, b in pairs if isinstance(m, EmbeddingTable)]
    return MeanTable(forward), MeanTable(backward)


class Correction(NamedTuple):
    """What is taken off the scores of the candidates of one direction."""

    bias: Tensor  # [M]
    hubs: Tensor | None = None  # [M] bool: only for queries whose nearest candidate is one of these


class CorrectedTable(ScoreTable):
    """``base`` with a correction in each direction.

    ``bank`` scores its queries with the candidates of ``base``, a table for either direction: bank
    images with the captions, and the images with bank captions. None: ``base`` itself.
    """

    def __init__(
        self,
        base: ScoreTable,
        method: str,
        config: HubnessConfig,
        bank: tuple[ScoreTable, ScoreTable] | None = None,
    ):
        if base.depth is not None:
            raise ConfigError("hubness.rows: of whole galleries; type rerank.enabled=false")
        self.base = base
        self.n_images, self.n_captions, self.device = base.n_images, base.n_captions, base.device
        with torch.inference_mode():
            self.corrections = {
                direction: _correction(table, direction, method, config)
                for direction, table in zip(("i2t", "t2i"), bank or (base, base), strict=True)
            }

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """Those of ``base``, less the candidates' bias where it applies."""
        scores = self.base.scores(direction, rows)
        bias, hubs = self.corrections[direction]
        if hubs is None:
            return scores - bias
        return torch.where(hubs[scores.argmax(dim=1)][:, None], scores - bias, scores)

    def part(self, images: Index, captions: Index) -> ScoreTable:
        """Raises ConfigError: the bias of a part is not that of the whole."""
        raise ConfigError("a correction is made for each part anew")


def _correction(bank: ScoreTable, direction: str, method: str, config: HubnessConfig) -> Correction:
    """The correction of the candidates of ``direction`` by the queries of ``bank``.

    Inverted softmax (Smith et al., ICLR 2017): exp(beta s) over its sum over the bank, which
    orders as s - logsumexp(beta s) / beta. CSLS (Conneau et al., ICLR 2018): 2 s - r(query) -
    r(candidate), r being the mean of the k best, which orders as s - r(candidate) / 2. QB-Norm
    (Bogolin et al., CVPR 2022): inverted softmax for the queries whose nearest candidate is the
    nearest one of a query of the bank.
    """
    backward, candidates, queries = bank.way(direction[::-1])
    height = bank.height(queries)

    def by_tile(reduce: Callable[[Tensor], Tensor]) -> Tensor:
        tiles = range(0, candidates, height)
        return torch.cat([reduce(backward(slice(a, min(a + height, candidates)))) for a in tiles])

    if method == "csls":
        k = min(config.k, queries)
        return Correction(by_tile(lambda tile: tile.topk(k, dim=1).values.mean(dim=1)) / 2)
    bias = by_tile(lambda tile: (config.beta * tile).logsumexp(dim=1)) / config.beta
    if method == "inverted_softmax":
        return Correction(bias)
    hubs = torch.zeros(candidates, dtype=torch.bool, device=bank.device)
    forward, height = bank.way(direction)[0], bank.height(candidates)
    for start in range(0, queries, height):
        hubs[forward(slice(start, min(start + height, queries))).argmax(dim=1)] = True
    return Correction(bias, hubs)
