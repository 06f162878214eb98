"""Golden cases of ALBEF's NLVR2 and its text assignment: steps, evaluation, the authors' files."""

from __future__ import annotations

import torch
from torch import Tensor

from itr.batch import Batch
from itr.clock import Clock
from itr.data.text.tokenizer import Tokenizer
from itr.draws import ReplayedDraws
from itr.evaluation.label_accuracy import group_consistency, label_accuracy
from itr.models.albef.encoders import image_tokens
from itr.models.albef.image_pairs import attend_to
from itr.models.albef.text_assignment import NEITHER
from itr.nn.bert.halves import text_states
from itr.view import TextView
from tests.parity.albef_build import model_of
from tests.parity.albef_entailment import batch_of, check_heads, forward, tokens_of
from tests.parity.albef_evaluation import padded
from tests.parity.albef_files import check_import, check_round_trip
from tests.parity.albef_steps import run_steps
from tests.parity.harness import Case, Runner

# NLVR2


def nlvr2_forward(case: Case) -> None:
    first, second = case["in.image"].chunk(2)
    given = (case["in.input_ids"], case["in.attention_mask"], case["in.targets"])
    forward(case, "nlvr2", batch_of(first, *given, second))


def train_steps(case: Case) -> None:
    model = model_of(case, "nlvr2")
    count = case["in.image0"].shape[1]

    def batch_at(step: int) -> Batch:
        tokens = tokens_of(case, case.data["texts"][step * count : (step + 1) * count], step)
        first, second = case["in.image0"][step], case["in.image1"][step]
        return batch_of(first, *tokens, case["in.targets"][step], second)

    def inside(batch: Batch, clock: Clock) -> None:
        assert batch.pixels is not None and batch.second_pixels is not None
        both = image_tokens(model, torch.cat([batch.pixels, batch.second_pixels]))
        case.check("out.image_embeds_step0", both)
        tokens, mask = model.words_of(batch)
        states = text_states(model.text, tokens, mask)
        fused = model.fusion(states, mask, attend_to(model.fusion.keys_values(both)))
        case.check("out.text_states_step0", fused)
        check_heads(case, model, batch)

    run_steps(case, model, batch_at, inside=inside)


def evaluate(case: Case) -> None:
    model = model_of(case, "nlvr2").eval()
    logits, labels = [], []
    for number, texts in enumerate(case.data["texts"]):
        first, second = (case[f"in.image{side}_batch{number}"] for side in (0, 1))
        labels.append(case[f"in.targets_batch{number}"])
        with torch.inference_mode():
            batch = batch_of(first, *tokens_of(case, texts), labels[-1], second)
            logits.append(model.logits(batch))
    found = torch.cat(logits)
    predictions, expected = found.argmax(dim=1).numpy(), torch.cat(labels).numpy()
    case.check("out.logits", found)
    case.check("out.predictions", predictions)
    share = label_accuracy(predictions, expected, ())["accuracy"] / 100.0
    case.check("out.acc", torch.tensor(float(f"{share:.4f}"), dtype=torch.float64))
    case.check("out.accuracy", torch.tensor(share, dtype=torch.float64))
    groups = ["-".join(name.split("-")[i] for i in (1, 3)) for name in case.data["identifiers"]]
    whole = group_consistency(predictions == expected, groups)
    case.check("out.consistency", torch.tensor(whole, dtype=torch.float64) / 100.0)


# Text assignment


def draws_of(case: Case, prefix: str = "") -> ReplayedDraws:
    """Ours of a whole batch, from theirs of one caption after another."""
    given = case.below(f"in.draw.{prefix}")
    other, another = given["neg"].unbind(dim=1)
    neither = given["u0"] <= NEITHER
    return ReplayedDraws([other, another.clamp(min=0), neither, given["u1"] > 0.5])


def assignment_batch(pixels: Tensor, ids: Tensor, mask: Tensor) -> Batch:
    return Batch(image_id=torch.arange(len(ids)), pixels=pixels, tokens=ids, token_mask=mask.bool())


def pretrain_forward(case: Case) -> None:
    model = model_of(case, "assignment").train()
    batch = assignment_batch(case["in.image"], case["in.input_ids"], case["in.attention_mask"])
    clock, draws = Clock(batches_per_epoch=1), draws_of(case)
    assert batch.image_id is not None
    states = model.states(batch)
    case.check("out.weights", model.image_weights(states["image"], batch.image_id))
    shown = model.assign(states["image"], batch.image_id, draws_of(case))
    case.check("out.logits", model.assignment_logits(states, model.words_of(batch)[1], shown))
    case.check("out.loss", model(batch, clock, draws).losses["label"])


def pretrain_steps(case: Case) -> None:
    model = model_of(case, "assignment")
    tokenizer = Tokenizer.from_vocab(case.data["vocab"])
    count = case["in.image"].shape[1]
    view = TextView(end=False, max_length=case.data["hyper"]["max_length"])
    labels: list[Tensor] = []

    def batch_at(step: int) -> Batch:
        texts = case.data["texts"][step * count : (step + 1) * count]
        ids, mask = padded(tokenizer, texts, view)
        case.check(f"out.input_ids_step{step}", ids)
        batch = assignment_batch(case["in.image"][step], ids, mask)
        images = image_tokens(model, case["in.image"][step])
        labels.append(model.assign(images, batch.image_id, draws_of(case, f"step{step}.")).labels)
        return batch

    def inside(batch: Batch, clock: Clock) -> None:
        states = model.states(batch)
        case.check("out.image_embeds_step0", states["image"])
        shown = model.assign(states["image"], batch.image_id, draws_of(case, "step0."))
        logits = model.assignment_logits(states, model.words_of(batch)[1], shown)
        case.check("out.logits_step0", logits)

    run_steps(case, model, batch_at, lambda step: draws_of(case, f"step{step}."), inside)
    case.check("out.labels", torch.stack(labels))


RUNNERS: dict[str, Runner] = {
    "nlvr2_checkpoint_finetuned": check_round_trip,
    "nlvr2_checkpoint_import": lambda case: check_import(case, "nlvr2", "copies_before"),
    "nlvr2_checkpoint_import_ta": lambda case: check_import(case, "assignment"),
    "nlvr2_checkpoint_ta": check_round_trip,
    "nlvr2_evaluate": evaluate,
    "nlvr2_forward": nlvr2_forward,
    "nlvr2_pretrain_forward": pretrain_forward,
    "nlvr2_pretrain_steps": pretrain_steps,
    "nlvr2_train_steps": train_steps,
}
