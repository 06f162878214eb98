"""What `eval.py` does: checkpoints or a score matrix, a split, their numbers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from itr import parallel
from itr.data.checks.decodable import require_decodable
from itr.data.layouts.region_arrays import check_regions_finite
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.text.token_cache import tokenize_cached
from itr.errors import CheckpointError, ConfigError
from itr.evaluation import stored_embeddings
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.hubness import QueryBank, hubness_rows
from itr.evaluation.query_log import QueryLog
from itr.evaluation.ranks import Ranks
from itr.evaluation.rerank import Progress, RerankConfig
from itr.evaluation.score_matrices import evaluate_file
from itr.evaluation.score_tables import EmbeddingTable, MeanTable, ScoreTable
from itr.evaluation.statistics import Interval, prefixed_intervals
from itr.instantiate import check
from itr.jobs.eval.classify import classify
from itr.jobs.eval.config import EvalConfig, check_options
from itr.jobs.eval.tracking import track, tracked
from itr.jobs.launch.workers import launch
from itr.jobs.load_checkpoint import LoadedCheckpoint, load_checkpoint
from itr.models.base import Encoded
from itr.plugins import trusts_configuration
from itr.results.results_file import write_results
from itr.results.terminal_tables import results_table
from itr.training.console import Display, close_log, open_log
from itr.training.device import keep_queries, prepare_data, resolve_device, resolve_precision
from itr.training.process_setup import resolve_num_workers, set_threads

log = logging.getLogger("itr")
# Fields of results that are of the checkpoint or file, not of a split.
ON_TOP = (
    "checkpoint checkpoint_sha256 model data loss seed select_on best_updates official ensemble "
    "scores scores_sha256 trained_on seedless_hash image_size"
).split()
ECCV = (("map_at_r", "mAP@R"), ("rprecision", "R-P"), ("r1", "R@1"))
JOINED = "checkpoint checkpoint_sha256 seed select_on model loss trained_on official".split()
FACTS = ("images", "classes", "templates")


@trusts_configuration
def evaluate(values: dict[str, Any]) -> dict[str, Any]:
    """Evaluate what the configuration names; print and return its flat results."""
    config: EvalConfig = check(values, EvalConfig, "")
    check_options(config)
    keep = tracked(config.tracker)
    cuda = resolve_device(config.device).type == "cuda"
    if config.devices > 1 and not parallel.is_launched():
        return launch(evaluate, values, config.devices, 1, cuda)
    if config.task.name == "retrieval" and config.scores is None:  # what processes can share
        parallel.init(cuda, config.runtime.collective_timeout)
    set_threads(config.runtime.threads)
    console = Console(quiet=parallel.rank() > 0)
    kept: Kept | None = None
    logs: list[QueryLog] = []
    open_log(None, console)
    try:
        if config.task.name == "zeroshot":
            with Display(console, 0, training=False) as display:
                results = _below(config.split, classify(config, display.evaluation))
            title = config.checkpoints[0]
        elif config.scores is not None:
            found = evaluate_file(
                Path(config.scores), config.protocols, config.tie_break, config.hubness, logs
            )
            results, title = _below(config.split, found), config.scores
            log.info(
                "%s: filed as split %s (split=NAME for another); how its checkpoint was chosen "
                "and what was re-ranked only its maker knows",
                config.scores,
                config.split,
            )
        else:
            results, kept = _evaluate_checkpoints(config, console)
            title = " + ".join(config.checkpoints)
    finally:
        close_log()
    if f"{config.split}/rsum" in results:
        intervals = _intervals(config.split, logs[0] if kept is None else kept.evaluator)
        console.print(results_table(results, title, intervals))
    for line in remarks(results):
        console.print(line, highlight=False)
    if keep and parallel.rank() == 0:
        seen = None if kept is None else (kept.evaluator, kept.data)
        track(config.tracker, Path(config.out or "."), values, results, config.split, seen)
    if config.out and parallel.rank() == 0:
        out = Path(config.out)
        for queries in logs:
            queries.save(out, config.split, {"scores": config.scores})
        if kept is not None:
            places = [member.path for member in kept.loaded]
            keep_queries(
                kept.evaluator, out, config.split, results, kept.data, places, config.model
            )
        write_results(out, results)
        console.print(f"results are in {config.out}")
    return results


def _intervals(split: str, found: QueryLog | Evaluator) -> dict[str, dict[str, Interval]]:
    if isinstance(found, QueryLog):
        return prefixed_intervals(split, found.all_ranks, found.text_to_image, found.folds)
    folds = {protocol.name: protocol.fold for protocol in found.protocols if protocol.fold}
    return prefixed_intervals(split, found.ranks, found.retrieval_set.text_to_image, folds)


def _below(split: str, results: dict[str, Any]) -> dict[str, Any]:
    """``results`` under their split's name, but for what says where they are from."""
    top = {k: v for k, v in results.items() if k in ON_TOP or k.startswith("official/")}
    return top | {f"{split}/{key}": value for key, value in results.items() if key not in top}


