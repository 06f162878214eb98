"""ALBEF's other tasks against plain second implementations, their speed laws, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.literal.answer_ranking import answer, decode
from benchmarks.operator_counts import count_operators, host_syncs
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.models.albef import ALBEF
from itr.models.albef.encoders import fused_states
from itr.nn.answer_ranking import AnswerList, rank_answers
from itr.nn.bert.fusion import FusionBert, pairs_of
from itr.nn.distillation import answer_costs, distilled_cross_entropy
from itr.official import albef as official
from itr.training.block_wrappers import checkpoint_activations, encoder_blocks
from itr.training.grad_cache import GradCacheStep
from itr.training.step import Step
from tests.models.tiny import VOCABULARY, Steps, build_task, item_batch

TASKS = ("vqa", "entailment", "nlvr2", "assignment", "grounding")
START, END = 2, 3


def total(model: Any, given: Batch, clock: Clock | None = None, draws: Draws | None = None) -> Any:
    losses = model(given, clock or Clock(epoch=1), draws or Draws(0)).losses
    return sum(losses.values(), torch.zeros(()))


# Answering


def listed(pieces: list[list[int]]) -> AnswerList:
    """The answers of these pieces."""
    rows = [torch.tensor([START, *ids, END]) for ids in pieces]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return AnswerList.of(tokens, torch.arange(tokens.shape[1]) < lengths[:, None])


def random_answers(count: int, seed: int = 0) -> AnswerList:
    """Different answers of 1 to 4 pieces, many of which share their first one."""
    draw = torch.Generator().manual_seed(seed)
    pieces: set[tuple[int, ...]] = set()
    while len(pieces) < count:
        length = int(torch.randint(1, 5, (1,), generator=draw))
        ids = torch.randint(5, VOCABULARY, (length,), generator=draw).tolist()
        pieces.add((5 + ids[0] % 9, *ids[1:]))
    return listed([list(ids) for ids in sorted(pieces)])


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize(("count", "k"), [(40, 1), (40, 7), (40, 40), (8, 8)])
def test_ranked_answers_equal_the_loop_over_questions(twice: bool, count: int, k: int) -> None:
    model, given = build_task("vqa").eval(), item_batch("vqa", 5)
    answers = random_answers(count)
    mask = torch.arange(answers.tokens.shape[1]) < answers.pieces[:, None] + 2
    with torch.inference_mode():
        states, words = model.encode_questions(given)
        ids, probabilities = model.rank_answers(states, words, answers, k, twice)
        for row in range(len(states)):
            own = slice(row, row + 1)
            expected = answer(
                model.decoder, states[own], words[own], answers.tokens, mask, k, twice
            )
            assert ids[row].tolist() == expected[0].tolist()
            torch.testing.assert_close(probabilities[row], expected[1], rtol=1e-4, atol=1e-6)


def test_answers_of_equal_scores_keep_the_order_of_the_list() -> None:
    """The same pieces four times, and an empty answer, whose first id is [SEP]."""
    model, given = build_task("vqa").eval(), item_batch("vqa", 3)
    answers = listed([[9, 8], [7], [9, 8], [], [9, 8], [9, 8]])
    with torch.inference_mode():
        states, words = model.encode_questions(given)
        for k in (1, 2, 3, 6):
            for row in model.rank_answers(states, words, answers, k)[0].tolist():
                places = [row.index(number) for number in (0, 2, 4, 5) if number in row]
                assert places == sorted(places) and len(row) == k
        ranked = rank_answers(model.decoder, states, words, answers, 6)
        likelihood = ranked.likelihood.gather(1, ranked.ids.argsort(dim=1))
        for number, pieces in ((1, [7]), (3, [])):
            ids = torch.tensor([[START, *pieces, END]]).expand(len(states), -1)
            logits = decode(model.decoder, ids, torch.ones_like(ids), states, words)
            logs = logits.log_softmax(dim=2)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
            torch.testing.assert_close(likelihood[:, number], logs.sum(dim=1), rtol=1e-4, atol=1e-5)


def test_an_answer_takes_as_many_positions_as_it_has_pieces() -> None:
    """[CLS] passes the decoder once a question, and questions are projected once."""
    model, given = build_task("vqa").eval(), item_batch("vqa", 4)
    answers = listed([[9], [8], [7], [6, 5, 9], [6, 7, 8], [5, 5]])
    passed: list[int] = []
    projected: list[int] = []
    model.decoder.embeddings.register_forward_hook(
        lambda _m, _i, output: passed.append(output.shape[0] * output.shape[1])
    )
    for layer in model.decoder.body.layers:
        layer.image.key.register_forward_hook(lambda _m, _i, out: projected.append(len(out)))
    with torch.inference_mode():
        states, words = model.encode_questions(given)
        model.rank_answers(states, words, answers, 6)
    assert passed == [4, 4 * 6, 4 * 3, 4 * 2]
    assert projected == [4] * len(model.decoder.body.layers)


def test_several_questions_of_one_image() -> None:
    model, given = build_task("vqa").eval(), item_batch("vqa", 4)
    assert given.pixels is not None
    rows, seen = torch.tensor([1, 0, 1, 1]), []
    model.vision.norm_pre.register_forward_hook(lambda _m, _i, output: seen.append(len(output)))
    few = Batch(**{**vars(given), "pixels": given.pixels[:2], "image_of": rows})
    each = Batch(**{**vars(given), "pixels": given.pixels[rows]})
    with torch.inference_mode():
        together, _ = model.encode_questions(few)
        torch.testing.assert_close(together, model.encode_questions(each)[0], rtol=1e-4, atol=1e-6)
    assert seen == [2, 4]


def test_ranking_takes_as_many_operators_for_any_number_of_questions() -> None:
    model, answers = build_task("vqa").eval(), random_answers(20)
    counts = []
    for size in (3, 9):
        with torch.inference_mode():
            encoded = model.encode_questions(item_batch("vqa", size))
            counts.append(count_operators(lambda e=encoded: model.rank_answers(*e, answers, 20)))
    assert counts[0] == counts[1] and not host_syncs(counts[0])


def test_the_cost_of_answers_equals_a_loop_over_them() -> None:
    """Loss and gradients; the loop decodes each answer alone and unpadded, in full precision."""
    model, given = build_task("vqa", momentum=0.5).train(), item_batch("vqa", 4)
    with torch.no_grad():
        model.decoder.words.bias.add_(torch.randn(VOCABULARY))
    found = total(model, given)
    found.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    assert given.answer_tokens is not None and given.answer_mask is not None
    assert given.answer_weights is not None and given.pixels is not None
    owners = [b for b, count in enumerate(given.answer_counts) for _ in range(count)]
    words, costs = model.words_of(given)[1], []
    states = fused_states(model, given.pixels, *model.words_of(given))
    with torch.no_grad():
        keys = fused_states(model.twin, given.pixels, *model.words_of(given))
    for row, owner in enumerate(owners):
        length = int(given.answer_mask[row].sum())
        ids = given.answer_tokens[row : row + 1, :length]
        own, cost = slice(owner, owner + 1), torch.zeros(())
        logits = decode(model.decoder, ids, torch.ones_like(ids), states[own], words[own])
        with torch.no_grad():
            soft = decode(
                model.twin["decoder"], ids, torch.ones_like(ids), keys[own], words[own]
            ).softmax(dim=2)
        for place in range(length - 1):
            log_p = logits[0, place].log_softmax(dim=0)
            hard = -log_p[ids[0, place + 1]]
            cost = cost + 0.6 * hard - 0.4 * (soft[0, place] * log_p).sum()
        costs.append(cost)
    expected = (given.answer_weights * torch.stack(costs)).sum() / 4
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


# Classes


def test_soft_targets_mix_with_labels() -> None:
    logits, teacher = torch.randn(5, 3), torch.randn(5, 3)
    labels = torch.tensor([0, 2, 1, 1, 0])
    hard = torch.stack([-row.log_softmax(0)[k] for row, k in zip(logits, labels, strict=True)])
    pairs = zip(logits, teacher, strict=True)
    soft = torch.stack([-(t.softmax(0) * s.log_softmax(0)).sum() for s, t in pairs])
    mixed = 0.75 * hard.mean() + 0.25 * soft.mean()
    torch.testing.assert_close(distilled_cross_entropy(logits, labels, teacher, 0.25), mixed)
    torch.testing.assert_close(distilled_cross_entropy(logits, labels, None, 0.25), hard.mean())
    none = answer_costs(
        logits[None], labels[None], torch.zeros(1, 5, dtype=torch.bool), teacher[None], 0.25
    )
    assert none.tolist() == [0.0]


@pytest.mark.parametrize("task", ["entailment", "nlvr2"])
def test_logits_do_not_depend_on_the_batch(task: str) -> None:
    model, given = build_task(task).eval(), item_batch(task, 5)
    with torch.inference_mode():
        whole = model.logits(given)
        parts = torch.cat([model.logits(part) for part in given.split(2)])
    assert whole.shape == (5, len(model.classes))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


def test_paired_layers_equal_layers_with_equal_projections() -> None:
    """Each layer projects its own image, in a model where both of a pair hold the same weights."""
    model, given = build_task("nlvr2").eval(), item_batch("nlvr2", 3)
    paired = model.fusion
    plain = FusionBert(4, 16, 12, 2, 24, 0.0).eval()
    state = dict(paired.state_dict())
    for number in (1, 3):
        for part in ("key.weight", "key.bias", "value.weight", "value.bias"):
            state[f"layers.{number}.image.{part}"] = state[f"layers.{number - 1}.image.{part}"]
    plain.load_state_dict(state)
    images, states = torch.randn(5, 7, 12), torch.randn(3, 9, 16)
    first, second = torch.tensor([0, 2, 4]), torch.tensor([1, 3, 0])
    with torch.inference_mode():
        sides = [plain.keys_values(images[rows]) for rows in (first, second)]
        each = [sides[number % 2][number] for number in range(4)]
        expected = plain(states, given.token_mask, each)
        shared = pairs_of(paired.keys_values(images), first, second)
        found = paired(states, given.token_mask, shared)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(paired.keys_values(images)) == 2


# Text assignment


def test_assigned_images() -> None:
    """Never the caption's own as another one, a third of the captions with none of their own."""
    model = build_task("assignment")
    ids = torch.arange(60) // 2  # two captions of each image
    images, draws = torch.randn(60, 5, 12), Draws(0)
    counts = torch.zeros(3)
    for _ in range(40):
        shown = model.assign(images, ids, draws)
        assert shown.valid.all()
        own, first, second = ids, ids[shown.first], ids[shown.second]
        assert ((first == own) == (shown.labels == 0)).all()
        assert ((second == own) == (shown.labels == 1)).all()
        assert (shown.first != shown.second).all()
        counts += torch.bincount(shown.labels, minlength=3)
    assert counts / counts.sum() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_similar_images_are_assigned_more_often() -> None:
    model = build_task("assignment", temperature=0.5, negative_floor=0.0)
    images = torch.randn(4, 5, 12)
    weights = model.image_weights(images, torch.arange(4))
    features = F.normalize(model.vision_proj(images[:, 0]), dim=1)
    for row in range(4):
        share = (features @ features[row] / 0.5).softmax(dim=0)
        assert float(weights[row, row]) == 0.0
        rest = [column for column in range(4) if column != row]
        torch.testing.assert_close(weights[row, rest], share[rest])


