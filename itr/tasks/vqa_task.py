"""Visual question answering: answers are ranked among the entries of a list. Q questions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from itr.batch import Batch
from itr.data.config import DataConfig
from itr.data.downstream.open import find_answer_list
from itr.data.downstream.vqa import ANSWER_LIST, read_answer_list
from itr.data.items import Question
from itr.data.records import Split
from itr.data.text.answers import tokenize_answers
from itr.data.text.token_table import CaptionPadder
from itr.errors import ConfigError
from itr.evaluation.predictions import Predictions
from itr.evaluation.vqa_accuracy import (
    EVALUATORS,
    USUAL_ANSWERS,
    answer_coverage,
    majority_answer,
    make_answer_list,
    mean_by_group,
    vqa_scores,
)
from itr.files import atomic_write, explain_write_error
from itr.models.albef.question_answering import ALBEFQuestionAnswering
from itr.nn.answer_ranking import AnswerList
from itr.options import configured, option
from itr.tasks.item_evaluator import ItemEvaluator, Outputs, accuracies
from itr.tasks.item_task import ItemTask
from itr.tasks.task import EvaluationSettings
from itr.view import TextView

SHOWN = 5  # answers of each question that the predictions keep


@dataclass
@configured("task/vqa.yaml", "task")
class VqaConfig:
    """Options of ``task=vqa``."""

    name: str = option()
    answer_list: str | None = option()
    k: int = option(at_least=1)
    first_token_twice: bool = option()
    evaluator: str = option(choices=EVALUATORS)


class VqaTask(ItemTask):
    """Questions about pictures."""

    Config = VqaConfig

    def __init__(self, config: VqaConfig):
        super().__init__(config)
        self.answers: list[str] = []

    def learn(self, train: Split, data: DataConfig) -> list[str]:
        """Take the answer list: a file, or the most frequent answers of the training questions."""
        path = self._list_file(data)
        if path is not None:
            return self._read_list(path)
        votes = [question.votes for question in questions_of(train)]
        self.answers = make_answer_list(votes)
        return [
            f"answers: the {len(self.answers)} most frequent of the training questions (at most "
            f"{USUAL_ANSWERS}), since there is no {ANSWER_LIST}"
        ]

    def state(self) -> dict[str, Any]:
        """The answer list."""
        return {"answers": self.answers}

    def restore(self, state: Mapping[str, Any], data: DataConfig) -> list[str]:
        """The answer list of the checkpoint, unless ``task.answer_list`` names another one."""
        stored = state.get("answers")
        if stored and self.config.answer_list is None:
            self.answers = list(stored)
            return []
        path = self._list_file(data)
        if path is None:
            raise ConfigError(
                f"task.answer_list: the checkpoint has no list of answers, and {data.root} holds "
                f"no {ANSWER_LIST}; pass task.answer_list=FILE (a JSON list of texts)"
            )
        return self._read_list(path)

    def _read_list(self, path: Path) -> list[str]:
        self.answers = read_answer_list(path)
        return [f"answers: {len(self.answers)}, from {path}"]

    def _list_file(self, data: DataConfig) -> Path | None:
        given = self.config.answer_list
        if given is None:
            return find_answer_list(data)
        path = Path(given).expanduser()
        if not path.is_file():
            raise ConfigError(f"task.answer_list={given}: no such file; pass a JSON list of texts")
        return path

    def evaluator(self, split: Split, settings: EvaluationSettings) -> VqaEvaluator:
        """Ranks the answers. Raises ConfigError if ``k`` exceeds the list."""
        if self.config.k > len(self.answers):
            raise ConfigError(
                f"task.k={self.config.k}: the answer list has {len(self.answers)} entries; pass "
                f"task.k={len(self.answers)} or less"
            )
        return VqaEvaluator(split, settings, self.config, self.answers)

    def submit(self, predictions: Predictions, folder: Path, split: str) -> list[str]:
        """Write ``answers_<split>.json``, the format of VQA's server."""
        path = Path(folder) / f"answers_{split}.json"
        order = np.argsort([str(i).zfill(20) for i in predictions.ids], kind="stable").tolist()
        rows = [
            {"question_id": predictions.ids[n], "answer": predictions.predicted[n]} for n in order
        ]
        with explain_write_error(path, "the answers"), atomic_write(path) as file:
            file.write(json.dumps(rows).encode())
        if np.isfinite(predictions.scores).all():
            return []
        return [
            f"{path}: {len(rows)} answers; upload this file to VQA's server, which wants every "
            "question of test2015, for test-dev and test-std alike"
        ]


class VqaEvaluator(ItemEvaluator):
    """Answers every question from the list, and scores the answers as VQA's evaluator does."""

    protocol = "vqa"
    share_images = True

    def __init__(
        self, data: Split, settings: EvaluationSettings, config: VqaConfig, answers: list[str]
    ):
        super().__init__(data, settings)
        self.config, self.answers = config, answers
        table = tokenize_answers(settings.tokenizer, answers)
        fields = CaptionPadder(table, TextView()).fields(table.flat, table.lengths)
        self.list = AnswerList.of(fields["tokens"], fields["token_mask"]).to(settings.device)

    def outputs(self, model: ALBEFQuestionAnswering, batch: Batch) -> dict[str, Tensor]:
        """The first answers of each question and their probabilities."""
        states, mask = model.encode_questions(batch)
        ids, probabilities = model.rank_answers(
            states, mask, self.list, self.config.k, self.config.first_token_twice
        )
        return {"ids": ids[:, :SHOWN], "probabilities": probabilities[:, :SHOWN]}

    def predict(self, outputs: Outputs) -> Predictions:
        """The most probable answer of each question."""
        questions = questions_of(self.data)
        ids, probabilities = outputs["ids"].astype(np.int64), outputs["probabilities"]
        given = [self.answers[row[0]] for row in ids]
        votes = [question.votes for question in questions]
        return Predictions(
            predicted=given,
            truth=[majority_answer(each) for each in votes],
            scores=vqa_scores(given, votes, self.config.evaluator) / 100.0,
            details=[
                {
                    "answers": [
                        [self.answers[i], round(float(p), 4)] for i, p in zip(*row, strict=True)
                    ],
                    "votes": list(question.votes),
                    "answer_type": question.answer_type,
                }
                for question, *row in zip(questions, ids, probabilities, strict=True)
            ],
            **self.described(),
        )

    def metrics(self, outputs: Outputs, predictions: Predictions) -> dict[str, Any]:
        """Accuracy over all questions and by type, and how many answers the list covers."""
        questions, known = questions_of(self.data), np.isfinite(predictions.scores)
        if not known.any():
            return {"n_answers": len(self.answers)}
        scored = [question for question, k in zip(questions, known, strict=True) if k]
        types = mean_by_group(100.0 * predictions.scores[known], [q.answer_type for q in scored])
        return {
            **accuracies(predictions),
            **{f"accuracy_{name.replace('/', '_')}": value for name, value in types.items()},
            "answer_coverage": answer_coverage([q.votes for q in scored], self.answers),
            "n_answers": len(self.answers),
            "k": self.config.k,
        }


def questions_of(split: Split) -> list[Question]:
    """The items of ``split``, which are questions."""
    return [item for item in split.items or () if isinstance(item, Question)]
