"""ALBEF against plain second implementations, its speed laws, its starting points, bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from benchmarks.operator_counts import count_operators, host_syncs
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import CheckpointError, ConfigError, DataError
from itr.models.albef import ALBEF, ALBEFConfig, image_features, text_features
from itr.models.base import Encoded
from itr.nn.bert.fusion import FusionTextConfig
from itr.nn.hard_negatives import HardNegatives, matching_loss
from itr.nn.vit import ImageConfig
from itr.official import albef as official
from itr.view import Facts
from tests.models.tiny import (
    VOCABULARY,
    build_directly,
    config_of,
    pixel_batch,
)


def config(**fields: Any) -> ALBEFConfig:
    return config_of(ALBEF, "albef", **fields)


def build(loss: nn.Module | None = None, **fields: Any) -> ALBEF:
    return build_directly(ALBEF, "albef", loss, **fields)


def batch(pairs: int = 6, length: int = 9, ids: list[int] | None = None) -> Batch:
    return pixel_batch(pairs, length, ids)


def step(model: ALBEF, given: Batch, clock: Clock, draws: Draws) -> dict[str, Tensor]:
    model.before_step(clock)
    terms = model(given, clock, draws)
    sum(terms.losses.values(), torch.zeros(())).backward()
    model.after_step(clock)
    return terms.losses


# Against plain implementations


def test_pairs_in_one_pass_equal_pairs_one_by_one() -> None:
    """Loss and gradients; the plain way projects each pair's image anew and keeps all words."""
    model, given = build(), batch()
    draws = torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor([5, 4, 1, 2, 0, 3])
    true = torch.ones(6, dtype=torch.bool)
    chosen = HardNegatives(*draws, true, true)
    assert given.pixels is not None and given.tokens is not None and given.token_mask is not None

    def sides() -> tuple[Tensor, Tensor]:
        images = image_features(model, given.pixels).tokens  # type: ignore[arg-type]
        return images, text_features(model, given.tokens, given.token_mask).tokens  # type: ignore[arg-type]

    images, texts = sides()
    fused = model.fusion.keys_values(images)
    quick = matching_loss(model.matching_logits(texts, given.token_mask, fused, chosen), chosen)
    quick.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    images, texts = sides()
    pairs = [(b, b, 1) for b in range(6)]
    pairs += [(b, int(draws[0][b]), 0) for b in range(6)]
    pairs += [(int(draws[1][b]), b, 0) for b in range(6)]
    costs = []
    for text, image, label in pairs:
        length = int(given.token_mask[text].sum())  # without padding
        states = model.fusion(
            texts[text : text + 1, :length],
            given.token_mask[text : text + 1, :length],
            model.fusion.keys_values(images[image : image + 1]),
        )
        logits = model.itm_head(states[:, 0])
        costs.append(nn.functional.cross_entropy(logits, torch.tensor([label])))
    plain = torch.stack(costs).mean()
    plain.backward()
    torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_momentum_encoders_are_updated_without_gradient() -> None:
    model, given = build(momentum=0.9), batch()
    with torch.no_grad():
        model.vision_proj.weight.add_(1.0)
    before = model.twin["vision_proj"].weight.clone()
    target = model.vision_proj.weight.detach().clone()
    step(model, given, Clock(), Draws(0))
    torch.testing.assert_close(model.twin["vision_proj"].weight, 0.9 * before + 0.1 * target)
    assert not list(model.twin.parameters())


def test_alpha_grows_during_the_first_epoch_only() -> None:
    model = build()
    at = [model.alpha(Clock(batch=b, batches_per_epoch=4)) for b in range(4)]
    assert at == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert model.alpha(Clock(epoch=1, batches_per_epoch=4)) == 0.4
    assert build(distill_warmup=False).alpha(Clock(batches_per_epoch=4)) == 0.4


