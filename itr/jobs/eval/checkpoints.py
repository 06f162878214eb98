"""Retrieval with one or several checkpoints: loads, encodes, ranks, corrects for hubs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from itr import parallel
from itr.errors import ConfigError, DataError
from itr.evaluation import stored_embeddings
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.hubness import QueryBank, hubness_rows
from itr.evaluation.ranks import Ranks
from itr.evaluation.rerank import Progress
from itr.evaluation.score_tables import EmbeddingTable, MeanTable, ScoreTable
from itr.jobs.assemble import rerank_warnings
from itr.jobs.eval.config import EvalConfig
from itr.jobs.eval.outcome import EvaluatedCheckpoints, EvaluationOutcome
from itr.jobs.eval.retrieval_split import data_config, make_evaluator
from itr.jobs.eval.second_stage import attach_second, load_second, second_facts
from itr.jobs.load_checkpoint import LoadedCheckpoint, load_checkpoint
from itr.models.base import Encoded
from itr.results.trackers.tracker import chosen
from itr.terminal import OutputConsole
from itr.training.console import ProgressDisplay
from itr.training.device import resolve_device

log = logging.getLogger("itr")
# Fields that an ensemble joins with commas where its members differ.
JOINED = "checkpoint checkpoint_sha256 seed select_on model loss trained_on official".split()


@dataclass
class EncodedCheckpoint:
    """A checkpoint with its embeddings of the split."""

    loaded: LoadedCheckpoint
    evaluator: Evaluator
    images: Encoded
    texts: Encoded
    bank: QueryBank | None = None

    @property
    def table(self) -> EmbeddingTable:
        """Scores of the first stage."""
        return EmbeddingTable(self.images.pooled, self.texts.pooled)


def evaluate_checkpoints(
    config: EvalConfig, console: OutputConsole, first: LoadedCheckpoint
) -> EvaluationOutcome:
    """Evaluate the checkpoint of ``config``, or the ensemble of several; ``first`` is loaded."""
    device, members, metrics = resolve_device(config.device), [], dict[str, Any]()
    second = load_second(config, device)
    log_queries = bool(config.out) or chosen(config.tracker)
    verify = config.runtime.verify_checkpoints
    for number, source in enumerate(config.sources):
        loaded = load_checkpoint(source, config.model, device, verify=verify) if number else first
        loaded.origin |= {} if config.trained_on is None else {"trained_on": config.trained_on}
        evaluator = _evaluator(config, loaded, second, device)
        with ProgressDisplay(console, 0, training=False) as display:
            member = _encode(config, loaded, evaluator, display.evaluation)
            members.append(member)
            if not config.ensemble:
                encoded = (member.images, member.texts)
                metrics = evaluator.run(loaded.retriever, display.evaluation, encoded, log_queries)
        _require_same_captions(members)
    evaluator = members[0].evaluator
    table: ScoreTable = members[0].table
    if config.ensemble:
        table, metrics = _rank_ensemble(members)
    metrics |= _hubness(config, members, table)
    if log_queries and evaluator.query_log is None:
        evaluator.log_queries(table)
    sources = [member.loaded for member in members]
    return EvaluationOutcome(
        " + ".join(config.sources),
        config.split,
        _origin(sources) | ({} if second is None else second_facts(second)),
        metrics,
        checkpoints=EvaluatedCheckpoints(
            evaluator, data_config(config, sources[0]), [source.path for source in sources]
        ),
    )


def _evaluator(
    config: EvalConfig,
    loaded: LoadedCheckpoint,
    second: LoadedCheckpoint | None,
    device: torch.device,
) -> Evaluator:
    """The evaluator of ``loaded``, whose candidates ``second`` re-ranks if it is given."""
    with parallel.rank0_first():  # rank 0 makes what is cached; the others read it
        evaluator = make_evaluator(config, loaded, config.split, device)
        if second is not None:
            attach_second(config, evaluator, loaded, second)
    for line in rerank_warnings(evaluator, loaded.retriever):
        log.warning("%s", line)
    return evaluator


def _rank_ensemble(members: Sequence[EncodedCheckpoint]) -> tuple[ScoreTable, dict[str, Any]]:
    """The mean of the members' score matrices, its metrics, and those of each member."""
    evaluator, tables = members[0].evaluator, [member.table for member in members]
    mean = MeanTable(tables)
    metrics = evaluator.rank(mean, evaluator.ranks) | evaluator.metadata()
    for number, table in enumerate(tables, 1):
        ranks = dict[str, Ranks]()
        rows = evaluator.rank(table, ranks)
        metrics |= {f"member_{number}/{key}": value for key, value in rows.items()}
        evaluator.ranks |= {f"member_{number}/{key}": value for key, value in ranks.items()}
    return mean, metrics


