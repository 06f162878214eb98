"""Evaluation of a checkpoint on a task with items: questions, statements, expressions."""

from __future__ import annotations

import logging
from pathlib import Path

from itr import parallel
from itr.data.checks.decodable import require_decodable
from itr.data.checks.fingerprint import content_hash
from itr.data.text.token_cache import tokenize_cached
from itr.data.text.token_table import truncation_notes
from itr.errors import CheckpointError, ConfigError
from itr.evaluation.encode import Progress
from itr.jobs.eval.config import EvalConfig
from itr.jobs.eval.outcome import EvaluatedItems, EvaluationOutcome
from itr.jobs.eval.retrieval_split import data_config
from itr.jobs.load_checkpoint import LoadedCheckpoint
from itr.tasks.task import EvaluationSettings, Task
from itr.training.device import resolve_device, resolve_precision
from itr.training.process_setup import resolve_num_workers

log = logging.getLogger("itr")


def evaluate_items(
    config: EvalConfig, task: Task, loaded: LoadedCheckpoint, progress: Progress
) -> EvaluationOutcome:
    """Predict and measure every item of the split.

    Raises CheckpointError for the checkpoint of another task, ConfigError for options that belong
    to retrieval.
    """
    _check(config, task, loaded)
    model, data = loaded.model, data_config(config, loaded)
    device = resolve_device(config.device)
    with parallel.rank0_first():  # rank 0 makes what is cached; the others read it
        split = require_decodable(task.open_split(data, config.split, model.view), data.cache)
        view = model.view
        tokens = tokenize_cached(loaded.tokenizer, split.texts, view.text_eval, Path(data.cache))
    for line in truncation_notes(config.split, tokens, view.text_eval):
        log.warning("%s", line)
    for note in split.notes:
        log.info("%s: %s", config.split, note)
    for line in task.restore(loaded.task_state, data):
        log.info("%s", line)
    evaluator = task.evaluator(
        split,
        EvaluationSettings(
            view,
            tokens,
            loaded.tokenizer,
            batch_size=config.runtime.eval_batch_size,
            device=device,
            precision=resolve_precision(config.precision or loaded.precision, device),
            workers=resolve_num_workers(config.runtime.num_workers, split, device),
        ),
    )
    metrics = evaluator.run(model, progress, with_query_log=True)
    origin = {**loaded.origin, "data": data.name, "task": task.name}
    metrics["data_hash"] = content_hash(split)
    items = EvaluatedItems(task, evaluator.predictions, split.text_to_image, data)
    return EvaluationOutcome(config.sources[0], config.split, origin, metrics, items=items)


def _check(config: EvalConfig, task: Task, loaded: LoadedCheckpoint) -> None:
    if task.name not in loaded.model.tasks:
        raise CheckpointError(
            f"checkpoint={loaded.path}: a {type(loaded.model).__name__}, for task="
            f"{'|'.join(loaded.model.tasks)}; task={task.name} needs a checkpoint of its own"
        )
    given = {
        "ensemble": config.ensemble,
        "embeddings": config.embeddings,
        "protocol": config.protocol,
        "hubness.rows": config.hubness.rows,
        "rerank": {key: value for key, value in config.rerank.items() if value is not None},
    }
    if unused := [key for key, value in given.items() if value]:
        raise ConfigError(
            f"{unused[0]}: has no effect with task={task.name}, which ranks nothing; leave it out"
        )
