"""Golden cases of USER and VSE-infinity: parts, losses, encoders, training, authors' files."""

from __future__ import annotations

import copy
import re
import tempfile
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from itr.clock import Clock
from itr.draws import Draws
from itr.losses.score import pair_scores
from itr.losses.triplet import Triplet
from itr.losses.uto import UTO
from itr.models.user import USER, Enhancement, SelfGuide, queue_scores
from itr.models.vse import VSE
from itr.nn.gpo import GPO, position_codes
from itr.nn.queue import FeatureQueue
from itr.official import user, vse
from itr.training.optim import build_optimizer, clip_gradients, lr_factor, set_learning_rates
from tests.parity import user_data_cases
from tests.parity.harness import Case, Runner
from tests.parity.hrem_build import mask_of
from tests.parity.user_build import (
    batch_of,
    hyper_of,
    model_of,
    official_parameters,
    official_state,
    optim_config,
    table_of,
)

# Parts


def gpo(case: Case) -> None:
    meta = case.data["meta"]
    pool = GPO(meta["d_pe"], meta["d_hidden"])
    names = {"linear.weight": "score.weight"}
    pool.load_state_dict({names.get(k, k): v for k, v in case.below("state.").items()})
    features, lengths = case["in.features"].clone().requires_grad_(), case["in.lengths"].long()
    pooled = pool(features, mask_of(lengths, features.shape[1]))
    (pooled * case["in.grad_out"]).sum().backward()
    longest = int(lengths.max())
    mask = mask_of(lengths, longest)
    case.check("out.pooled", pooled)
    case.check("out.pe", position_codes(longest, meta["d_pe"]))
    case.check("out.pool_weights", pool.weights(1, longest)[lengths - 1][..., None])
    scores = pool.scores(1, longest)[lengths - 1].where(mask, 0.0)
    case.check("out.raw_scores", scores[..., None])
    case.check("out.weight_table", pool.weights(1, meta["table_len"]))
    case.check("grad.features", features.grad)
    parameters = {name: p.grad for name, p in pool.named_parameters()}
    for name in case.below("grad."):
        if name != "features":
            case.check(f"grad.{name}", parameters[names.get(name, name)])


def sge(case: Case) -> None:
    meta, regions = case.data["meta"], case["in.regions"]
    names = {theirs.split("v_sa.")[1]: ours.split("enhance.")[1] for theirs, ours in user.SGE}

    def ours(name: str) -> str:
        part = next(part for part in names if name.startswith(part))
        return names[part] + name.removeprefix(part)

    guide = SelfGuide(regions.shape[2], meta["num_region"], dropout=0.0)
    fresh = Enhancement({"own": guide}, meta["attention_lamda"])
    fresh.load_state_dict({ours(name): value for name, value in case.below("state.").items()})
    for mode in ("eval", "train", "train_drop"):
        module = copy.deepcopy(fresh).train(mode != "eval")
        if mode == "train_drop":
            _replay(_own(module).local_dropout, case["in.keep_local"], meta["dropout_rate"])
            _replay(_own(module).whole_dropout, case["in.keep_global"], meta["dropout_rate"])
        case.check(f"out.{mode}.weights", _own(copy.deepcopy(module)).shares(regions))
        own = _own(module)
        seen = _watch({"local": own.local_dropout, "global": own.whole_dropout})
        leaf = regions.clone().requires_grad_()
        enhanced = module(leaf)
        for name, value in {**seen, "enhanced": enhanced}.items():
            case.check(f"out.{mode}.{name}", value)
        buffers = dict(module.named_buffers())
        for name in case.below(f"post.{mode}."):
            case.check(f"post.{mode}.{name}", buffers[ours(name)])
        if mode == "train":
            (enhanced * case["in.grad_out"]).sum().backward()
            case.check("grad.regions", leaf.grad)
            parameters = dict(module.named_parameters())
            for name in case.below("grad.embedding"):
                key = f"embedding{name}"
                case.check(f"grad.{key}", parameters[ours(key)].grad)


def _own(module: Enhancement) -> SelfGuide:
    guide = module.guides["own"]
    assert isinstance(guide, SelfGuide)
    return guide


def _replay(dropout: nn.Module, keep: Tensor, rate: float) -> None:
    """Make ``dropout`` keep what was kept."""
    dropout.register_forward_hook(lambda _m, inputs, _o: inputs[0] * keep / (1 - rate))