def test_queue_holds_the_momentum_embeddings() -> None:
    model, given = build(), batch(ids=[3, 1, 4, 1, 5, 9])
    step(model, given, Clock(), Draws(0))
    assert given.pixels is not None
    expected = image_features(model.twin, given.pixels).unit
    torch.testing.assert_close(model.image_queue.features[:6], expected)
    assert model.text_queue.ids.tolist() == [3, 1, 4, 1, 5, 9] + 6 * [-100]
    for _ in range(2):  # a queue of 12 and batches of 6, then it goes round
        step(model, given, Clock(), Draws(0))
    assert int(model.text_queue.pointer) == 6


def test_modules_of_terms_of_weight_zero_are_frozen() -> None:
    model, given = build(task="pretrain"), batch()
    for weights in ({"itc": 0.0}, {"itm": 0.0}, {"mlm": 0.0}, {"itm": 0.0, "mlm": 0.0}):
        model.weights = {"itc": 1.0, "itm": 1.0, "mlm": 1.0, **weights}
        model.zero_grad()
        step(model, given, Clock(), Draws(0))
        idle = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is None}
        busy = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        asleep = {name.split(".")[0] for name in model.sleeping(Clock())}
        assert asleep - {"slots"} == idle - busy, weights  # this test's losses own no parameters


def test_separate_learning_rate_of_the_temperature() -> None:
    rates = {group.name: group for group in build().parameter_groups(1.0, 0.1)}
    assert "temperature" in rates["decay"].names and len(rates) == 2
    slow = {g.name: g for g in build(temperature_lr_factor=0.1).parameter_groups(1.0, 0.1)}
    assert slow["temperature"].names == ("temperature",) and slow["temperature"].lr == 0.1
    names = [name for group in slow.values() for name in group.names]
    assert sorted(names) == sorted(name for name, _ in build().named_parameters())


# Where there is nothing to choose from


@pytest.mark.parametrize("ids", [[7] * 6, [7]])
def test_a_batch_of_one_image_has_only_positives(ids: list[int]) -> None:
    model, given = build(), batch(pairs=len(ids), ids=ids)
    losses = step(model, given, Clock(), Draws(0))
    assert given.pixels is not None and given.tokens is not None and given.token_mask is not None
    with torch.no_grad():
        images = image_features(model, given.pixels).tokens
        texts = text_features(model, given.tokens, given.token_mask).tokens
        fused = model.fusion(texts, given.token_mask, model.fusion.keys_values(images))
        logits = model.itm_head(fused[:, 0])
        expected = nn.functional.cross_entropy(logits, torch.ones(len(ids), dtype=torch.int64))
    torch.testing.assert_close(losses["itm"], expected)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_mlm_loss_is_zero_without_selected_words() -> None:
    model = build(task="pretrain", mask_probability=1e-12)
    losses = step(model, batch(), Clock(), Draws(0))
    assert float(losses["mlm"].detach()) == 0.0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_distillation_of_the_contrastive_loss_only() -> None:
    model, given = build(task="pretrain"), batch()

    def losses(distill: bool, words: bool) -> dict[str, Tensor]:
        model.config = dataclasses.replace(model.config, distill=distill, distill_words=words)
        torch.manual_seed(1)
        return model(given, Clock(epoch=1), Draws()).losses

    both, contrast, neither = losses(True, True), losses(True, False), losses(False, False)
    assert both["itc"] == contrast["itc"] != neither["itc"]
    assert both["mlm"] != contrast["mlm"] == neither["mlm"]


def test_pretraining_ignores_repeated_images() -> None:
    seen: list[Tensor] = []
    model, given = build(task="pretrain"), batch(ids=[5, 5, 6, 6, 7, 8])
    model.slots["itc"].register_forward_pre_hook(lambda _m, args: seen.append(args[0].match))
    step(model, given, Clock(), Draws(0))
    assert torch.equal(seen[0], torch.eye(6, 6 + 12, dtype=torch.bool))
    assert model.view.unit == "image" and build().view.unit == "caption"


# Speed laws


@torch.no_grad()
def test_reranking_does_not_synchronize() -> None:
    model, given = build().eval(), batch()
    images, texts = model.encode_images(given), model.encode_texts(given)
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    counts = count_operators(lambda: model.rerank(images, texts, pairs, "both"))
    assert not host_syncs(counts) and counts.total() <= 75, counts.total()


