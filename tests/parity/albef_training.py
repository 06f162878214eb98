"""Golden cases of ALBEF's training: steps, schedule, parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from itr.clock import Clock
from itr.data.text.tokenizer import Tokenizer
from itr.draws import ReplayedDraws
from itr.losses.infonce import InfoNCE
from itr.models.albef import (
    ALBEF,
    image_features,
    text_features,
)
from itr.models.albef.encoders import ALBEFEncoders
from itr.models.momentum_contrast import MomentumFeatures
from itr.nn.bert.halves import text_states
from itr.nn.bert.masked_lm import mask_tokens
from itr.nn.hard_negatives import HardNegatives
from itr.official.albef import official_state
from itr.training.optim import (
    OptimConfig,
    ScheduleConfig,
    build_optimizer,
    lr_factor,
    set_learning_rates,
)
from itr.view import TextView
from tests.parity.albef_build import (
    batch_of,
    config_of,
    draws_of,
    facts_of,
    gradients,
    mask_id_of,
    model_of,
    official_names,
)
from tests.parity.albef_evaluation import padded
from tests.parity.albef_losses import check_contrast, check_weights
from tests.parity.harness import Case


def train_step(case: Case) -> None:
    task = "pretrain" if "out.loss_mlm" in case else "retrieval"
    model = model_of(case, task, distill_warmup=False)
    lr = case.data["hyper"]["optimizer"]["lr"]
    optimizer = build_optimizer(model, optim_of(case))
    ids, mask = case["in.input_ids"], case["in.attention_mask"]
    batch = batch_of(case["in.image"], ids, mask, case.tensors.get("in.idx"))
    draws, clock = draws_of(case), Clock(batches_per_epoch=1)
    model.train()
    model.before_step(clock)
    _check_parts(case, model, batch, task)
    terms = model(batch, clock, draws)
    total = sum(terms.losses.values(), torch.zeros(()))
    case.check("out.loss_ita", terms.losses["itc"])
    case.check("out.loss_itm", terms.losses["itm"])
    case.check("out.loss", total)
    if task == "pretrain":
        case.check("out.loss_mlm", terms.losses["mlm"])
    check_weights(case, "", draws.weights)
    total.backward()
    found = gradients(model)
    for name in case.below("grad."):
        case.check(f"grad.{name}", found[name])
    optimizer.step()
    model.after_step(clock)
    check_state(case, model, moved=2 * lr)


def _check_parts(case: Case, model: ALBEF, batch, task: str) -> None:
    """Everything inside the step, piece by piece (dropout is 0: computing it twice is the same)."""
    assert batch.pixels is not None and batch.tokens is not None and batch.token_mask is not None
    mask = batch.token_mask
    images = image_features(model, batch.pixels)
    texts = text_features(model, batch.tokens, mask)
    with torch.no_grad():
        image_keys = image_features(model.twin, batch.pixels)
        text_keys = text_features(model.twin, batch.tokens, mask)
    keys = MomentumFeatures(image_keys.unit, text_keys.unit, image_keys.tokens)
    check_contrast(
        case,
        "",
        model,
        model.contrast(images.unit, texts.unit, keys, batch.image_id, model.config.distill_weight),
        keys,
    )
    for name, value in {
        "image_embeds": images.tokens,
        "image_embeds_m": image_keys.tokens,
        "text_embeds": texts.tokens,
        "text_embeds_m": text_keys.tokens,
        "image_feat": images.unit,
        "text_feat": texts.unit,
    }.items():
        if f"out.{name}" in case:
            case.check(f"out.{name}", value)
    fused = model.fusion.keys_values(images.tokens)
    true = torch.ones(len(mask), dtype=torch.bool)
    chosen = HardNegatives(case["in.draw.neg_image_idx"], case["in.draw.neg_text_idx"], true, true)
    text_of, image_of = chosen.rows()
    everything = model.fusion(texts.tokens[text_of], mask[text_of], fused, image_of)
    case.check("out.fusion_pos", everything[: len(mask)])
    case.check("out.fusion_neg", everything[len(mask) :])
    case.check("out.itm_logits", model.matching_logits(texts.tokens, mask, fused, chosen))
    if task == "pretrain":
        _check_words(case, model, batch, fused, keys)


def _check_words(case: Case, model: ALBEF, batch, fused, keys: MomentumFeatures) -> None:
    """The logits of all places; the step itself computes only those that are guessed."""
    recorded = draws_of(case).recorded[1:]
    hidden = mask_tokens(
        batch.tokens,
        batch.token_mask,
        ReplayedDraws(recorded),
        model.config.mask_probability,
        mask_id_of(case),
        model.facts.vocabulary,
    )
    case.check("out.masked_ids", hidden.tokens)
    case.check("out.labels", hidden.labels)
    for name, owner in (("mlm_logits", model), ("logits_m", model.twin)):
        text, fusion = owner.get_submodule("text"), owner.get_submodule("fusion")
        seen = fused if owner is model else fusion.keys_values(keys.image_tokens)
        states = fusion(text_states(text, hidden.tokens, batch.token_mask), batch.token_mask, seen)
        if owner is model:
            case.check("out.multimodal_mlm", states)
        words = text.embeddings.word_embeddings.weight
        case.check(f"out.{name}", owner.get_submodule("words")(states, words))


def optim_of(case: Case) -> OptimConfig:
    given = case.data["hyper"]["optimizer"]
    hyper = case.data["hyper"]
    return OptimConfig(
        lr=given["lr"],
        weight_decay=given["weight_decay"],
        betas=list(hyper.get("betas", [0.9, 0.999])),
        eps=hyper.get("eps", 1e-8),
        max_norm=None,
    )


def check_state(case: Case, model: ALBEFEncoders, moved: float) -> None:
    """``post.*``. Key biases have no true gradient (they shift all logits of a softmax), and AdamW
    makes full steps of their rounding noise: the steps of both sides bound the difference."""
    found = official_state(model)
    loose = {name for name, _ in case.data["do_not_compare"]["tensors"]}
    for name, expected in case.below("post.").items():
        key, value = f"post.{name}", found[name]
        if key not in loose:
            case.check(key, value)
            continue
        case.account_for(key)
        difference = (value - expected).abs()
        case.holds(f"{key} moved too far", bool((difference <= moved).all()))
        if name.endswith("qkv.bias"):  # only its middle third belongs to the keys
            for part in (0, 2):
                theirs, ours = expected.chunk(3)[part], value.chunk(3)[part]
                case.equal(f"{key}[{part}]", ours, theirs, case.tolerance(key)[0])


def multi_step(case: Case) -> None:
    task = "pretrain" if "out.loss_mlm" in case else "retrieval"
    model = model_of(case, task)
    model.train()
    optim, scheduled = optim_of(case), schedule_of(case.data["hyper"]["schedular"])
    optimizer = build_optimizer(model, optim)
    tokenizer = Tokenizer.from_vocab(case.data["vocab"])
    pixels, count = case["in.image"], case["in.image"].shape[1]
    view = TextView(end=False, max_length=25 if task == "pretrain" else None)
    epochs = case.data["steps_per_epoch"]
    clock = Clock(total_epochs=case.data["hyper"]["schedular"]["epochs"])
    found: dict[str, list[float]] = {key: [] for key in ("ita", "itm", "mlm", "alpha", "lr")}
    step = 0
    for epoch, steps in enumerate(epochs):
        clock.epoch, clock.batches_per_epoch = epoch, steps
        for clock.batch in range(steps):
            texts = case.data["texts"][step * count : (step + 1) * count]
            ids, mask = padded(tokenizer, texts, view)
            case.check(f"out.input_ids_step{step}", ids)
            image_id = case["in.idx"][step] if "in.idx" in case else None
            batch = batch_of(pixels[step], ids, mask, image_id)
            model.before_step(clock)
            terms = model(batch, clock, draws_of(case, f"step{step}."))
            optimizer.zero_grad()
            sum(terms.losses.values(), torch.zeros(())).backward()
            factor = lr_factor(clock, scheduled)
            set_learning_rates(optimizer, factor)
            optimizer.step()
            model.after_step(clock)
            clock.updates, clock.forwards, step = step + 1, step + 1, step + 1
            for key, value in terms.losses.items():
                found["ita" if key == "itc" else key].append(float(value.detach()))
            found["alpha"].append(model.alpha(clock))
            found["lr"].append(optim.lr * factor)
    for key, values in found.items():
        if values:
            name = f"out.{key}" if key in ("alpha", "lr") else f"out.loss_{key}"
            dtype = case[name].dtype
            case.check(name, torch.tensor(values, dtype=torch.float64).to(dtype))
    if "out.lr_end" in case:
        clock.epoch = len(epochs)
        end = torch.tensor(optim.lr * lr_factor(clock, scheduled), dtype=torch.float64)
        case.check("out.lr_end", end)
    check_state(case, model, moved=2 * optim.lr * step)


def schedule_of(given) -> ScheduleConfig:
    return ScheduleConfig(
        kind="epoch_cosine",
        end_factor=given["min_lr"] / given["lr"],
        start_factor=given["warmup_lr"] / given["lr"],
        warmup_updates=100 * given["warmup_epochs"],
    )


def lr_schedule(case: Case) -> None:
    for name, config in case.data["configs"].items():
        given, scheduled = config["schedular"], schedule_of(config["schedular"])
        clock, rates = Clock(total_epochs=given["epochs"]), []
        for clock.epoch in range(given["epochs"]):
            first = "steps_in_epoch_0" if clock.epoch == 0 else "steps_in_later_epochs"
            for _ in range(config[first]):
                rates.append(given["lr"] * lr_factor(clock, scheduled))
                clock.updates += 1
        case.check(f"out.{name}.lr", torch.tensor(rates, dtype=torch.float64))


def param_groups(case: Case) -> None:
    for task in ("retrieval", "pretrain"):
        groups, frozen = case.data["groups"][task], case.data["groups"][f"{task}_frozen"]
        model = ALBEF(
            config_of(case, task),
            nn.ModuleDict({"itc": InfoNCE()}),
            {"itc": 1.0, "itm": 1.0, "mlm": 1.0},
            facts_of(case),
        )
        decay = max(group["weight_decay"] for group in groups)
        ours, names = model.parameter_groups(groups[0]["lr"], decay), official_names(model)
        for found, expected in zip(ours, groups, strict=True):
            same = {names[name] for name in found.names} == set(expected["params"])
            case.holds(f"{task}: members of {found.name}", same)
            case.holds(f"{task}: decay", found.weight_decay == expected["weight_decay"])
            case.holds(f"{task}: rate", found.lr == expected["lr"])
        kept = {name for name in official_state(model) if name in frozen}
        case.holds(f"{task}: frozen", kept == set(frozen) and not kept & set(names.values()))