def test_text_assignment_needs_three_pairs_on_each_device() -> None:
    model = build_task("assignment")
    model.check_batch(3)
    with pytest.raises(ConfigError, match=r"batch_size.*2 pairs.*at least 3"):
        model.check_batch(2)
    steps = Steps("albef", model)
    steps(item_batch("assignment", 2))  # the last batch of an epoch, say: nothing is not a number
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_projections_are_not_trained_by_text_assignment() -> None:
    model = build_task("assignment")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps = Steps("albef", model)
    for seed in range(3):
        steps(item_batch("assignment", 6, seed))
    moved = {
        name.split(".")[0] for name, p in model.named_parameters() if not p.equal(before[name])
    }
    assert moved == {"vision", "text", "fusion", "assignment_head"}
    assert model.twin is None


# Every task


@pytest.mark.parametrize("task", TASKS)
def test_every_parameter_takes_part_or_sleeps(task: str) -> None:
    model = build_task(task)
    steps = Steps("albef", model)
    steps.micro_batch(item_batch(task, 6))
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    assert idle == {name for name, _ in model.named_parameters() if steps.sleeps(name)}
    names = [name for group in model.parameter_groups(1.0, 0.1) for name in group.names]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("chunk", [1, 4])
def test_cached_gradients_are_those_of_the_whole_batch(task: str, chunk: int) -> None:
    found = []
    for cached in (False, True):
        model = build_task(task).train()
        parts = (model, torch.device("cpu"), None, torch.amp.GradScaler("cpu", enabled=False))
        step = GradCacheStep(chunk, *parts) if cached else Step(*parts)
        step.set_requires_grad(Clock())
        model.before_step(Clock())
        loss, _ = step.forward(item_batch(task, 6), Clock(epoch=1), Draws(0))
        step.backward(loss, 1)
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), grads))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    assert found[0][1].keys() == found[1][1].keys()
    for name, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], grad, rtol=1e-3, atol=1e-6, msg=name)
    assert type(model).cacheable()