def _watch(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """What the modules will give, by name."""
    seen: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module) -> None:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            seen[name] = getattr(output, "last_hidden_state", output)  # type: ignore[assignment]

        module.register_forward_hook(keep)

    for name, module in modules.items():
        watch(name, module)
    return seen


# Losses


def uto_loss(case: Case) -> None:
    ids = torch.arange(len(case["in.im"]))
    case.check("out.scores", pair_scores(case["in.im"], case["in.s"], ids).values)
    for mu, gamma in case.data["meta"]["pairs"]:
        images = case["in.im"].clone().requires_grad_()
        texts = case["in.s"].clone().requires_grad_()
        loss = UTO(mu, gamma, positive="zero")
        value = loss(pair_scores(images, texts, ids), Clock(), Draws())
        value.backward()
        case.check(f"out.loss.{mu:g}_{gamma:g}", value)
        case.check(f"grad.im.{mu:g}_{gamma:g}", images.grad)
        case.check(f"grad.s.{mu:g}_{gamma:g}", texts.grad)


def _queue(features: Tensor) -> FeatureQueue:
    queue = FeatureQueue(*features.shape, with_ids=True)
    queue.features.copy_(features.t())
    return queue


def uto_moco_loss(case: Case) -> None:
    image_queue, text_queue = _queue(case["in.v_queue"]), _queue(case["in.t_queue"])
    ids = torch.arange(len(case["in.v_q"]))
    for mu, gamma in case.data["meta"]["pairs"]:
        images = case["in.v_q"].clone().requires_grad_()
        texts = case["in.t_q"].clone().requires_grad_()
        scores = queue_scores(images, case["in.t_k"], ids, text_queue)
        scores.back = queue_scores(texts, case["in.v_k"], ids, image_queue)
        value = UTO(mu, gamma, positive="drop")(scores, Clock(), Draws())
        value.backward()
        case.check(f"out.loss.{mu:g}_{gamma:g}", value)
        case.check(f"grad.v_q.{mu:g}_{gamma:g}", images.grad)
        case.check(f"grad.t_q.{mu:g}_{gamma:g}", texts.grad)


def triplet(case: Case) -> None:
    ids = torch.arange(len(case["in.im"]))
    for name, negatives in (("sum", "sum"), ("max", "hardest")):
        images = case["in.im"].clone().requires_grad_()
        texts = case["in.s"].clone().requires_grad_()
        loss = Triplet(case.data["meta"]["margin"], negatives, mask_same_image=False)
        value = loss(pair_scores(images, texts, ids), Clock(), Draws())
        value.backward()
        case.check(f"out.loss.{name}", value)
        case.check(f"grad.im.{name}", images.grad)
        case.check(f"grad.s.{name}", texts.grad)


# Encoders


def forward_eval(case: Case, suffix: str = "") -> None:
    check_forward(case, model_of(case).eval(), suffix)


def vse_forward_eval(case: Case) -> None:
    forward_eval(case, ".0")


def check_forward(case: Case, model: VSE, suffix: str) -> None:
    """Embeddings, and what lies before them where the case has it."""
    images, texts, batch = model.images, model.texts, batch_of(case, suffix)
    watched = {
        "img_fc": images.project,
        "img_mlp": images.mlp,
        "img_pooled": images.pool,
        "bert_last_hidden": texts.bert,
        "txt_linear": texts.project,
        "txt_pooled": texts.pool,
    }
    if images.enhance is not None:
        watched["sge_regions"] = images.enhance
    seen = _watch(watched)
    with torch.no_grad():
        v, t = model.encode_images(batch).pooled, model.encode_texts(batch).pooled
        assert batch.region_mask is not None and batch.token_mask is not None
        for side, pool, mask in (
            ("img", images.pool, batch.region_mask),
            ("txt", texts.pool, batch.token_mask),
        ):
            weights = pool.weights(1, mask.shape[1])[mask.sum(dim=1) - 1]
            seen[f"{side}_pool_weights"] = weights[..., None]
    for name, value in {**seen, "img_emb": v, "cap_emb": t, "scores": v @ t.t()}.items():
        if f"out.{name}" in case:
            case.check(f"out.{name}", value)


