"""Golden cases of Multi-SEA: its parts, encoding, losses, training steps, schedule."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from itr.clock import Clock
from itr.losses.infonce import InfoNCE
from itr.models.multisea import EnhancedFeatures, MultiSEA, MultiSEAConfig
from itr.nn.agent_attention import AgentAttention, Memory, PairRows, agent_plan
from itr.nn.clip.weights import CLIPConfig, build_clip_vision, load_clip_vision, sizes_in
from itr.nn.gated_feed_forward import GatedFeedForward, hswish
from itr.nn.queue import FeatureQueue
from itr.official.multisea import EXPERT, is_unused, official_state
from itr.training.optim import (
    OptimConfig,
    ScheduleConfig,
    build_optimizer,
    clip_gradients,
    lr_factor,
    set_learning_rates,
)
from tests.parity import multisea_official_cases, pixel_data_cases
from tests.parity.harness import Case, Runner
from tests.parity.multisea_build import (
    aformer_of,
    batch_of,
    config_of,
    given_sides,
    load_queue,
    model_of,
    official_parameters,
    state_of,
)
from tests.parity.multisea_ranks import Recorder

# Parts


def feed_forwards(case: Case) -> None:
    x = case["in.x"].clone().requires_grad_()
    kinds = {
        "cross_gate_hswish": ("cross", "hswish"),
        "cross_gate_swish": ("cross", "swish"),
        "gate_swish": ("double", "swish"),
        "single_gate_swish": ("single", "swish"),
    }
    width, hidden = case.data["hidden_size"], case.data["intermediate_size"]
    for name, (gate, activation) in kinds.items():
        module = GatedFeedForward(width, hidden, 0.0, gate, activation)
        state = case.below(f"state.{name}.")
        module.load_state_dict({k.replace("ffn_norm", "norm"): v for k, v in state.items()})
        x.grad = None
        output = module(x)
        (output * case["in.R"]).sum().backward()
        case.check(f"out.{name}", output)
        case.check(f"grad.{name}.in.x", x.grad)
        for parameter, value in module.named_parameters():
            case.check(f"grad.{name}.{parameter.replace('norm', 'ffn_norm')}", value.grad)
    points = case["in.act"].clone()
    points.requires_grad_()
    values = hswish(points)
    values.sum().backward()
    case.check("out.hswish", values)
    case.check("grad.hswish", points.grad)
    for key in case.below("out.swish_beta"):
        swish = GatedFeedForward(width, hidden, 0.0, activation="swish", beta=float(key))
        case.check(f"out.swish_beta{key}", swish.act(points))


def agent_attention(case: Case) -> None:
    given = case.data
    module = AgentAttention(given["hidden_size"], given["num_heads"], 0.0, 0.0)
    rename = {a.replace("cross_attention.", ""): b.replace("cross.", "") for a, b in EXPERT}

    def ours(name: str) -> str:
        return next(
            (new + name[len(old) :] for old, new in rename.items() if name.startswith(old)), name
        )

    state = {ours(k): v for k, v in case.below("state.").items() if ".dwc." not in k}
    module.load_state_dict(state)
    for tag in sorted({key.split(".")[0] for key in case.below("in.")}):
        seen: list[Tensor] = []
        module.zero_grad()
        x = case[f"in.{tag}.hidden"].clone().requires_grad_()
        y = case[f"in.{tag}.encoder_hidden"].clone().requires_grad_()
        mask, other = case[f"in.{tag}.mask"].bool(), case[f"in.{tag}.encoder_mask"].bool()
        plan = agent_plan(x.shape[1], given["agent_num"], x.device)
        output = module(x, mask, module.memory(y), other, plan)
        (output * case[f"in.{tag}.R"]).sum().backward()
        case.check(f"out.{tag}.output", output)
        case.check(f"grad.{tag}.in.hidden", x.grad)
        case.check(f"grad.{tag}.in.encoder_hidden", y.grad)
        parameters = dict(module.named_parameters())
        for name in case.below(f"grad.{tag}."):
            if not name.startswith("in."):
                case.check(f"grad.{tag}.{name}", parameters[ours(name)].grad)
        _agent_shares(case, tag, module, (x, mask), (y, other), seen)
        first = module(x, mask, module.memory(y), other, plan, first_only=True)
        case.equal(f"{tag}: first row", first, case[f"out.{tag}.output"][:, :1])


def _agent_shares(case: Case, tag: str, module: AgentAttention, query, other, seen) -> None:
    """Agents and both softmaxes, read off our own maps with the identity as values."""
    x, mask = query
    memory = module.memory(other[0])
    plan = agent_plan(x.shape[1], case.data["agent_num"], x.device)
    queries = module.query(x)
    agents = queries if plan is None else plan.mix(queries)
    case.check(f"out.{tag}.agents", agents)
    heads = module.split(agents)

    def eye(rows: int) -> Tensor:
        return torch.eye(rows).expand(len(x), module.heads, rows, rows)

    rows = Memory(memory.keys, eye(memory.keys.shape[2]))
    case.check(f"out.{tag}.agent_probs", module.attend(heads, rows, other[1]))
    found = module.diffuse(module.split(queries), heads, eye(agents.shape[1]), mask)
    case.check(f"out.{tag}.query_probs", found)


def aformer_modes(case: Case) -> None:
    module = aformer_of(case)
    text_mask = case["in.text_mask"].bool()
    parameters = official_parameters(module, case.data["aformer"]["num_hidden_layers"], "aformer.")
    for mode in ("text", "image", "t2i", "i2t"):
        module.zero_grad()
        text = case["in.text"].clone().requires_grad_()
        image = case["in.image"].clone().requires_grad_()
        every = torch.arange(len(text))
        rows = {"text": PairRows(text, text_mask, every), "image": PairRows(image, None, every)}
        if mode in rows:
            states = module.unimodal(mode, rows[mode].embeds, rows[mode].mask)
        else:
            asking, other = ("text", "image") if mode == "t2i" else ("image", "text")
            states = module.fused(asking, rows[asking], rows[other], first_only=False)
            short = module.fused(asking, rows[asking], rows[other])
            case.equal(f"{mode}: first row", short[-1][:, 0], case[f"out.{mode}.last"][:, 0])
        pooled = module.pooled(states[-1])
        case.check(f"out.{mode}.last", states[-1])
        case.check(f"out.{mode}.pooled", pooled)
        for depth, state in enumerate(states):
            case.check(f"out.{mode}.hidden_cls_{depth}", state[:, 0])
        loss = (states[-1] * case[f"in.{mode}.R"]).sum()
        (loss + (pooled * case[f"in.{mode}.R_pooled"]).sum()).backward()
        for name in case.below(f"grad.{mode}."):
            leaf = {"in.text": text, "in.image": image}.get(name, parameters.get(name))
            case.check(f"grad.{mode}.{name}", leaf.grad)


def clip_visual(case: Case) -> None:
    weights = case.below("state.visual.")
    size = case.data["tiny_clip"]["image_size"]
    sizes = sizes_in(weights, CLIPConfig(size=size, trained_layers=0))
    tower = build_clip_vision(sizes, pretrained=False)
    load_clip_vision(tower, weights)
    image = case["in.image"].clone().requires_grad_()
    tokens = tower.ln_post(tower.tokens(image))
    (tokens * case["in.R"]).sum().backward()
    case.check("out.tokens", tokens)
    case.check("out.positional_embedding_resized", tower.positional_embedding)
    case.check("grad.in.image", image.grad)
    parameters = dict(tower.named_parameters())
    for name in case.below("grad.visual."):
        case.check(f"grad.visual.{name}", parameters[name].grad)
    ours = {f"visual.{name}" for name in tower.state_dict()}
    theirs = {name for name in case.data["kept_keys"] if name.startswith("visual.")}
    case.holds("kept weights", ours == theirs)


# Encoding


def tiny_model(case: Case) -> None:
    model, trainable = model_of(case), case.data["trainable"]
    state, found = state_of(case), official_state(model)
    for name, value in state.items():
        if not is_unused(name):
            case.equal(name, found[name], value)
    ours = official_parameters(model, model.config.aformer.depth)
    theirs = set(trainable) - set(case.data["dead_parameters"])
    case.holds("parameters", set(ours) == theirs)
    wake(model)
    for name, parameter in ours.items():
        case.holds(f"{name} is trained", parameter.requires_grad == trainable[name])


def init_stats(case: Case) -> None:
    """Ours starts from the same distributions: two samples' means and spreads lie within five
    standard errors. The backbones' weights are the case's own random files."""
    torch.manual_seed(0)
    state = official_state(build_fresh(case))
    for name, about_it in case.data["stats"].items():
        if is_unused(name) or name.startswith(("visual_encoder.", "text_encoder.")):
            continue
        value = state[name].float()
        case.holds(f"{name}: shape", list(value.shape) == about_it["shape"])
        mean, spread, count = about_it["mean"], about_it["std"], value.numel()
        if spread == 0.0 or count == 1:
            case.equal(name, value.mean(), torch.tensor(mean))
            continue
        if count < 16:  # too few for a law of large numbers
            reach = max(abs(about_it["min"]), abs(about_it["max"]))
            case.holds(f"{name}: size", float(value.abs().max()) < 8 * reach)
            continue
        both = math.hypot(spread, float(value.std())) / math.sqrt(count)
        case.holds(f"{name}: mean", abs(float(value.mean()) - mean) < 5 * both)
        wide = 5 * both / math.sqrt(2.0) + spread / count
        case.holds(f"{name}: spread", abs(float(value.std()) - spread) < wide)
        case.holds(f"{name}: smallest", float(value.min()) > 2 * about_it["min"] - mean - spread)
        case.holds(f"{name}: largest", float(value.max()) < 2 * about_it["max"] - mean + spread)


def build_fresh(case: Case) -> MultiSEA:

    shape = case.data["stats"]["itm_head.weight"]["shape"]
    config, facts = config_of(case.data, {"itm_head.weight": torch.empty(shape)})
    return MultiSEA(config, nn.ModuleDict(), {"itc": 1.0, "itm": 1.0}, facts)


def encode(case: Case) -> None:
    model, batch = model_of(case).eval(), batch_of(case)
    images, texts = model.images, model.texts
    clip = images.tower.ln_post(images.tower.tokens(batch.pixels))
    image_feats, image_embeds = images(batch.pixels)
    text_feats, text_embeds = texts(batch.tokens, batch.token_mask)
    hidden = texts.roberta(batch.tokens, attention_mask=batch.token_mask[:, None, None, :])
    found = {
        "clip_tokens": clip,
        "vision_pooled": images.pooler(clip[:, 0]).tanh(),
        "image_embeds_raw": image_embeds,
        "image_feats_raw": image_feats,
        "roberta_last_hidden": hidden.last_hidden_state,
        "roberta_pooler": hidden.pooler_output,
        "text_embeds_raw": text_embeds,
        "text_feats_raw": text_feats,
    }
    for kind, rows, mask in (
        ("image", image_embeds, None),
        ("text", text_embeds, batch.token_mask),
    ):
        states = model.aformer.unimodal(kind, rows, mask)
        found[f"{kind}_aformer_last"] = states[-1]
        found[f"{kind}_aformer_pooled"] = model.aformer.pooled(states[-1])
    for kind, encoded in (
        ("image", model.encode_images(batch)),
        ("text", model.encode_texts(batch)),
    ):
        assert encoded.tokens is not None
        found[f"{kind}_feats"], found[f"{kind}_embeds"] = encoded.pooled, encoded.tokens
        shown = encoded.mask
        found[f"{kind}_atts"] = (
            torch.ones(encoded.tokens.shape[:2], dtype=torch.int64)
            if shown is None
            else shown.long()
        )
    for name, value in found.items():
        case.check(f"out.{name}", value)


# Losses


def losses(case: Case) -> None:
    share = case.data["config"].get("cur_alpha", 0.4)
    model = model_of(case, distill_weight=share)
    load_queue(case, model)
    images, texts = given_sides(case)
    ids, clock = case["in.image_index"], Clock(epoch=1)
    draws = Recorder([torch.cat([case["in.neg_image_idx"], case["in.neg_text_idx"]])])
    model.before_step(clock)
    terms = model.criterion(images, texts, ids, clock, draws)
    with torch.no_grad():
        scores = model.scores(images, texts, ids, clock)
    case.check("out.sim_i2t", scores.values * scores.scale)
    case.check("out.sim_t2i", scores.reverse().values * scores.scale)
    to_images, to_texts = draws.weights[0].chunk(2)
    case.check("out.neg_weights_t2i", to_images)
    case.check("out.neg_weights_i2t", to_texts)
    case.check("out.itc_loss", terms.losses["itc"])
    case.check("out.itm_loss", terms.losses["itm"])
    case.check("out.total_loss", terms.losses["itc"] + terms.losses["itm"])
    _match_logits(case, model, images, texts)
    model.after_step(clock)
    for name, value in official_state(model).items():
        if f"out.post_{name}" in case:
            case.check(f"out.post_{name}", value)
    _loss_gradients(case, model, images, texts, terms.losses)


def _match_logits(
    case: Case, model: MultiSEA, images: EnhancedFeatures, texts: EnhancedFeatures
) -> None:
    """Theirs come wrong text before wrong image, depth by depth."""
    batch = torch.arange(len(case["in.neg_text_idx"]))
    text_of = torch.cat([batch, case["in.neg_text_idx"], batch])
    image_of = torch.cat([batch, batch, case["in.neg_image_idx"]])
    image_rows = PairRows(images.embeds, images.mask, image_of)
    text_rows = PairRows(texts.embeds, texts.mask, text_of)
    with torch.no_grad():
        case.check("out.itm_logits_t2i", model.match_logits("text", text_rows, image_rows))
        case.check("out.itm_logits_i2t", model.match_logits("image", image_rows, text_rows))


def _loss_gradients(
    case: Case, model: MultiSEA, images: EnhancedFeatures, texts: EnhancedFeatures, terms
) -> None:
    parameters = official_parameters(model, model.config.aformer.depth)
    leaves = {
        "image_feats": images.feats,
        "image_embeds": images.embeds,
        "text_feats": texts.feats,
        "text_embeds": texts.embeds,
        "temp": model.temp,
    }
    for term in ("itc", "itm"):
        for leaf in (*leaves.values(), *model.parameters()):
            leaf.grad = None
        terms[term].backward(retain_graph=True)
        for name in case.below(f"grad.{term}."):
            leaf = leaves[name[3:]] if name.startswith("in.") else parameters[name]
            case.check(f"grad.{term}.{name}", leaf.grad)


def queue_update(case: Case) -> None:
    width, size = case["in.image_queue"].shape
    images = FeatureQueue(width, size, init="uniform", with_ids=True, overflow="clip")
    texts = FeatureQueue(width, size, init="uniform", overflow="clip")
    images.features.copy_(case["in.image_queue"].t())
    texts.features.copy_(case["in.text_queue"].t())
    images.ids.copy_(case["in.idx_queue"][0])
    for step in range(len([key for key in case.below("in.step") if key.endswith(".idx")])):
        given = case.below(f"in.step{step}.")
        images.enqueue(given["image_feats"], given["idx"].flatten())
        texts.enqueue(given["text_feats"])
        case.check(f"out.step{step}.image_queue", images.features.t())
        case.check(f"out.step{step}.text_queue", texts.features.t())
        case.check(f"out.step{step}.idx_queue", images.ids[None])
        case.check(f"out.step{step}.ptr", images.pointer)
        case.equal(f"step{step}: texts' pointer", texts.pointer, case[f"out.step{step}.ptr"])


# Training


def wake(model: MultiSEA) -> None:
    """Freeze what sleeps, as the trainer does."""
    asleep = model.sleeping(Clock())
    prefixes = tuple(f"{name}." for name in asleep)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (name in asleep or name.startswith(prefixes)))


def optim_config(case: Case, **schedule: object) -> OptimConfig:
    options = case.data["config"]["optimizer"]
    return OptimConfig(
        lr=options["init_lr"],
        weight_decay=options["weight_decay"],
        betas=list(options["betas"]),
        eps=options["eps"],
        max_norm=case.data["config"]["max_grad_norm"],
        schedule=ScheduleConfig(
            kind="warmup_cosine",
            warmup_share=case.data["config"]["warmup_steps"],
            cosine_cycles=case.data["config"]["num_cycles"],
            floor_total_updates=True,
            **schedule,
        ),
    )


def schedule_of(given: dict) -> ScheduleConfig:
    return ScheduleConfig(
        kind="warmup_cosine",
        warmup_share=given["warmup_fraction"],
        cosine_cycles=given["num_cycles"],
        floor_total_updates=True,
    )


def clock_of(given: dict, updates: int) -> Clock:
    batches, accumulate = given["micro_batches_per_epoch"], given["gradient_accumulation_steps"]
    epochs = given["max_epoch"]
    return Clock(
        batches_per_epoch=batches,
        updates=updates,
        total_updates=epochs * -(-batches // accumulate),
        total_epochs=epochs,
        accumulate=accumulate,
    )


def base_rates(rows: list[dict]) -> list[float]:
    """Of default, encoder, alpha and temp, as ours follow from the first one of the case."""
    peak = max(rows, key=lambda row: row["factor"])
    rate, own = peak["lr"][0] / peak["factor"], MultiSEAConfig()
    return [rate, rate * own.encoder_lr_factor, own.alpha_lr, own.temperature_lr]


def lr_schedule(case: Case) -> None:
    for name, given in case.data["schedules"].items():
        schedule = schedule_of(given)
        taken = clock_of(given, 0).total_updates
        case.equal(f"{name}: updates", taken, given["optimiser_steps_really_taken"])
        base = base_rates(given["values"])
        for row in given["values"]:
            factor = lr_factor(clock_of(given, row["step"]), schedule)
            case.equal(f"{name}: factor {row['step']}", factor, row["factor"])
            case.equal(f"{name}: lr {row['step']}", [b * factor for b in base], row["lr"])


def param_groups(case: Case) -> None:
    model = build_like(case)
    config = optim_config(case)
    optimizer = build_optimizer(model, config)
    wake(model)
    names = {id(p): n for n, p in official_parameters(model, model.config.aformer.depth).items()}
    found = {group["name"]: group for group in optimizer.param_groups}
    seen = 0
    for group in case.data["groups"]:
        ours, theirs = found[group["name"]], group["params"]
        case.equal(f"{group['name']}: lr", ours["base_lr"], group["initial_lr"])
        for key in ("weight_decay", "betas", "eps"):
            case.equal(f"{group['name']}: {key}", ours[key], group[key])
        live = [about_it for about_it in theirs if not is_unused(about_it["name"])]
        members = {names[id(p)]: p for p in ours["params"]}
        case.holds(f"{group['name']}: members", set(members) == {p["name"] for p in live})
        for about_it in live:
            parameter = members[about_it["name"]]
            same = list(parameter.shape) == about_it["shape"]
            case.holds(f"{about_it['name']}: shape", same)
            case.holds(
                f"{about_it['name']}: trained",
                parameter.requires_grad == about_it["requires_grad"],
            )
        seen += len(live)
    case.equal("number of parameters", len(list(model.parameters())), seen)


def build_like(case: Case) -> MultiSEA:
    """A random model of the sizes in the case's configuration."""

    shapes = {p["name"]: p["shape"] for group in case.data["groups"] for p in group["params"]}
    roberta = {
        "vocab_size": shapes["text_encoder.embeddings.word_embeddings.weight"][0],
        "hidden_size": shapes["text_encoder.embeddings.word_embeddings.weight"][1],
        "max_position_embeddings": shapes["text_encoder.embeddings.position_embeddings.weight"][0],
        "intermediate_size": shapes["text_encoder.encoder.layer.0.intermediate.dense.weight"][0],
        "num_hidden_layers": 1
        + max(int(n.split(".")[3]) for n in shapes if n.startswith("text_encoder.encoder.layer.")),
        "num_attention_heads": 1,
    }
    data = {**case.data, "tiny_roberta_config": roberta}
    head = torch.empty(shapes["itm_head.weight"])
    config, facts = config_of(data, {"itm_head.weight": head})
    slots = nn.ModuleDict({"itc": InfoNCE()})  # it reads the temperature, which is trained then
    return MultiSEA(config, slots, {"itc": 1.0, "itm": 1.0}, facts)