@pytest.mark.parametrize("task", TASKS)
def test_recomputed_blocks_are_called_and_give_the_same_gradient(task: str) -> None:
    found, called = [], set()
    for recomputed in (False, True):
        model = build_task(task).train()
        blocks = encoder_blocks(model)
        if recomputed:
            for name, block in blocks.items():
                block.register_forward_hook(lambda *_, name=name: called.add(name))
            assert checkpoint_activations(model) == len(blocks)
        total(model, item_batch(task)).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert called == set(blocks) and found[0].keys() == found[1].keys()
    assert any(name.startswith("decoder") for name in blocks) == (task == "vqa")
    for name, grad in found[0].items():
        assert torch.equal(found[1][name], grad), name


@pytest.mark.parametrize("task", ["vqa", "entailment", "nlvr2", "assignment"])
def test_half_precision(task: str) -> None:
    """Losses and probabilities are in full precision, and near those of full precision."""
    model, given = build_task(task).train(), item_batch(task)
    exact = total(model, given).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = total(model, given)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), exact, rtol=0.05, atol=0.05)
    if task == "vqa":
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = model.eval().encode_questions(given)
            _, probabilities = model.rank_answers(*encoded, random_answers(12), 12)
        assert probabilities.dtype == torch.float32
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", ["vqa", "entailment", "nlvr2"])
def test_without_soft_targets_there_are_no_copies(task: str) -> None:
    model = build_task(task, distill=False)
    assert model.twin is None and not any("twin" in name for name in model.state_dict())
    steps = Steps("albef", model)
    first, later = steps(item_batch(task, 6)), steps(item_batch(task, 6))
    assert torch.isfinite(first) and later < first


