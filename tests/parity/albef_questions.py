"""Golden cases of ALBEF's visual question answering: steps, ranked answers, the authors' files."""

from __future__ import annotations

import torch
from torch import Tensor

from itr.batch import Batch
from itr.clock import Clock
from itr.data.text.tokenizer import Tokenizer
from itr.models.albef.config import QUESTION_CLEANERS
from itr.models.albef.encoders import fused_states
from itr.models.albef.question_answering import ALBEFQuestionAnswering, question_rows
from itr.nn.answer_ranking import AnswerList, RankedAnswers, rank_answers
from itr.nn.distillation import answer_costs
from itr.view import TextView
from tests.parity.albef_build import model_of
from tests.parity.albef_evaluation import padded
from tests.parity.albef_files import check_import, check_round_trip
from tests.parity.albef_steps import run_steps
from tests.parity.harness import Case, Runner

EOS = "[SEP]"


def answer_ids(tokenizer: Tokenizer, answers: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask of ``answers``, which end with the literal `EOS`."""
    return padded(tokenizer, [answer.removesuffix(EOS) for answer in answers], TextView())


def batch_of(
    pixels: Tensor,
    question: tuple[Tensor, Tensor],
    answer: tuple[Tensor, Tensor],
    weights: Tensor,
    counts: Tensor,
) -> Batch:
    return Batch(
        image_id=torch.arange(len(pixels)),
        pixels=pixels,
        tokens=question[0],
        token_mask=question[1].bool(),
        answer_tokens=answer[0],
        answer_mask=answer[1].bool(),
        answer_weights=weights,
        answer_counts=tuple(counts.tolist()),
    )


def train_forward(case: Case) -> None:
    model = model_of(case, "vqa", distill_warmup=False).train()
    question = case["in.input_ids"], case["in.attention_mask"]
    answer = case["in.answer_ids"], case["in.answer_mask"]
    batch = batch_of(case["in.image"], question, answer, case["in.weights"], case["in.k"])
    clock = Clock(batches_per_epoch=1)
    model.before_step(clock)
    parts = _parts(model, batch)
    case.check("out.question_states", parts["question_states"])
    case.check("out.logits", parts["logits"])
    case.check("out.logits_m", parts["logits_m"])
    case.check("out.loss", model(batch, clock, None).losses["answer"])


def _parts(model: ALBEFQuestionAnswering, batch: Batch) -> dict[str, Tensor]:
    """Logits of all positions; the step itself leaves out the last."""
    assert batch.pixels is not None
    assert batch.answer_tokens is not None and batch.answer_mask is not None
    tokens, mask = model.words_of(batch)
    rows = question_rows(batch.answer_counts, batch.answer_tokens.device)
    found: dict[str, Tensor] = {}
    for end, owner in (("", model), ("_m", model.twin)):
        if owner is None:
            continue
        states = fused_states(owner, batch.pixels, tokens, mask)
        decoder = owner.get_submodule("decoder")
        keys = decoder.body.keys_values(states)
        hidden = decoder(batch.answer_tokens, batch.answer_mask, keys, mask, rows)
        found[f"question_states{end}"] = states
        found[f"logits{end}"] = decoder.logits(hidden)
    if "logits_m" in found:
        found["logits_m"] = found["logits_m"][:, :-1]
    return found


def train_steps(case: Case) -> None:
    hyper = case.data["hyper"]
    model = model_of(case, "vqa")
    tokenizer = Tokenizer.from_vocab(case.data["vocab"])
    view = TextView(
        cleaner=QUESTION_CLEANERS[0], end=False, max_length=hyper["question_max_length"]
    )

    def batch_at(step: int) -> Batch:
        question = padded(tokenizer, case.data["questions"][step], view)
        answer = answer_ids(tokenizer, case.data["answers"][step])
        case.check(f"out.question_ids_step{step}", question[0])
        case.check(f"out.answer_ids_step{step}", answer[0])
        weights, counts = case[f"in.weights_step{step}"], case[f"in.n_step{step}"]
        return batch_of(case["in.image"][step], question, answer, weights, counts)

    def inside(batch: Batch, clock: Clock) -> None:
        parts = _parts(model, batch)
        for name, value in parts.items():
            if f"out.{name}_step0" in case:
                case.check(f"out.{name}_step0", value)
        states = model.states(batch) | model.frozen_states(batch)
        costs = model.costs(states, batch, model.alpha(clock))
        case.check("out.answer_loss_step0", costs)
        tokens, mask = batch.answer_tokens, batch.answer_mask
        assert tokens is not None and mask is not None
        whole = answer_costs(
            parts["logits"][:, :-1], tokens[:, 1:], mask[:, 1:], parts.get("logits_m"), 0.0
        )
        case.equal("answer_loss without soft targets", whole, costs, 1e-4)

    run_steps(case, model, batch_at, inside=inside)


def ranked(case: Case) -> None:
    model = model_of(case, "vqa").eval()
    answers = AnswerList.of(case["in.answer_ids"], case["in.answer_mask"].bool())
    batch = Batch(
        image_id=torch.arange(len(case["in.image"])),
        pixels=case["in.image"],
        tokens=case["in.input_ids"],
        token_mask=case["in.attention_mask"].bool(),
    )
    with torch.inference_mode():
        states, mask = model.encode_questions(batch)
        ids, probabilities = model.rank_answers(
            states, mask, answers, k=case.data["hyper"]["k_test"]
        )
    case.check("out.topk_ids", ids)
    case.check("out.topk_probs", probabilities)


def evaluation(case: Case) -> None:
    hyper, listed = case.data["hyper"], case.data["answer_list"]
    model = model_of(case, "vqa").eval()
    tokenizer = Tokenizer.from_vocab(case.data["vocab"])
    ids, mask = answer_ids(tokenizer, [answer + hyper["eos"] for answer in listed])
    case.check("out.answer_ids", ids)
    case.check("out.answer_mask", mask.long())
    answers = AnswerList.of(ids, mask)
    view = TextView(cleaner=QUESTION_CLEANERS[1], end=False)
    twice, once, numbers = [], [], []
    for number, questions in enumerate(case.data["questions"]):
        tokens, words = padded(tokenizer, questions, view)
        pixels = case[f"in.image_batch{number}"]
        numbers += case[f"in.question_id_batch{number}"].tolist()
        batch = Batch(image_id=torch.arange(len(tokens)), pixels=pixels, tokens=tokens)
        batch.token_mask = words
        with torch.inference_mode():
            given = (model.decoder, *model.encode_questions(batch), answers, hyper["k_test"])
            twice.append(rank_answers(*given))
            once.append(rank_answers(*given, first_token_twice=False))
    all_of = RankedAnswers(*map(torch.cat, zip(*twice, strict=True)))
    case.check("out.first_token_prob", all_of.first.exp())
    case.check("out.topk_ids", all_of.ids)
    case.check("out.topk_probs", all_of.probabilities)
    case.check("out.answer_log_likelihood", all_of.likelihood)
    best = [listed[row] for row in all_of.ids[:, 0].tolist()]
    expected = [(entry["question_id"], entry["answer"]) for entry in case.data["result"]]
    case.holds("result", list(zip(numbers, best, strict=True)) == expected)
    single = [listed[row] for part in once for row in part.ids[:, 0].tolist()]
    case.holds("result, first token once", single == case.data["result_single_count"])
    differ = sum(a != b for a, b in zip(best, single, strict=True))
    case.holds("differences", differ == case.data["differs_from_single"])


RUNNERS: dict[str, Runner] = {
    "vqa_checkpoint_finetuned": check_round_trip,
    "vqa_checkpoint_import": lambda case: check_import(case, "vqa"),
    "vqa_evaluation": evaluation,
    "vqa_rank_answers": ranked,
    "vqa_train_forward": train_forward,
    "vqa_train_hard": train_steps,
    "vqa_train_steps": train_steps,
}
