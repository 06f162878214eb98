"""The evaluation job: checkpoints, a score file, or zero-shot classification on one split."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from itr import parallel
from itr.evaluation.query_log import QueryLog
from itr.evaluation.score_matrices import evaluate_file
from itr.instantiate import check
from itr.jobs.eval.checkpoints import evaluate_checkpoints
from itr.jobs.eval.classify import classify
from itr.jobs.eval.config import EvalConfig, check_options
from itr.jobs.eval.item_tasks import evaluate_items
from itr.jobs.eval.outcome import EvaluationOutcome, summary_lines
from itr.jobs.eval.tracking import track_evaluation
from itr.jobs.launch.workers import launch
from itr.jobs.load_tower import load_first
from itr.jobs.query_files import save_queries
from itr.plugins import trusts_configuration
from itr.results.accuracy_tables import results_tables
from itr.results.results_file import write_results
from itr.results.trackers.tracker import chosen
from itr.tasks.known_tasks import build_task
from itr.tasks.retrieval import RetrievalTask
from itr.terminal import OutputConsole
from itr.training.console import ProgressDisplay, close_log, open_log
from itr.training.device import resolve_device
from itr.training.process_setup import set_threads

log = logging.getLogger("itr")
SCORE_FILE_ORIGIN = ("scores", "scores_sha256", "select_on")  # fields that are not metrics


@trusts_configuration
def evaluate(values: dict[str, Any]) -> dict[str, Any]:
    """Evaluate what the configuration names; print and return the flat results.

    Raises a UserError for options, checkpoints and data that cannot be used.
    """
    config: EvalConfig = check(values, EvalConfig, "")
    check_options(config)
    track = chosen(config.tracker)
    cuda = resolve_device(config.device).type == "cuda"
    if config.devices > 1 and not parallel.is_launched():
        return launch(evaluate, values, config.devices, 1, cuda)
    if config.task.get("name") != "zeroshot" and config.scores is None:  # what processes can share
        parallel.init(cuda, config.runtime.collective_timeout)
    set_threads(config.runtime.threads)
    console = OutputConsole(quiet=parallel.rank() > 0)
    open_log(None, console)
    try:
        outcome = _run(config, console)
    finally:
        close_log()
    results = outcome.flat()
    for table in results_tables(results, outcome.title, outcome.intervals()):
        console.print(table)
    for line in summary_lines(results):
        console.print(line)
    if parallel.rank() == 0:
        if track:
            track_evaluation(config, values, outcome)
        if config.out:
            _write(config, Path(config.out), outcome, results)
            console.print(f"results: {config.out}")
    return results


def _run(config: EvalConfig, console: OutputConsole) -> EvaluationOutcome:
    if config.task.get("name") == "zeroshot":
        with ProgressDisplay(console, 0, training=False) as display:
            origin, metrics = classify(config, display.evaluation)
        return EvaluationOutcome(config.sources[0], config.split, origin, metrics)
    if config.scores is not None:
        return _evaluate_scores(config, config.scores)
    loaded = load_first(config, resolve_device(config.device))
    task = build_task(loaded.task_node(config.task))
    if isinstance(task, RetrievalTask):
        return evaluate_checkpoints(config, console, loaded)
    with ProgressDisplay(console, 0, training=False) as display:
        return evaluate_items(config, task, loaded, display.evaluation)


def _evaluate_scores(config: EvalConfig, scores: str) -> EvaluationOutcome:
    logs: list[QueryLog] = []
    metrics = evaluate_file(Path(scores), config.protocols, config.tie_break, config.hubness, logs)
    log.info(
        "%s: filed as split=%s; checkpoint selection and re-ranking are unknown for an external "
        "score file",
        scores,
        config.split,
    )
    origin = {key: metrics.pop(key) for key in SCORE_FILE_ORIGIN}
    return EvaluationOutcome(scores, config.split, origin, metrics, query_logs=logs)


def _write(
    config: EvalConfig, out: Path, outcome: EvaluationOutcome, results: dict[str, Any]
) -> None:
    """Write per-query files and, last, the results."""
    for queries in outcome.query_logs:
        queries.save(out, config.split, {"scores": config.scores})
    if outcome.items is not None:
        for line in outcome.items.write(out, config.split):
            log.info("%s", line)
    if (evaluated := outcome.checkpoints) is not None:
        save_queries(
            evaluated.evaluator,
            out,
            config.split,
            results,
            evaluated.data,
            evaluated.paths,
            config.model,
        )
    write_results(out, results)
