"""Golden cases of ALBEF's grounding: training steps, evaluation in both modes, the bare file."""

from __future__ import annotations

from pathlib import PurePosixPath

import torch
from torch import Tensor

from itr.clock import Clock
from itr.data.text.cleaners import albef
from itr.data.text.tokenizer import Tokenizer
from itr.evaluation.grounding_boxes import box_scores, choose_box, upsample
from itr.models.albef import ALBEF
from itr.official.albef import official_state
from itr.training.optim import build_optimizer, lr_factor, set_learning_rates
from itr.view import TextView
from tests.parity.albef_build import batch_of, draws_of, model_of
from tests.parity.albef_evaluation import padded
from tests.parity.albef_files import check_round_trip
from tests.parity.albef_items import check_boxes
from tests.parity.albef_training import optim_of, schedule_of
from tests.parity.harness import Case, Runner

EXPRESSIONS = TextView(cleaner="albef", end=False)


def train_steps(case: Case) -> None:
    model: ALBEF = model_of(case, "grounding", clamp_temperature=False).train()
    annotations, pixels = case.data["annotations"], case["in.image"]
    cleaned = [albef(entry["text"]) for entry in annotations]
    case.holds("cleaned texts", cleaned == case.data["cleaned"])
    names = [PurePosixPath(entry["image"]).name for entry in annotations]
    first = {name: number for number, name in enumerate(dict.fromkeys(names))}
    image_of = torch.tensor([first[name] for name in names])
    case.check("out.idx", image_of[case["in.rows"]])
    tokenizer = Tokenizer.from_vocab(case.data["vocab"])
    optim, scheduled = optim_of(case), schedule_of(case.data["hyper"]["schedular"])
    optimizer = build_optimizer(model, optim)
    clock = Clock(total_epochs=case.data["hyper"]["schedular"]["epochs"])
    found: dict[str, list[float]] = {"loss_ita": [], "loss_itm": [], "alpha": [], "lr": []}
    step = 0
    for epoch, steps in enumerate(case.data["steps_per_epoch"]):
        clock.epoch, clock.batches_per_epoch = epoch, steps
        for clock.batch in range(steps):
            rows = case["in.rows"][step]
            tokens = padded(tokenizer, [annotations[r]["text"] for r in rows], EXPRESSIONS)
            batch = batch_of(pixels[step], *tokens, image_of[rows])
            model.before_step(clock)
            terms = model(batch, clock, draws_of(case, f"step{step}.")).losses
            optimizer.zero_grad()
            sum(terms.values(), torch.zeros(())).backward()
            factor = lr_factor(clock, scheduled)
            set_learning_rates(optimizer, factor)
            optimizer.step()
            model.after_step(clock)
            found["loss_ita"].append(float(terms["itc"].detach()))
            found["loss_itm"].append(float(terms["itm"].detach()))
            found["alpha"].append(model.alpha(clock))
            found["lr"].append(optim.lr * factor)
            step += 1
            clock.updates = clock.forwards = step
    for key, values in found.items():
        dtype = case[f"out.{key}"].dtype
        case.check(f"out.{key}", torch.tensor(values, dtype=torch.float64).to(dtype))
    state = official_state(model)
    for name in case.below("post."):
        case.check(f"post.{name}", state[name])


def evaluation(case: Case) -> None:
    model: ALBEF = model_of(case, "grounding").eval()
    tokenizer, mode = Tokenizer.from_vocab(case.data["vocab"]), case.data["gradcam_mode"]
    maps: list[Tensor] = []
    expressions: list[int] = []
    for number, texts in enumerate(case.data["texts"]):
        batch = batch_of(
            case[f"in.image_batch{number}"], *padded(tokenizer, texts, EXPRESSIONS), None
        )
        maps.append(model.grounding_maps(batch, mode, case.data["block_num"]))
        expressions += case[f"in.ref_id_batch{number}"].tolist()
    case.check("out.maps", torch.cat(maps))
    _check_choice(case, torch.cat(maps), expressions)


def _check_choice(case: Case, maps: Tensor, expressions: list[int]) -> None:
    refs = {ref["ref_id"]: ref for ref in case.data["refs"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in case.data["images"]}
    boxes = {entry["id"]: tuple(entry["bbox"]) for entry in case.data["annotations"]}
    shown = [refs[ref_id] for ref_id in expressions]
    chosen = []
    for row, ref in enumerate(shown):
        proposals = [tuple(box[:4]) for box in case.data["dets"][str(ref["image_id"])]]
        wide = upsample(maps[row], *sizes[ref["image_id"]])
        if row == 0:
            case.check("out.upsampled_0", wide)
        previous = chosen[-1].box if chosen else None
        chosen.append(choose_box(box_scores(wide, proposals), proposals, "previous", previous))
    splits = [ref["split"] for ref in shown]
    check_boxes(case, [boxes[ref["ann_id"]] for ref in shown], chosen, splits)


RUNNERS: dict[str, Runner] = {
    "grounding_checkpoint_bare": check_round_trip,
    "grounding_evaluation_itc": evaluation,
    "grounding_evaluation_itm": evaluation,
    "grounding_train_steps": train_steps,
}
