"""Golden cases of ALBEF's visual entailment: steps, evaluation, the authors' files."""

from __future__ import annotations

import torch
from torch import Tensor

from itr.batch import Batch
from itr.clock import Clock
from itr.data.text.tokenizer import Tokenizer
from itr.evaluation.label_accuracy import label_accuracy
from itr.models.albef.encoders import fused_states, image_tokens
from itr.view import TextView
from tests.parity.albef_build import model_of
from tests.parity.albef_evaluation import padded
from tests.parity.albef_files import check_import, check_round_trip
from tests.parity.albef_steps import run_steps
from tests.parity.harness import Case, Runner

STATEMENTS = TextView(end=False)  # they are cleaned already


def batch_of(
    pixels: Tensor, ids: Tensor, mask: Tensor, labels: Tensor, second: Tensor | None = None
) -> Batch:
    return Batch(
        image_id=torch.arange(len(ids)),
        pixels=pixels,
        second_pixels=second,
        tokens=ids,
        token_mask=mask.bool(),
        labels=labels,
    )


def forward(case: Case, task: str, batch: Batch) -> None:
    """Logits before any update, then the loss of a step."""
    model = model_of(case, task, distill_warmup=False)
    clock = Clock(batches_per_epoch=1)
    with torch.inference_mode():
        case.check("out.logits_eval", model.eval().logits(batch))
    model.train()
    model.before_step(clock)
    case.check("out.loss", model(batch, clock, None).losses["label"])


def ve_forward(case: Case) -> None:
    given = (case["in.input_ids"], case["in.attention_mask"], case["in.targets"])
    forward(case, "entailment", batch_of(case["in.image"], *given))


def tokens_of(case: Case, texts: list[str], step: int | None = None) -> tuple[Tensor, Tensor]:
    ids, mask = padded(Tokenizer.from_vocab(case.data["vocab"]), texts, STATEMENTS)
    if step is not None:
        case.check(f"out.input_ids_step{step}", ids)
    return ids, mask


def check_heads(case: Case, model, batch: Batch) -> None:
    """Logits of model and teacher, if there is one, in the first step."""
    case.check("out.logits_step0", model.logits(batch))
    if model.twin is None:
        return
    with torch.no_grad():
        teacher = model.twin["head"](model.first_words(model.twin, batch))
    case.check("out.logits_m_step0", teacher)


def train_steps(case: Case) -> None:
    model = model_of(case, "entailment")
    count = case["in.image"].shape[1]

    def batch_at(step: int) -> Batch:
        tokens = tokens_of(case, case.data["texts"][step * count : (step + 1) * count], step)
        return batch_of(case["in.image"][step], *tokens, case["in.targets"][step])

    def inside(batch: Batch, clock: Clock) -> None:
        assert batch.pixels is not None
        case.check("out.image_embeds_step0", image_tokens(model, batch.pixels))
        words = model.words_of(batch)
        case.check("out.text_states_step0", fused_states(model, batch.pixels, *words))
        check_heads(case, model, batch)

    run_steps(case, model, batch_at, inside=inside)


def evaluate(case: Case) -> None:
    model = model_of(case, "entailment").eval()
    logits, labels = [], []
    for number, texts in enumerate(case.data["texts"]):
        labels.append(case[f"in.targets_batch{number}"])
        batch = batch_of(case[f"in.image_batch{number}"], *tokens_of(case, texts), labels[-1])
        with torch.inference_mode():
            logits.append(model.logits(batch))
    found, expected = torch.cat(logits), torch.cat(labels)
    case.check("out.logits", found)
    case.check("out.predictions", found.argmax(dim=1))
    correct = int((found.argmax(dim=1) == expected).sum())
    case.holds("correct", (correct, len(expected)) == (case.data["correct"], case.data["total"]))
    share = label_accuracy(found.argmax(dim=1).numpy(), expected.numpy(), ())["accuracy"] / 100.0
    case.check("out.acc", torch.tensor(float(f"{share:.4f}"), dtype=torch.float64))


RUNNERS: dict[str, Runner] = {
    "ve_checkpoint_finetuned": check_round_trip,
    "ve_checkpoint_import": lambda case: check_import(case, "entailment"),
    "ve_evaluate": evaluate,
    "ve_forward": ve_forward,
    "ve_train_steps": train_steps,
}