def _hubness(
    config: EvalConfig, members: Sequence[EncodedCheckpoint], table: ScoreTable
) -> dict[str, Any]:
    """Metrics of hubness corrections, which apply to embedding scores.

    Those are the first stage of a model that re-ranks; the keys then say so.
    """
    evaluator, ranks = members[0].evaluator, dict[str, Ranks]()
    banks = [member.bank for member in members if member.bank is not None]
    protocol = evaluator.protocols[0]
    rows = hubness_rows(
        table, evaluator.retrieval_set, protocol, config.hubness, evaluator.tie_break, banks, ranks
    )
    stage = "first_stage/" if evaluator.reranks(members[0].loaded.retriever) else ""
    named = {f"{stage}{name}": value for name, value in ranks.items()}
    evaluator.ranks |= named
    if evaluator.query_log is not None:
        evaluator.query_log.extra_ranks |= named
    return {f"{stage}{key}": value for key, value in rows.items()}


def _encode(
    config: EvalConfig, loaded: LoadedCheckpoint, evaluator: Evaluator, progress: Progress
) -> EncodedCheckpoint:
    """Embeddings of the split, read from ``embeddings=FILE`` if it exists, else written there."""
    model, tokens = loaded.retriever, evaluator.needs_tokens(loaded.retriever)
    if config.ensemble and tokens:
        raise ConfigError(
            "ensemble=true: averages complete score matrices, but this model re-ranks short lists; "
            "pass rerank.enabled=false for the mean of the first stages"
        )
    if config.embeddings is None:
        member = EncodedCheckpoint(
            loaded, evaluator, *evaluator.encode_all(model, progress, tokens)
        )
    else:
        path, provenance = Path(config.embeddings), evaluator.provenance(loaded.origin)
        if "image_size" in loaded.origin:
            provenance["image_size"] = loaded.origin["image_size"]
        if parallel.broadcast_from_rank0(path.exists):
            log.info("reading embeddings from %s", path)
            encoded = stored_embeddings.load(path, provenance, tokens, evaluator.device)
            found = tuple(len(side.pooled) for side in encoded)
            expected = (evaluator.data.n_images, evaluator.data.n_captions)
            if found != expected:
                raise DataError(
                    f"{path}: {found[0]} images and {found[1]} captions, expected {expected[0]} "
                    f"and {expected[1]}; it was changed: delete it, or pass another embeddings=FILE"
                )
        else:
            encoded = evaluator.encode_all(model, progress, tokens)
            if parallel.rank() == 0:
                stored_embeddings.save(path, *encoded, provenance)
                log.info("wrote embeddings to %s (%.0f MB)", path, path.stat().st_size / 1e6)
        member = EncodedCheckpoint(loaded, evaluator, *encoded)
    if config.hubness.rows and config.hubness.bank_split is not None:
        other = make_evaluator(
            config, loaded, config.hubness.bank_split, evaluator.device, bank=True
        )
        member.bank = other.encode(model, progress)
    return member


def _require_same_captions(members: Sequence[EncodedCheckpoint]) -> None:
    """Raises ConfigError unless the last member was evaluated on the captions of the first."""
    first, last = (member.evaluator for member in (members[0], members[-1]))
    same = np.array_equal(first.data.text_to_image, last.data.text_to_image)
    if not same or first.data.captions() != last.data.captions():
        raise ConfigError(
            f"ensemble=true: {members[-1].loaded.path} was evaluated on other captions "
            f"({last.data.source}) than {members[0].loaded.path} ({first.data.source}); pass one "
            "dataset for all, e.g. data=f30k data.root=DIR"
        )


def _origin(members: Sequence[LoadedCheckpoint]) -> dict[str, Any]:
    """The origin of the weights. For an ensemble: the fields that all members share, and those of
    `JOINED` as comma-separated lists."""
    if len(members) == 1:
        return dict(members[0].origin)
    origins = [member.origin for member in members]
    shared = {
        key: value
        for key, value in origins[0].items()
        if all(other.get(key) == value for other in origins)
    }
    for key in JOINED:
        if key not in shared and any(key in origin for origin in origins):
            shared[key] = ",".join(str(origin.get(key)) for origin in origins)
    return {**shared, "ensemble": len(members)}