def remarks(results: dict[str, Any]) -> list[str]:
    """Lines for what the table of recalls has no columns for."""
    lines = []
    for key in results:
        if key.endswith("top1"):
            below = key.removesuffix("top1")
            facts = [f"{results[f'{below}n_{what}']} {what}" for what in FACTS]
            lines.append(
                f"{results['data']}: top-1 {results[key]:.2f}, mean per class "
                f"{results[f'{below}mean_per_class']:.2f} ({', '.join(facts)})"
            )
        elif key.endswith("i2t_r1") and f"{key.removesuffix('i2t_r1')}i2t_r5" not in results:
            below = key.removesuffix("i2t_r1")  # of ECCV Caption
            shown = [
                f"{way} {heading} {results[f'{below}{way}_{name}']:.1f}"
                for way in ("i2t", "t2i")
                for name, heading in ECCV
                if f"{below}{way}_{name}" in results
            ]
            lines.append(f"{below.rstrip('/')}: {', '.join(shown)}")
        elif key.endswith(("i2i_r1", "t2t_r1")):
            below, way = key[: -len("i2i_r1")], key[-6:-3]
            shown = [f"R@{k} {results[f'{below}{way}_r{k}']:.1f}" for k in (1, 5, 10)]
            stage = (
                f" ({results[f'{below}within_modality']})"
                if f"{below}within_modality" in results
                else ""
            )
            lines.append(f"{below.rstrip('/')}: {way} {', '.join(shown)}{stage}")
        elif key.endswith("directions_skipped"):
            lines.append(f"{key.rpartition('/')[0]}: not evaluated: {results[key]}")
    return lines


@dataclass
class Member:
    """A checkpoint's embeddings of the split."""

    loaded: LoadedCheckpoint
    evaluator: Evaluator
    images: Encoded
    texts: Encoded
    bank: QueryBank | None = None

    @property
    def table(self) -> EmbeddingTable:
        """Scores of the first stage."""
        return EmbeddingTable(self.images.pooled, self.texts.pooled)


class Kept(NamedTuple):
    """An evaluator that holds its queries, and its data."""

    evaluator: Evaluator
    data: DataConfig
    loaded: list[LoadedCheckpoint]


def _evaluate_checkpoints(config: EvalConfig, console: Console) -> tuple[dict[str, Any], Kept]:
    """Flat results, and what holds their queries."""
    device, members, found = resolve_device(config.device), [], {}
    keep = bool(config.out) or tracked(config.tracker)
    for source in config.checkpoints:
        loaded = load_checkpoint(source, config.model, device)
        loaded.origin |= {} if config.trained_on is None else {"trained_on": config.trained_on}
        with parallel.rank0_first():  # what is made on first use is made once
            evaluator = make_evaluator(config, loaded, config.split, device)
        with Display(console, 0, training=False) as display:
            members.append(_encode(config, loaded, evaluator, display.evaluation))
            if not config.ensemble:
                member = members[0]
                encoded = (member.images, member.texts)
                found = evaluator.run(loaded.model, display.evaluation, encoded, keep)
        _require_same(members)
    first, tables = members[0], [member.table for member in members]
    evaluator = first.evaluator
    table: ScoreTable = tables[0]
    if config.ensemble:
        table = MeanTable(tables)
        found = evaluator.rank(table, evaluator.ranks) | evaluator.metadata()
        for number, single in enumerate(tables, 1):
            more = dict[str, Ranks]()
            rows = evaluator.rank(single, more)
            found |= {f"member_{number}/{key}": value for key, value in rows.items()}
            evaluator.ranks |= {f"member_{number}/{key}": value for key, value in more.items()}
    found |= _hubness(config, members, table)
    if keep and evaluator.query_log is None:
        evaluator.log_queries(table)
    sources = [member.loaded for member in members]
    results = _below(config.split, found | _origin(sources))
    return results, Kept(evaluator, data_config(config, first.loaded), sources)


def _hubness(config: EvalConfig, members: Sequence[Member], table: ScoreTable) -> dict[str, Any]:
    """Rows corrected for hubs. They are of the scores of embeddings: of a re-ranked model that is
    its first stage, which their names then say."""
    evaluator, ranks = members[0].evaluator, dict[str, Ranks]()
    banks = [member.bank for member in members if member.bank is not None]
    protocol = evaluator.protocols[0]
    rows = hubness_rows(
        table, evaluator.retrieval_set, protocol, config.hubness, evaluator.tie_break, banks, ranks
    )
    stage = "first_stage/" if evaluator.reranks(members[0].loaded.model) else ""
    named = {f"{stage}{name}": own for name, own in ranks.items()}
    evaluator.ranks |= named
    if evaluator.query_log is not None:
        evaluator.query_log.extra_ranks |= named
    return {f"{stage}{key}": value for key, value in rows.items()}