@pytest.mark.parametrize("task", ["vqa", "entailment", "nlvr2"])
def test_copies_move_before_the_step_and_are_not_trained(task: str) -> None:
    model = build_task(task, momentum=0.9)
    with torch.no_grad():
        model.vision.norm.weight.add_(1.0)
    before = model.twin["vision"].norm.weight.clone()
    target = model.vision.norm.weight.detach().clone()
    Steps("albef", model)(item_batch(task, 6))
    torch.testing.assert_close(model.twin["vision"].norm.weight, 0.9 * before + 0.1 * target)
    assert not list(model.twin.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_files_of_every_task_are_told_apart_and_written_back(task: str, tmp_path: Any) -> None:
    model = build_task(task, momentum_fusion=True)
    Steps("albef", model)(item_batch(task, 6))
    torch.save(official.export(model, epoch=3), tmp_path / "theirs.pth")
    imported = official.read(tmp_path / "theirs.pth", {"heads": 2, "image_heads": 3})
    assert imported.config.task == ("retrieval" if task == "grounding" else task)
    cls = ALBEF.class_for(imported.config)
    assert cls is type(model) and not imported.report.missing
    back = cls(imported.config, nn.ModuleDict(), imported.weights, imported.facts)
    imported.load_into(back)
    own, theirs = model.state_dict(), back.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


@pytest.mark.parametrize("task", ["vqa", "entailment", "nlvr2"])
def test_files_without_copies_and_with_other_nestings(task: str, tmp_path: Any) -> None:
    model = build_task(task)
    whole = official.official_state(model)
    part = {f"module.{k}": v for k, v in whole.items() if "_m." not in k}
    for name, payload in (("bare", part), ("file", {"model": part})):
        torch.save(payload, tmp_path / f"{name}.pth")
        imported = official.read(tmp_path / f"{name}.pth", {"heads": 2, "image_heads": 3})
        assert imported.config.task == task and imported.config.distill
        assert torch.equal(imported.state["twin.vision.norm.bias"], model.vision.norm.bias)
    options = {"distill": False, "alpha": 0.25}
    torch.save({"model": part, "config": options}, tmp_path / "hard.pth")
    hard = official.read(tmp_path / "hard.pth", {"heads": 2, "image_heads": 3})
    assert not hard.config.distill and hard.config.distill_weight == 0.25
    assert not any(name.startswith("twin.") for name in hard.state)


@pytest.mark.parametrize("task", ["entailment", "nlvr2", "vqa"])
def test_one_batch_can_be_learned(task: str) -> None:
    model, given = build_task(task, distill_weight=0.1, momentum=0.9), item_batch(task, 12)
    if task == "vqa":  # one answer each
        first = torch.tensor(given.answer_counts).cumsum(0) - torch.tensor(given.answer_counts)
        given.answer_tokens, given.answer_mask = (
            given.answer_tokens[first],
            given.answer_mask[first],
        )
        given.answer_weights, given.answer_counts = torch.ones(12), (1,) * 12
    with torch.no_grad():  # wide enough for narrow layers
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embeddings" not in name:
                parameter.mul_(4.0)
    optimizer, right = torch.optim.AdamW(model.parameters(), 3e-3), False
    for step in range(1, 241):
        model.train().before_step(Clock())
        optimizer.zero_grad()
        total(model, given).backward()
        optimizer.step()
        if step % 30 == 0 and (right := _answered(model.eval(), given)):
            break
    assert right


@torch.inference_mode()
def _answered(model: Any, given: Batch) -> bool:
    """Whether every item of ``given`` is answered as it should be; questions have one answer."""
    if given.answer_tokens is None:
        return torch.equal(model.logits(given).argmax(dim=1), given.labels)
    answers = AnswerList.of(given.answer_tokens, given.answer_mask)
    best, _ = model.rank_answers(*model.encode_questions(given), answers, len(answers))
    return torch.equal(answers.tokens[best[:, 0]], answers.tokens)


def test_views() -> None:
    views = {task: build_task(task).view for task in TASKS}
    assert {task: view.unit for task, view in views.items()} == {
        **dict.fromkeys(TASKS, "caption"),
        "assignment": "image",
    }
    assert {task for task, view in views.items() if view.pixels.resize == "squash"} == {"grounding"}
    assert views["vqa"].text.cleaner == "albef_question"
    assert views["vqa"].text_eval.cleaner == "albef_question_test"
    long = build_task("entailment", max_positions=64).view
    assert long.text_eval.max_length == long.text.max_length == 64
    for flip, expected in ((True, (True, True)), ("unless_sided", (True, False))):
        pixels = build_task("vqa", flip=flip).view.pixels
        assert (pixels.flip, pixels.flip_sided) == expected
    assert not build_task("vqa", flip=False).view.pixels.flip


# Grounding


@pytest.mark.parametrize("mode", ["itm", "itc"])
def test_maps_of_several_texts_of_one_image(mode: str) -> None:
    model, given = build_task("grounding").eval(), item_batch("grounding", 4)
    assert given.pixels is not None
    rows = torch.tensor([0, 0, 1, 0])
    each = model.grounding_maps(
        Batch(**{**vars(given), "pixels": given.pixels[rows]}), mode, block=None
    )
    few = Batch(**{**vars(given), "pixels": given.pixels[:2], "image_of": rows})
    together = model.grounding_maps(few, mode)
    assert together.shape == (4, 4, 4) and float(together.min()) >= 0.0
    images = Batch(image_id=given.image_id, pixels=given.pixels[rows])
    assert torch.equal(model.heat(images, given, mode), each)
    torch.testing.assert_close(together, each, rtol=1e-4, atol=1e-8)


def test_blocks_and_modes_that_do_not_exist() -> None:
    model, given = build_task("grounding").eval(), item_batch("grounding", 2)
    for mode, block, message in (
        ("itm", 1, "block=1: .* 2 to 3"),
        ("itm", 4, "block=4: .* 2 to 3"),
        ("itc", 2, "block=2: .* 0 to 1"),
        ("cam", None, "mode=cam: .*itm, itc"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.grounding_maps(given, mode, block)


# Speed laws

# Operators that are no views, of tiny models: task, most.
STEPS = [("vqa", 760), ("entailment", 510), ("nlvr2", 680), ("assignment", 570)]


@pytest.mark.parametrize(("task", "most"), STEPS)
def test_a_step_does_not_synchronize_and_its_operators_do_not_grow(task: str, most: int) -> None:
    counts = []
    for size in (4, 12):
        steps, given = Steps("albef", build_task(task)), item_batch(task, size)
        steps(given)  # AdamW makes its state in the first one
        counts.append(count_operators(lambda steps=steps, given=given: steps(given)))
    assert not host_syncs(counts[0] + counts[1])
    assert counts[0] == counts[1]
    assert counts[0].total() <= most, (counts[0].total(), counts[0].most_common(12))


def test_questions_are_projected_once_in_training() -> None:
    model, given = build_task("vqa").train(), item_batch("vqa", 4)
    rows: list[int] = []
    for layer in model.decoder.body.layers:
        layer.image.key.register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
    total(model, given)
    assert rows == [4] * len(model.decoder.body.layers)


def test_both_images_of_a_pair_are_projected_by_one_product() -> None:
    model, given = build_task("nlvr2").eval(), item_batch("nlvr2", 4)
    rows: list[Tensor] = []
    for layer in model.fusion.layers[::2]:
        layer.image.key.register_forward_hook(lambda _m, _i, output: rows.append(output))
    with torch.inference_mode():
        model.logits(given)
    assert [len(output) for output in rows] == [8, 8]