# Training


def optimizer_and_schedule(case: Case) -> None:
    layers = {int(n) for n in re.findall(r"encoder\.layer\.(\d+)\.", str(case.data))}
    bert = {"vocab_size": 8, "hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4}
    case.data["bert_config"] = {**bert, "num_hidden_layers": len(layers)}
    groups = case.data["parameter_groups"]
    case.data["hyper"] = {
        "learning_rate": groups[0]["lr"],
        "bert_lr_factor": groups[1]["lr"] / groups[0]["lr"],
        "weight_decay": groups[0]["weight_decay"],
        "img_dim": 4,
        "embed_size": 4,
        "num_region": 3,
    }
    model, config = model_of(case).train(), optim_config(case)
    optimizer, parameters = build_optimizer(model, config), official_parameters(model)
    for given in groups:
        group = optimizer.param_groups[given["index"]]
        found = {name for name, p in parameters.items() if any(p is q for q in group["params"])}
        case.holds(f"group {given['index']}", found == set(given["params"]))
        keys = ("lr", "weight_decay", "eps")
        case.equal("numbers", [group[k] for k in keys], [given[k] for k in keys])
        case.equal("betas", group["betas"], given["betas"])
    case.equal("groups", len(optimizer.param_groups), len(groups))
    for name, recipe in case.data["recipes"].items():
        schedule = optim_config(case, recipe["lr_update"]).schedule
        rates = [
            [
                group["base_lr"] * lr_factor(Clock(epoch=epoch), schedule)
                for group in groups_of(optimizer)
            ]
            for epoch in range(recipe["num_epochs"])
        ]
        case.equal(name, rates, recipe["lr_by_epoch"])
    asleep = tuple(f"{name}." for name in model.sleeping(Clock()))
    table = table_of(model)
    never = {n for n in parameters if str(table.to_ours(n)).startswith(asleep)}
    case.holds("never a gradient", never == set(case.data["never_receive_gradient"]))
    _check_modes(case, model)


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    return optimizer.param_groups


def _check_modes(case: Case, model: VSE) -> None:
    """Of the modules that both have by the same name; trained, evaluated and trained again."""
    table, modules = table_of(model), dict(model.named_modules())
    for mode, training in (("during_training", True), ("during_validation", False)):
        model.train(training)
        checked = 0
        for name, expected in case.data["module_modes"][mode].items():
            module = modules.get(str(table.to_ours(f"{name}.")).rstrip("."))
            if module is not None:
                case.holds(f"{mode}: {name}.training", module.training == expected)
                checked += 1
        case.holds(f"{mode}: most modules", checked > len(case.data["module_modes"][mode]) / 2)


def train_steps(case: Case) -> None:
    meta, model = case.data["meta"], model_of(case).train()
    config = optim_config(case)
    optimizer, clock = build_optimizer(model, config), Clock()
    asleep = tuple(f"{name}." for name in model.sleeping(clock))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(asleep))
    steps = meta["n_steps"]
    for step in range(steps):
        if step == meta.get("decay_before_step"):
            clock.epoch = int(config.schedule.milestones[0])
        set_learning_rates(optimizer, lr_factor(clock, config.schedule))
        case.check(f"out.lr.{step}", [group["lr"] for group in optimizer.param_groups])
        model.before_step(clock)
        _step(case, step, model, clock).backward()
        if step == 0:
            _check_gradients(case, model)
        model.after_step(clock)
        case.check(f"out.grad_norm.{step}", clip_gradients(model.parameters(), config.max_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.forwards, clock.updates = clock.forwards + 1, clock.updates + 1
        if isinstance(model, USER) and model.uses_term("queue"):
            case.check(f"out.queue_ptr.{step}", model.image_queue.pointer)
            case.equal("the texts' pointer", model.text_queue.pointer, model.image_queue.pointer)
    _check_post(case, model, 2 * config.lr * steps)


def _step(case: Case, step: int, model: VSE, clock: Clock) -> Tensor:
    """The weighted sum of the terms of one step, everything about them checked."""
    seen = _watch({"img_emb": model.images, "cap_emb": model.texts})
    terms = model(batch_of(case, f".{step}"), clock, Draws()).losses
    for encoder in (model.images, model.texts):
        encoder._forward_hooks.clear()
    for name, value in seen.items():
        case.check(f"out.{name}.{step}", value)
    total = sum((model.weights[k] * value for k, value in terms.items()), torch.zeros(()))
    case.check(f"out.loss_batch.{step}", model.weights["batch"] * terms["batch"])
    if isinstance(model, USER) and model.pending is not None:
        case.check(f"out.loss_moco.{step}", terms["queue"])
        case.check(f"out.loss.{step}", total)
        case.check(f"out.v_key.{step}", model.pending.images)
        case.check(f"out.t_key.{step}", model.pending.texts)
    return total


def _check_gradients(case: Case, model: VSE) -> None:
    for name, parameter in official_parameters(model).items():
        if f"grad.{name}" in case:
            case.check(f"grad.{name}", parameter.grad)
        else:
            case.holds(f"grad.{name}: the authors have none", parameter.grad is None)


def _check_post(case: Case, model: VSE, bound: float) -> None:
    """The state after the last step. ``skip_post`` names what rounding noise moves: a bias whose
    true gradient is 0, of which AdamW makes a step of about one learning rate on either side, and
    the running mean behind it, which follows at a tenth."""
    state = official_state(model)
    for name in case.below("post."):
        key = f"post.{name}"
        if key in case.data["skip_post"]:
            case.account_for(key)
            case.equal(key, state[name], case[key], atol=bound)
        else:
            case.check(key, state[name])


# The authors' files


def official_checkpoint(case: Case) -> None:
    for importer, file, name, suffix in (
        (user, "official_checkpoint.pth", "forward_eval", ""),
        (vse, "vse_infty_official_checkpoint.pth", "vse_infty_forward_eval", ".0"),
    ):
        forward = Case(case.path.with_name(f"{name}.json"))
        _check_file(case, importer, case.path.with_name(file), forward, suffix)
        case.faults += forward.faults


def _check_file(case: Case, importer: ModuleType, path: Path, forward: Case, suffix: str) -> None:
    bert = forward.data["bert_config"]
    heads = {"heads": bert["num_attention_heads"]}
    imported = importer.read(path, text=heads)
    cls = USER if importer is user else VSE
    # The JSON holds the options of the file that was written last; USER's are the forward case's.
    options = imported.info["opt"]
    if importer is vse:
        case.holds("options", options == case.data["opt"])
    else:
        told, hyper = ("attention_lamda", "moco_M", "moco_r", "loss_lamda"), hyper_of(forward)
        case.holds("options", all(options[key] == hyper[key] for key in told))
        config = imported.config
        found = [config.attention_scale, config.queue_size, config.momentum]
        case.equal("configuration", [*found, imported.weights["batch"]], [hyper[k] for k in told])
    model = cls(imported.config, nn.ModuleDict(), imported.weights, imported.facts)
    imported.load_into(model)
    check_forward(forward, model.eval(), suffix)
    wanted, found = forward.below("state."), official_state(model)
    for name, value in wanted.items():
        case.equal(f"{path.name}: {name}", found[name], value)
    if isinstance(model, USER):
        for name, value in model.twin.state_dict().items():
            case.holds(f"key {name}", torch.equal(value, model.state_dict()[name]))
    with tempfile.TemporaryDirectory() as folder:  # and back again
        copied = Path(folder) / "copy.pth"
        torch.save(importer.export(model, epoch=1), copied)
        again = importer.read(copied, text=heads)
    state = model.state_dict()
    case.holds("round trip", all(torch.equal(v, state[k]) for k, v in again.state.items()))
    case.holds("round trip is whole", again.state.keys() == imported.state.keys())
    case.holds("round trip of the configuration", again.config == imported.config)


RUNNERS: dict[str, Runner] = {
    "forward_eval": forward_eval,
    "gpo": gpo,
    "official_checkpoint": official_checkpoint,
    "optimizer_and_schedule": optimizer_and_schedule,
    "sge": sge,
    "train_multi_step_moco": train_steps,
    "train_step_moco": train_steps,
    "train_step_no_moco": train_steps,
    "uto_loss": uto_loss,
    "uto_moco_loss": uto_moco_loss,
    "vse_infty_forward_eval": vse_forward_eval,
    "vse_infty_train_step": train_steps,
    "vse_infty_triplet_loss": triplet,
    **user_data_cases.RUNNERS,
}