def _encode(
    config: EvalConfig, loaded: LoadedCheckpoint, evaluator: Evaluator, progress: Progress
) -> Member:
    """Embeddings, from ``embeddings=FILE`` where they are stored; else they are stored there."""
    model, tokens = loaded.model, evaluator.reranks(loaded.model)
    if config.ensemble and tokens:
        raise ConfigError(
            "ensemble=true: the mean is of whole score matrices, and this model re-ranks short "
            "lists; type rerank.enabled=false for the mean of the first stages"
        )
    if config.embeddings is None:
        member = Member(loaded, evaluator, *evaluator.encode_all(model, progress, tokens))
    else:
        path, provenance = Path(config.embeddings), evaluator.provenance(loaded.origin)
        if "image_size" in loaded.origin:
            provenance["image_size"] = loaded.origin["image_size"]
        if parallel.broadcast_from_rank0(path.exists):
            log.info("embeddings are read from %s", path)
            encoded = stored_embeddings.load(path, provenance, tokens, evaluator.device)
        else:
            encoded = evaluator.encode_all(model, progress, tokens)
            if parallel.rank() == 0:
                stored_embeddings.save(path, *encoded, provenance)
                log.info("embeddings are kept in %s (%.0f MB)", path, path.stat().st_size / 1e6)
        member = Member(loaded, evaluator, *encoded)
    if config.hubness.rows and config.hubness.bank_split is not None:
        other = make_evaluator(
            config, loaded, config.hubness.bank_split, evaluator.device, bank=True
        )
        member.bank = other.encode(model, progress)
    return member


def _require_same(members: Sequence[Member]) -> None:
    """Raises ConfigError unless the last member saw the captions of the first."""
    first, last = (member.evaluator for member in (members[0], members[-1]))
    same = np.array_equal(first.data.text_to_image, last.data.text_to_image)
    if not same or first.data.captions() != last.data.captions():
        raise ConfigError(
            f"ensemble=true: {members[-1].loaded.path} was evaluated on other captions "
            f"({last.data.source}) than {members[0].loaded.path} ({first.data.source}); name one "
            "data set for all, e.g. data=f30k data.root=DIR"
        )


def _origin(members: Sequence[LoadedCheckpoint]) -> dict[str, Any]:
    """Where the weights are from; of several, what they share and each one's file."""
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


def data_config(config: EvalConfig, loaded: LoadedCheckpoint) -> DataConfig:
    """``data=...`` where it is chosen; else the checkpoint's, with what is not null replaced."""
    given = {key: value for key, value in config.data.items() if value is not None}
    chosen = "name" in given and "splits" in given
    if not chosen and loaded.data is None:
        raise ConfigError(f"checkpoint={loaded.path}: holds no data set; type data=f30k")
    node = given if chosen else {**(loaded.data or {}), **given}
    data: DataConfig = check(node, DataConfig, "data")
    loaded.origin["data"] = data.name
    if config.protocols is not None:
        data = dataclasses.replace(data, protocols=config.protocols)
    return prepare_data(data)


def make_evaluator(
    config: EvalConfig,
    loaded: LoadedCheckpoint,
    name: str,
    device: torch.device,
    bank: bool = False,
) -> Evaluator:
    """An evaluator of the split ``name``; ``bank``: of its first images, whatever the protocol.

    Raises CheckpointError where the data does not fit the model.
    """
    model, tokenizer, data = loaded.model, loaded.tokenizer, data_config(config, loaded)
    split = open_split(data, name, model.view.kind)
    if bank:
        split = dataclasses.replace(split, records=split.records[: config.hubness.bank_size])
    else:
        check_regions_finite(split, data.cache)
        told, split = len(split.notes), require_decodable(split, data.cache)
        for note in split.notes[told:]:
            log.warning("%s: %s", name, note)
    width = None if split.regions is None else int(split.regions.shape[2])
    if width != model.facts.region_width:
        raise CheckpointError(
            f"{split.source}: regions are {width} wide, the checkpoint's model reads "
            f"{model.facts.region_width}; it was trained on other features"
        )
    given = {key: value for key, value in config.rerank.items() if value is not None}
    return Evaluator(
        split,
        model.view,
        tokenize_cached(tokenizer, split.texts, model.view.text_eval, Path(data.cache)),
        protocols=["full"] if bank else data.protocols,
        batch_size=config.runtime.eval_batch_size,
        tie_break=config.tie_break or loaded.ties,
        device=device,
        precision=resolve_precision(config.precision or loaded.precision, device),
        strict=config.protocol is not None and not bank,
        workers=resolve_num_workers(config.runtime.num_workers, split, device),
        rerank=check({**loaded.rerank_on(data.name), **given}, RerankConfig, "rerank"),
    )