def test_reranking_projects_each_image_once() -> None:
    model, given = build().eval(), batch()
    rows: list[int] = []
    for layer in model.fusion.layers:
        layer.image.key.register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
    with torch.inference_mode():
        images, texts = model.encode_images(given), model.encode_texts(given)
        pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6))
        model.rerank(images, texts, pairs, "both")
    assert rows == [6, 6]


def test_reranking_scores_do_not_depend_on_the_batch() -> None:
    model, given = build().eval(), batch()
    with torch.inference_mode():
        images, texts = model.encode_images(given), model.encode_texts(given)
        pairs = torch.tensor([[0, 3], [0, 5], [2, 2], [4, 0]])
        found = model.rerank(images, texts, pairs, "both")
        assert images.tokens is not None and texts.tokens is not None and texts.mask is not None
        for (image, text), score in zip(pairs.tolist(), found, strict=True):
            alone = model.rerank(
                Encoded(images.pooled[[image]], images.tokens[[image]]),
                Encoded(texts.pooled[[text]], texts.tokens[[text]], texts.mask[[text]]),
                torch.zeros(1, 2, dtype=torch.int64),
                "both",
            )
            torch.testing.assert_close(alone[0], score, rtol=1e-5, atol=1e-6)


# Starting points


def whole_bert(folder: Path) -> BertForMaskedLM:
    whole = BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY + 2,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=20,
        )
    )
    whole.save_pretrained(folder)
    return whole


def test_pretrained_towers_from_bert_and_deit(tmp_path: Path) -> None:
    whole = whole_bert(tmp_path / "bert")
    deit = build(image=ImageConfig(size=8, patch=4, width=12, depth=2, heads=3)).vision
    extra = {"head.weight": torch.zeros(5, 12), "head.bias": torch.zeros(5)}
    torch.save({"model": {**deit.state_dict(), **extra}}, tmp_path / "deit.pth")
    sizes = config()
    model = build(
        task="pretrain",
        pretrained=True,
        image=dataclasses.replace(sizes.image, name=str(tmp_path / "deit.pth")),
        text=FusionTextConfig(name=str(tmp_path / "bert"), fusion_layer=2),
    )
    names = [name for name, _ in model.vision.named_parameters() if name != "pos_embed"]
    for name in names:
        assert torch.equal(model.vision.get_parameter(name), deit.get_parameter(name)), name
    assert model.vision.pos_embed.shape == (1, 17, 12)
    upper = whole.bert.encoder.layer[3]
    assert torch.equal(model.fusion.layers[1].words.query.weight, upper.attention.self.query.weight)
    assert torch.equal(model.fusion.layers[1].contract.bias, upper.output.dense.bias)
    lower = whole.bert.encoder.layer[1]
    assert torch.equal(model.text.encoder.layer[1].output.dense.weight, lower.output.dense.weight)
    assert torch.equal(model.words.dense.weight, whole.cls.predictions.transform.dense.weight)
    assert torch.equal(model.twin["words"].bias, model.words.bias)
    assert model.facts.vocabulary == VOCABULARY + 2 and not model.config.pretrained
    rebuilt = ALBEF(model.config, nn.ModuleDict(), model.weights, model.facts)
    rebuilt.load_state_dict(model.state_dict())


def test_missing_pretrained_weights_are_an_error(tmp_path: Path) -> None:
    named = FusionTextConfig(name=str(tmp_path), fusion_layer=2)
    with pytest.raises(ConfigError, match=r"model\.image\.name=nowhere.*pretrained=false"):
        image = dataclasses.replace(config().image, name="nowhere")
        build(pretrained=True, image=image, text=named)
    deit = build(image=ImageConfig(size=8, patch=4, width=6, depth=2, heads=3)).vision
    torch.save(deit.state_dict(), tmp_path / "small.pth")
    image = dataclasses.replace(config().image, name=str(tmp_path / "small.pth"))
    with pytest.raises(
        ConfigError, match=r"model\.image\.name=.*small\.pth.*model\.image\.\{patch,width,depth\}"
    ):
        build(pretrained=True, image=image, text=named)


