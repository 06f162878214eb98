"""Golden cases of HREM: encoders, losses, graph, training steps, the authors' checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.evaluation.ranks import rank_scores
from itr.losses.score import Scores, pair_scores
from itr.losses.triplet import DistanceWeightedTriplet, Triplet, matching_pairs
from itr.models.hrem import (
    BLOCKS,
    HREM,
    GraphConfig,
    Instances,
    Relevance,
    relevance_divergence,
)
from itr.nn.pooling import l2_normalize, masked_mean, masked_top2_mean
from itr.official.hrem import export, name_table, official_state, read
from itr.training.optim import (
    OptimConfig,
    ScheduleConfig,
    build_optimizer,
    clip_gradients,
    lr_factor,
    set_learning_rates,
)
from tests.parity import hrem_data_cases
from tests.parity.harness import Case, Runner
from tests.parity.hrem_build import (
    Recorder,
    config_of,
    given_sides,
    loss_of,
    mask_of,
    model_of,
    official_parameters,
)

WEIGHT_ATOL = 1e-3  # named by the notes of the triplet cases: exp of differences of ~1e2


def pooling(case: Case) -> None:
    features = case["in.features"]
    for key, lengths in case.below("in.lengths_").items():
        mask = mask_of(lengths, features.shape[1])
        case.check(f"out.max2_{key}", masked_top2_mean(features, mask, shrinking=True))
        case.check(f"out.avg_{key}", masked_mean(features, mask))
        case.check(f"out.padding_mask_{key}", ~mask)
    case.check("out.l2norm", l2_normalize(features))


# Encoders


def encoders(case: Case, train: bool = False) -> None:
    model = model_of(case).train(train)
    images, regions = case["in.images"], case["in.image_lengths"]
    captions, words = case["in.captions"], case["in.caption_lengths"]
    seen: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module) -> None:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            seen[name] = getattr(output, "last_hidden_state", output)  # type: ignore[assignment]

        module.register_forward_hook(keep)

    watch("img.fc_branch", model.images.project)
    watch("img.mlp_branch", model.images.mlp)
    watch("img.transformer", model.images.relation.layer)
    watch("txt.bert_last_hidden", model.texts.bert)
    watch("txt.transformer", model.texts.relation.layer)
    for name, side in (
        ("img", model.images(images, mask_of(regions, images.shape[1]))),
        ("txt", model.texts(captions, mask_of(words, captions.shape[1]))),
    ):
        seen[f"{name}.pre_pool"] = side.fragments
        seen[f"{name}.max2_pool"] = masked_top2_mean(side.fragments, side.mask, shrinking=True)
        seen[f"{name}.avg_pool"] = masked_mean(seen[f"{name}.transformer"], side.mask)
        seen[f"{name}.embedding"] = side.unit
        seen[f"{name}.embedding_not_normalised"] = side.raw
    for name, value in seen.items():
        case.check(f"out.{name}", value)
    state = official_state(model)
    for name in case.below("post."):
        case.check(f"post.{name}", state[name])


def encoders_train(case: Case) -> None:
    encoders(case, train=True)


# The graph


def _relevance(case: Case, config: GraphConfig) -> Relevance:
    module, table = Relevance(config), name_table()
    state = {table.to_ours(name): value for name, value in case.below("state.").items()}
    module.load_state_dict({str(n).removeprefix("relevance."): v for n, v in state.items()})
    return module


def adjacency(case: Case) -> None:
    given = case.data["adjacency"]
    case.holds("only detached fragments are built", given["detach"])
    config = GraphConfig(
        topk=given["topk"],
        threshold=given["threshold"],
        temperature=given["T"],
        sigma=given["sigma"],
    )
    module, (images, texts) = _relevance(case, config), given_sides(case)
    relations = module(images, texts)
    divergence = relevance_divergence(relations, images, texts, config)
    relevance = dict(zip(BLOCKS, relations.relevance, strict=True))
    for name, connect in zip(BLOCKS, relations.connect, strict=True):
        case.check(f"out.connect_{name}", connect)
        case.check(f"out.relation_{name}", relevance[name])
    for name, value in relations.overlap._asdict().items():
        case.check(f"out.{name}", value)
    case.check("out.reg_loss", divergence)
    scalar = 10 * divergence + sum(
        (relevance[name] * coef).sum() for name, coef in case.below("in.coef_").items()
    )
    case.check("out.scalar", scalar)
    scalar.backward()
    case.check("grad.in.img_emb", images.unit.grad)
    case.check("grad.in.cap_emb", texts.unit.grad)
    none = images.fragments.grad is None and texts.fragments.grad is None
    case.check("out.region_word_grad_is_none", torch.tensor([none]))
    table, parameters = name_table(), dict(module.named_parameters())
    for name in case.below("grad.criterion."):
        ours = str(table.to_ours(f"criterion.{name}")).removeprefix("relevance.")
        case.check(f"grad.criterion.{name}", parameters[ours].grad)


def adjacency_variants(case: Case) -> None:
    given, names = (
        case.data["adjacency"],
        {
            "scan": "scan_similarity",
            "img_len_use": "mask_padded_regions",
            "res": "residual",
        },
    )
    for variant, switches in case.data["variants"].items():
        config = GraphConfig(
            topk=given["topk"],
            threshold=given["threshold"],
            **{names.get(key, key): value for key, value in switches.items()},
        )
        sides = []
        for name, parts in (("img", case["in.img_regions"]), ("cap", case["in.cap_words"])):
            unit = torch.zeros(len(parts), 1)  # the case gives no embeddings
            sides.append(
                Instances(unit, unit, parts, mask_of(case[f"in.{name}_len"], parts.shape[1]))
            )
        relations = _relevance(case, config)(*sides)
        case.check(f"out.{variant}.p_t2i", relations.overlap.p_t2i)
        case.check(f"out.{variant}.p_i2t", relations.overlap.p_i2t)
        case.check(f"out.{variant}.relation_t2i", relations.relevance[BLOCKS.index("t2i")])
        case.check(f"out.{variant}.relation_i2t", relations.relevance[BLOCKS.index("i2t")])


def graph_loss(case: Case) -> None:
    size = case["in.img_emb"].shape[1]
    model = model_of(case, embed_size=size)
    images, texts = given_sides(case)
    order = case.data["draw_order"]
    draws = Recorder(case[f"in.draw.{name}"] for name in order)
    seen: list[Tensor] = []
    model.graph.layers[-1].register_forward_hook(lambda _m, _i, output: seen.append(output[0]))
    parts = _loss_parts(model)
    ids = case["in.img_ids"]
    terms = model.criterion(images, texts, ids, _pairs(ids), Clock(), draws)
    _check_losses(case, "", model, terms.losses, parts)
    for name, weight in zip(order, draws.weights, strict=True):
        case.check(f"out.weight.{name}", weight, atol=WEIGHT_ATOL)
    total = _total(model, terms.losses)
    total.backward()
    _check_graph(case, model, images, texts, seen[0])
    for name, leaf in (
        ("img_emb", images.unit),
        ("cap_emb", texts.unit),
        ("img_emb_notnorm", images.raw),
        ("cap_emb_notnorm", texts.raw),
    ):
        if f"grad.in.{name}" in case:
            case.check(f"grad.in.{name}", leaf.grad)
    parameters = official_parameters(model)
    for name in case.below("grad.criterion."):
        case.check(f"grad.criterion.{name}", parameters[f"criterion.{name}"].grad)


def _total(model: HREM, losses: dict[str, Tensor]) -> Tensor:
    return sum((model.weights[key] * value for key, value in losses.items()), torch.zeros(()))


def _loss_parts(model: HREM) -> dict[str, list[Tensor]]:
    """What each slot gives, call by call."""
    parts: dict[str, list[Tensor]] = {"base": [], "graph": []}
    for name, slot in model.slots.items():
        slot.register_forward_hook(lambda _m, _i, output, name=name: parts[name].append(output))
    return parts


def _check_losses(
    case: Case,
    step: str,
    model: HREM,
    losses: dict[str, Tensor],
    parts: dict[str, list[Tensor]],
) -> None:
    case.check(f"out.{step}loss", _total(model, losses))
    case.check(f"out.{step}loss_base", parts["base"][0])
    names = ("gnn1", "gnn2", "gnn3") if len(parts["graph"]) == 3 else ("gnn3",)
    for name, value in zip(names, parts["graph"], strict=False):
        case.check(f"out.{step}loss_{name}", value)
    if f"out.{step}reg_loss" in case:
        case.check(f"out.{step}reg_loss", losses["reg"])


def _check_graph(
    case: Case, model: HREM, images: Instances, texts: Instances, output: Tensor
) -> None:
    relations = model.relevance(images, texts)
    for name, connect, value in zip(BLOCKS, relations.connect, relations.relevance, strict=True):
        case.check(f"out.connect_{name}", connect)
        case.check(f"out.relation_{name}", value)
    case.check("out.gnn_mask", model.graph.bias(relations))
    case.check("out.gnn_input", model.graph.nodes(images, texts))
    case.check("out.gnn_output", output)
    enhanced_images, enhanced_texts = model.graph(images, texts, relations)
    case.check("out.img_emb_gnn", enhanced_images)
    case.check("out.cap_emb_gnn", enhanced_texts)


# Losses


def triplet(case: Case) -> None:
    options, constants = case.data.get("official_options", {}), case.data.get("constants", {})
    loss = loss_of("trip", options)
    assert isinstance(loss, DistanceWeightedTriplet)
    for ours, theirs in (
        ("margin", "margin"),
        ("floor", "cut_off"),
        ("dimension", "d"),
        ("cutoff", "nonzero_loss_cutoff"),
    ):
        setattr(loss, ours, constants.get(theirs, getattr(loss, ours)))
    images = case["in.img_emb"].clone().requires_grad_()
    texts = case["in.cap_emb"].clone().requires_grad_()
    scores = pair_scores(images, texts, ids := case["in.img_ids"], _pairs(ids))
    draws = Recorder([case["in.draw.i2t"], case["in.draw.t2i"]])
    value = loss(scores, Clock(), draws)
    value.backward()
    anchor, positive = matching_pairs(scores.match, _pairs(ids))
    case.check("out.loss", value)
    case.check("out.similarity", scores.values)
    case.check("out.pair_anchor", anchor)
    case.check("out.pair_positive", positive)
    case.check("out.weight_i2t", draws.weights[0], atol=WEIGHT_ATOL)
    case.check("out.weight_t2i", draws.weights[1], atol=WEIGHT_ATOL)
    case.check("grad.in.img_emb", images.grad)
    case.check("grad.in.cap_emb", texts.grad)


def _pairs(ids: Tensor) -> int:
    return int((ids[:, None] == ids[None, :]).sum())


def _given_scores(values: Tensor, ids: Tensor) -> Scores:
    match = ids[:, None] == ids[None, :]
    return Scores(values, match, torch.arange(len(ids)), n_match=_pairs(ids))


def triplet_edge(case: Case) -> None:
    loss = loss_of("trip", case.data.get("official_options", {}))
    assert isinstance(loss, DistanceWeightedTriplet)
    ids, values = case["in.img_ids"], case["in.sim"].clone().requires_grad_()
    draws = Recorder([case["in.draw.i2t"], case["in.draw.t2i"]])
    scores = _given_scores(values, ids)
    i2t, t2i = loss.directions([scores, scores.reverse()], draws)
    (i2t + t2i).backward()
    case.check("out.loss_i2t", i2t)
    case.check("out.loss_t2i", t2i)
    case.check("grad.in.sim", values.grad)
    case.check("out.weight_i2t", draws.weights[0], atol=WEIGHT_ATOL)
    case.check("out.weight_t2i", draws.weights[1], atol=WEIGHT_ATOL)
    for name, exhausted in case.below("in.sim_").items():
        draws = Recorder([case["in.draw.i2t"]])
        value = loss.directions([_given_scores(exhausted, ids)], draws)
        case.check(f"out.loss_{name}", value[0])
        case.check(f"out.row_sum_{name}", draws.weights[0].sum(dim=1), atol=WEIGHT_ATOL)


def triplet_sampling(case: Case) -> None:
    loss = loss_of("trip", case.data.get("official_options", {}))
    assert isinstance(loss, DistanceWeightedTriplet)
    scores = _given_scores(case["in.sim"], case["in.img_ids"])
    anchor, _ = matching_pairs(scores.match, scores.n_match or 0)
    weight = loss.sampling_weights(scores.values, scores.match)[0][anchor]
    case.check("out.weight", weight)
    for name in ("indices", "exponential_race_indices"):
        for key in [key for key in case.below("out.") if key.endswith(f"_{name}")]:
            seed = key.removeprefix("seed").removesuffix(f"_{name}")
            if seed.isdigit():
                case.check(f"out.{key}", Draws(int(seed)).categorical(weight))
    n, draws = case.data["n_draws"], Draws(case.data["seed"])
    counts = torch.zeros_like(weight, dtype=torch.float64)
    rows = torch.arange(len(weight))
    for _ in range(n):
        counts[rows, draws.categorical(weight)] += 1
    p = weight.double()
    band = 5 * (n * p * (1 - p)).sqrt() + 1e-6 * n
    for who, seen in (("ours", counts), ("theirs", case["out.counts"].double())):
        case.holds(f"{who} outside 5 sigma", bool(((seen - n * p).abs() <= band).all()))
    case.account_for("out.counts")


def contrastive(case: Case) -> None:
    for variant, (hardest, mask_repeat) in case.data["variants"].items():
        loss = Triplet(
            margin=case.data.get("official_options", {}).get("margin", 0.2),
            negatives="hardest" if hardest else "sum",
            mask_same_image=bool(mask_repeat),
        )
        images = case["in.img_emb"].clone().requires_grad_()
        texts = case["in.cap_emb"].clone().requires_grad_()
        value = loss(pair_scores(images, texts, case["in.img_ids"]), Clock(), Draws())
        value.backward()
        case.check(f"out.{variant}.loss", value)
        case.check(f"out.{variant}.grad_img_emb", images.grad)
        case.check(f"out.{variant}.grad_cap_emb", texts.grad)


# Training


def optim_config(case: Case) -> OptimConfig:
    options = case.data.get("official_options", {})
    return OptimConfig(
        lr=options.get("learning_rate", 5e-4),
        weight_decay=1e-4,
        max_norm=options.get("grad_clip", 2.0),
        schedule=ScheduleConfig(
            kind="step",
            milestones=[float(e) for e in options.get("lr_schedules", (15, 25))],
            decay=options.get("decay_rate", 0.1),
            unit="epoch",
        ),
    )


def param_groups(case: Case) -> None:
    model = model_of(case)
    optimizer = build_optimizer(model, optim_config(case))
    parameters, seen = official_parameters(model), 0
    for name, (index, lr, decay, betas, eps) in case.data["groups"].items():
        group = optimizer.param_groups[index]
        case.holds(
            f"{name} is not in group {index}", any(p is parameters[name] for p in group["params"])
        )
        found = [group["lr"], group["weight_decay"], *group["betas"], group["eps"]]
        case.equal(name, found, [lr, decay, *betas, eps])
        seen += 1
    case.equal("number of parameters", len(list(model.parameters())), seen)
    case.check("out.group_sizes", [len(group["params"]) for group in optimizer.param_groups])


def lr_schedule(case: Case) -> None:
    config = optim_config(case)
    groups = model_of(case).parameter_groups(config.lr, config.weight_decay)
    rates = [
        [group.lr * lr_factor(Clock(epoch=epoch), config.schedule) for group in groups]
        for epoch in case["in.epochs"].tolist()
    ]
    case.check("out.lr", rates)


def train_steps(case: Case) -> None:
    model, config = model_of(case).train(), optim_config(case)
    optimizer = build_optimizer(model, config)
    parameters, clock = official_parameters(model), Clock()
    drop = case.data.get("lr_drop_before_step")
    for step, order in enumerate(case.data["draw_order"]):
        if step == drop:
            clock.epoch = int(config.schedule.milestones[0])
        asleep = tuple(f"{name}." for name in model.sleeping(clock))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(asleep))
        set_learning_rates(optimizer, lr_factor(clock, config.schedule))
        case.check(f"out.step{step}.lr", [group["lr"] for group in optimizer.param_groups])
        draws = Recorder(case[f"in.draw.step{step}.{name}"] for name in order)
        total = _step(case, step, model, clock, draws)
        for name, weight in zip(order, draws.weights, strict=True):
            case.check(f"out.weight.step{step}.{name}", weight, atol=WEIGHT_ATOL)
        total.backward()
        for name, parameter in parameters.items():
            key = f"grad.step{step}.{name}"
            if key in case:
                case.check(key, parameter.grad)
            elif case.below(f"grad.step{step}."):
                case.holds(f"{key}: the authors have none", parameter.grad is None)
        norm = clip_gradients(model.parameters(), config.max_norm)
        case.check(f"out.step{step}.grad_norm", norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.forwards += 1
        clock.updates += 1
        _check_after_step(case, step, model, config.lr)


def _step(case: Case, step: int, model: HREM, clock: Clock, draws: Draws) -> Tensor:
    """The weighted sum of the terms of one step, everything about them checked."""
    given = case.below(f"in.step{step}.")
    batch = Batch(
        image_id=given["img_ids"],
        regions=given["images"],
        region_mask=mask_of(given["image_lengths"], given["images"].shape[1]),
        tokens=given["captions"],
        token_mask=mask_of(given["caption_lengths"], given["captions"].shape[1]),
        positive_pairs=_pairs(given["img_ids"]),
    )
    sides: dict[str, Instances] = {}
    handles = [
        encoder.register_forward_hook(
            lambda _m, _i, output, name=name: sides.update({name: output})
        )
        for name, encoder in (("img", model.images), ("cap", model.texts))
    ]
    parts = _loss_parts(model)
    losses = model(batch, clock, draws).losses
    for handle in handles:
        handle.remove()
    for slot in model.slots.values():
        slot._forward_hooks.clear()
    _check_losses(case, f"step{step}.", model, losses, parts)
    for name, side in sides.items():
        case.check(f"out.step{step}.{name}_emb", side.unit)
    return _total(model, losses)


def _check_after_step(case: Case, step: int, model: HREM, lr: float) -> None:
    """Weights and buffers. Where the true gradient is 0, Adam turns rounding noise into up to one
    learning rate a step on either side: such entries are bounded by 2 x lr x steps instead."""
    noise, done = set(case.data.get("null_gradient_parameters", ())), step + 1
    mean_of_noise = "img_enc.fc.mlp.bns.0.running_mean"  # sees that bias through momentum 0.1
    for name, value in official_state(model).items():
        key = f"post.step{step}.{name}"
        if key not in case:
            continue
        expected = case[key]
        if name in noise:
            case.account_for(key)
            case.equal(key, value, expected, atol=2 * lr * done)
        elif name.endswith("in_proj_bias"):  # its middle third is the key bias
            case.account_for(key)
            for third, (a, b) in enumerate(zip(value.chunk(3), expected.chunk(3), strict=True)):
                bound = 2 * lr * done if third == 1 else None
                case.equal(f"{key}[{third}/3]", a, b, atol=bound)
        elif name == mean_of_noise:
            case.check(key, value, atol=0.1 * lr * sum(range(done)))
        else:
            case.check(key, value)


# The authors' file


def official_checkpoint(case: Case) -> None:
    bert = case.data["bert_config"]
    heads = {"heads": bert["num_attention_heads"]}
    imported = read(case.path.with_suffix(".pth"), text=heads)
    wanted = config_of(case)
    case.holds("sizes", imported.config.embed_size == wanted.embed_size)
    case.holds("BERT", all(getattr(imported.config.text, k) == v for k, v in heads.items()))
    about = case.data["checkpoint_keys"]
    case.holds("options", imported.info["opt"] == about["opt"])
    for key in ("epoch", "best_rsum", "Eiters"):
        case.holds(key, imported.info[key] == about[key])
    model = model_of(case)
    imported.load_into(model)
    _check_weights(case, model, imported.report.ignored)
    _check_evaluation(case, model.eval())
    with tempfile.TemporaryDirectory() as folder:  # and back again
        copy = Path(folder) / "copy.pth"
        torch.save(export(model, epoch=1), copy)
        again = read(copy, text=heads)
    state = model.state_dict()
    case.holds("round trip", all(torch.equal(v, state[k]) for k, v in again.state.items()))
    case.holds("round trip is whole", again.state.keys() == imported.state.keys())


def _check_weights(case: Case, model: HREM, ignored: list[str]) -> None:
    state = official_state(model)
    for name in case.below("out.checkpoint."):
        if name in ignored:
            case.account_for(f"out.checkpoint.{name}")
        else:
            case.check(f"out.checkpoint.{name}", state[name])


def _check_evaluation(case: Case, model: HREM) -> None:
    images, captions = case["in.images"], case["in.captions"]
    lengths = case.tensors.get("in.image_lengths", torch.full((len(images),), images.shape[1]))
    batch = Batch(
        regions=images,
        region_mask=mask_of(lengths, images.shape[1]),
        tokens=captions,
        token_mask=mask_of(case["in.caption_lengths"], captions.shape[1]),
    )
    with torch.no_grad():
        v = model.encode_images(batch).pooled.double()
        u = model.encode_texts(batch).pooled.double()
    case.check("out.img_embs", v)
    case.check("out.cap_embs", u)
    case.check("out.sims", v @ u.t())
    text_to_image = torch.arange(len(u)) // (len(u) // len(v))
    hrem_data_cases.check_retrieval(case, "out.", rank_scores(v @ u.t(), text_to_image))


RUNNERS: dict[str, Runner] = {
    "adjacency": adjacency,
    "adjacency_variants": adjacency_variants,
    "contrastive": contrastive,
    "encoders_eval": encoders,
    "encoders_train": encoders_train,
    "graph_loss": graph_loss,
    "lr_schedule": lr_schedule,
    "official_checkpoint": official_checkpoint,
    "param_groups": param_groups,
    "pooling": pooling,
    "train_steps": train_steps,
    "triplet": triplet,
    "triplet_edge": triplet_edge,
    "triplet_sampling": triplet_sampling,
    **hrem_data_cases.RUNNERS,
}