def negatives_of(case: Case, row: int | None = None) -> Recorder:
    images, texts = case["in.neg_image_idx"], case["in.neg_text_idx"]
    if row is not None:
        images, texts = images[row], texts[row]
    return Recorder([torch.cat([images, texts])])


KINKS = (-3.0, -2.0)  # of the gated feed-forward's activation
ROUNDING = 1e-6  # how far an input of the activation may lie from where the authors' lies


class Kinks:
    """Inputs of the activation that lie on a kink within rounding.

    There the gradient jumps by 1/3 or more, and which side counts is decided by the last bit of the
    input: both are right. Each is remembered with the bias that moves it to the other side.
    """

    def __init__(self, model: MultiSEA):
        self.near: list[tuple[str, int, float]] = []
        for name, module in model.named_modules():
            if isinstance(module, GatedFeedForward):
                for part in ("dense1", "dense4"):
                    self._watch(f"{name}.{part}", getattr(module, part))

    def _watch(self, name: str, linear: nn.Linear) -> None:
        def look(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            for kink in KINKS:
                gap = output.detach().flatten(0, -2) - kink
                for row, column in (gap.abs() < ROUNDING).nonzero().tolist():
                    self.near.append((f"{name}.bias", column, -2 * float(gap[row, column])))

        linear.register_forward_hook(look)


def train_step(case: Case) -> None:
    near = _train_step(case, ()).near
    for count in range(1, 1 + len(near)):
        for moved in itertools.combinations(near, count):
            if not case.faults:
                return
            again = Case(case.path)
            _train_step(again, moved)
            if not again.faults:
                case.faults.clear()


def _train_step(case: Case, moved: tuple[tuple[str, int, float], ...]) -> Kinks:
    """One step; the biases in ``moved`` are moved first."""
    model = model_of(case).train()
    given = case.data["optimiser"]
    optimizer = build_optimizer(model, optim_config(case))
    wake(model)
    for name, column, distance in moved:
        model.get_parameter(name).data[column] += distance or ROUNDING
    kinks = Kinks(model)
    clock = Clock(batches_per_epoch=1)
    model.before_step(clock)
    terms = model(batch_of(case), clock, negatives_of(case)).losses
    total = terms["itc"] + terms["itm"]
    total.backward()
    model.after_step(clock)
    for name, value in (("itc_loss", terms["itc"]), ("itm_loss", terms["itm"])):
        case.check(f"out.{name}", value)
    case.check("out.total_loss", total)
    _check_gradients(case, model)
    case.check("out.grad_norm", clip_gradients(model.parameters(), given["max_grad_norm"]))
    base = case.data["config"]["optimizer"]["init_lr"]
    set_learning_rates(optimizer, given["lr_at_this_step"]["default"] / base)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    case.equal("rates", list(rates.values()), [given["lr_at_this_step"][name] for name in rates])
    optimizer.step()
    _check_weights(case, model)
    return kinks


def _check_gradients(case: Case, model: MultiSEA) -> None:
    parameters = official_parameters(model, model.config.aformer.depth)
    floors = case.data["noise_floor"]["grad"]
    for name, norm in case.data["grad_l2_norms"].items():
        found = parameters[name].grad
        floor = 10 * floors.get(name, 0.0)
        if f"grad.{name}" in case:
            case.check(f"grad.{name}", found, atol=floor)
        bound = max(floor, 2e-5) * math.sqrt(found.numel())
        case.equal(f"grad norm of {name}", found.norm(), torch.tensor(norm), atol=bound)
    for name in case.data["no_grad"]:
        if not is_unused(name):
            case.holds(f"{name} has a gradient", parameters[name].grad is None)


def _check_weights(case: Case, model: MultiSEA) -> None:
    """Weights after the step(s); entries whose true gradient is zero follow rounding under Adam:
    10 times the floor that the case itself measured."""
    state, floors = official_state(model), case.data["noise_floor"]["post"]
    for name, value in state.items():
        floor = 10 * floors.get(name, 0.0)
        if f"post.{name}" in case:
            case.check(f"post.{name}", value, atol=floor)
        norm = torch.tensor(case.data["post_l2_norms"][name])
        bound = max(floor, 1e-5) * math.sqrt(value.numel())
        case.equal(f"post norm of {name}", value.float().norm(), norm, atol=bound)
    for name in case.below("post."):
        if is_unused(name):  # ours has none; theirs is never touched
            case.account_for(f"post.{name}")
            case.equal(f"post.{name}", case[f"post.{name}"], state_of(case)[name])


def train_multi_step(case: Case) -> None:
    model, config = model_of(case).train(), optim_config(case)
    optimizer = build_optimizer(model, config)
    wake(model)
    settings, batches = case.data["config"], case.data["micro_batches_per_epoch"]
    accumulate = settings["gradient_accumulation_steps"]
    clock = clock_of(
        {
            "micro_batches_per_epoch": batches,
            "gradient_accumulation_steps": accumulate,
            "max_epoch": settings["max_epoch"],
        },
        0,
    )
    seen: dict[str, list[Tensor]] = {"itc": [], "itm": []}
    for number, row in enumerate(case.data["history"]):
        clock.epoch, clock.batch = row["epoch"], row["batch_idx"]
        factor = lr_factor(clock, config.schedule)
        set_learning_rates(optimizer, factor)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        expected = [row["lr_before"][name] for name in rates]
        case.equal(f"{number}: rates", list(rates.values()), expected, atol=1e-12)
        model.before_step(clock)
        for name in ("temp", "alpha"):
            logged = torch.tensor(row[f"{name}_logged"])
            case.equal(f"{number}: {name}", getattr(model, name), logged)
        batch = batch_of(case, f"in.batch{row['batch_idx']}.")
        terms = model(batch, clock, negatives_of(case, number)).losses
        ((terms["itc"] + terms["itm"]) / accumulate).backward()
        model.after_step(clock)
        for name, values in seen.items():
            values.append(terms[name].detach())
        case.equal(f"{number}: pointer", model.image_queue.pointer, [row["queue_ptr"]])
        if (row["batch_idx"] + 1) % accumulate == 0 or row["batch_idx"] + 1 == batches:
            clip_gradients(model.parameters(), config.max_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.updates += 1
        case.equal(f"{number}: updates", clock.updates, row["optimizer_steps_done"])
        for name in ("temp", "alpha"):
            after = torch.tensor(row[f"{name}_after"])
            case.equal(f"{number}: {name} after", getattr(model, name), after, atol=1e-6)
    for name, values in seen.items():
        case.equal(f"loss.{name}", torch.stack(values), case[f"out.{name}"])
        case.account_for(f"out.{name}")
    _check_weights(case, model)


RUNNERS: dict[str, Runner] = {
    **pixel_data_cases.MULTISEA,
    "aformer_modes": aformer_modes,
    "agent_attention": agent_attention,
    "clip_visual": clip_visual,
    "encode": encode,
    "ffn": feed_forwards,
    "init_stats": init_stats,
    "losses": losses,
    "lr_schedule": lr_schedule,
    "param_groups": param_groups,
    "queue_update": queue_update,
    **multisea_official_cases.RUNNERS,
    "tiny_model": tiny_model,
    "train_multi_step": train_multi_step,
    "train_step": train_step,
}