# The authors' files

HEADS = {"heads": 2, "image_heads": 3}


@pytest.mark.parametrize("task", ["retrieval", "pretrain"])
@pytest.mark.parametrize("nesting", ["file", "bare", "parallel"])
def test_import_and_export_of_an_authors_file(tmp_path: Path, task: str, nesting: str) -> None:
    model = build(task=task, momentum_fusion=True)
    step(model, batch(), Clock(), Draws(0))
    payload = official.export(model, epoch=3)
    if nesting == "bare":
        payload = payload["model"]
    elif nesting == "parallel":
        payload["model"] = {f"module.{k}": v for k, v in payload["model"].items()}
    torch.save(payload, tmp_path / "theirs.pth")
    imported = official.read(tmp_path / "theirs.pth", HEADS)
    assert imported.config.task == task and not imported.report.missing
    back = ALBEF(imported.config, nn.ModuleDict(), imported.weights, imported.facts)
    imported.load_into(back)
    own, theirs = model.state_dict(), back.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_authors_file_without_momentum_and_queues(tmp_path: Path) -> None:
    model = build()
    whole = official.official_state(model)
    part = {k: v for k, v in whole.items() if "_m." not in k and "queue" not in k}
    torch.save({"model": part}, tmp_path / "online.pth")
    imported = official.read(tmp_path / "online.pth", HEADS)
    assert all("queue." in name for name in imported.report.missing)
    name = "vision.norm.weight"
    assert torch.equal(imported.state[f"twin.{name}"], imported.state[name])


def test_invalid_files_are_rejected(tmp_path: Path) -> None:
    model = build()
    state = official.official_state(model)
    path = tmp_path / "file.pth"
    torch.save({"model": [{}, {}], "opt": {}}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of the authors of ALBEF"):
        official.read(path)
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"12 wide.*model\.image\.heads"):
        official.read(path)
    torch.save({"model": {k: v for k, v in state.items() if k != "temp"}}, path)
    with pytest.raises(CheckpointError, match=r"missing \(1\): temperature"):
        official.read(path, HEADS)
    torch.save({"model": {**state, "itm_head.weight": torch.zeros(2, 5)}}, path)
    with pytest.raises(CheckpointError, match=r"itm_head\.weight \(2, 5\), expected \(2, 16\)"):
        official.read(path, HEADS)


def test_position_embeddings_are_resized_to_the_image_size() -> None:
    small, large = build(), build(image=dataclasses.replace(config().image, size=24))
    fitted = large.fit_weights(small.state_dict())
    large.load_state_dict(fitted)
    assert large.vision.pos_embed.shape == (1, 37, 12)


# Bad input


def test_captions_longer_than_the_position_embeddings() -> None:
    model = build()
    assert model.view.text.max_length == 20
    assert build(eval_length=30).view.text_eval.max_length == 20
    with pytest.raises(DataError, match=r"25 token ids.* 20 positions.*model\.train_length"):
        model.encode_texts(batch(length=25))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "finetune"}, r"model\.task=finetune: .*retrieval, pretrain"),
        ({"image": ImageConfig(size=18, patch=4)}, r"model\.image\.size=16"),
        ({"image": ImageConfig(size=16, patch=4, width=10, heads=3)}, r"image\.heads=3: .*10"),
        ({"text": FusionTextConfig(fusion_layer=12)}, r"model\.text\.fusion_layer=12: .* 1 to 11"),
        ({"pretrained": True}, r"model\.text\.tokenizer=wordpiece.*model\.pretrained=false"),
    ],
)
def test_invalid_configurations_are_rejected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**fields)


def test_pretraining_needs_a_mask_token() -> None:
    with pytest.raises(ConfigError, match=r"no \[MASK\]"):
        ALBEF(config(task="pretrain"), nn.ModuleDict(), {}, Facts(vocabulary=VOCABULARY))
