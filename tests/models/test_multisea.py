"""Multi-SEA against a literal second implementation, its speed laws, its starts, bad input."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    RobertaConfig,
    RobertaModel,
)
from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput

from benchmarks.literal import multisea as plain
from benchmarks.operator_counts import count_operators, host_syncs
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import CheckpointError, ConfigError, DataError
from itr.losses.triplet import Triplet
from itr.models.base import Encoded
from itr.models.build import build_slots
from itr.models.multisea import AFormerConfig, MultiSEA, MultiSEAConfig
from itr.nn.agent_attention import AFormer, PairRows
from itr.nn.bert.roberta import RobertaTextConfig
from itr.nn.clip.weights import CLIPConfig, build_clip_vision, clip_vision_weights
from itr.nn.gated_feed_forward import GatedFeedForward
from tests.models.tiny import build_directly, config_of, pixel_batch, save_archive


def config(**fields: Any) -> MultiSEAConfig:
    return config_of(MultiSEA, "multisea", **fields)


def build(loss: nn.Module | None = None, **fields: Any) -> MultiSEA:
    return build_directly(MultiSEA, "multisea", loss, **fields)


def batch(pairs: int = 6, ids: list[int] | None = None, length: int = 12) -> Batch:
    return pixel_batch(pairs, length, ids, pad=1)


def freeze(model: MultiSEA) -> None:
    asleep = model.sleeping(Clock())
    below = tuple(f"{name}." for name in asleep)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (name in asleep or name.startswith(below)))


def step(model: MultiSEA, given: Batch, draws: Draws, clock: Clock | None = None) -> Tensor:
    clock = clock or Clock(epoch=1, batches_per_epoch=4)
    model.before_step(clock)
    total = sum(model(given, clock, draws).losses.values(), torch.zeros(()))
    total.backward()
    model.after_step(clock)
    return total.detach()


# Against plain implementations


def test_losses_and_gradients_equal_the_reference() -> None:
    model, given = build().train(), batch(ids=[0, 1, 2, 2, 3, 4])
    model.image_queue.ids[:3] = torch.tensor([2, 7, 0])

    class Fixed(Draws):
        """Picks the same column whether rows come together or one by one."""

        def categorical(self, weights: Tensor) -> Tensor:
            return weights.argmax(dim=-1)

    found = model(given, Clock(epoch=1), Fixed()).losses
    itc, itm, _, _ = plain.losses(model, given, lambda weights: weights.argmax(dim=-1))
    torch.testing.assert_close(found["itc"], itc)
    torch.testing.assert_close(found["itm"], itm)
    ours = torch.autograd.grad(
        found["itc"] + found["itm"], [model.temp, model.alpha, model.itm_head.weight]
    )
    theirs = torch.autograd.grad(itc + itm, [model.temp, model.alpha, model.itm_head.weight])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [1, 5, 8, 12, 40])
@pytest.mark.parametrize("training", [True, False])
def test_first_only_equals_the_first_of_all_rows(length: int, training: bool) -> None:
    torch.manual_seed(length)
    config = AFormerConfig(2, 2, mlp_ratio=1.5, agents=8, attention_dropout=0.0, dropout=0.0)
    stack = AFormer(16, config)
    stack.train(training)
    mask = torch.arange(length) < torch.tensor([length, max(1, length // 2)])[:, None]
    queries = PairRows(torch.randn(2, length, 16), mask, torch.tensor([0, 1, 1]))
    others = PairRows(
        torch.randn(3, 7, 16), torch.ones(3, 7, dtype=torch.bool), torch.tensor([2, 0, 2])
    )
    short = stack.fused("text", queries, others)
    whole = stack.fused("text", queries, others, first_only=False)
    assert short[-1].shape == (3, 1, 16)
    torch.testing.assert_close(short[-1], whole[-1][:, :1])
    torch.testing.assert_close(short[-2], whole[-2])


def test_gate_none_equals_berts_feed_forward_block() -> None:
    sizes = BertConfig(hidden_size=16, intermediate_size=24, hidden_dropout_prob=0.0)
    rise, fall = BertIntermediate(sizes), BertOutput(sizes)
    ours = GatedFeedForward(16, 24, 0.0, gate="none")
    for part, theirs in ((ours.dense1, rise.dense), (ours.dense2, fall.dense)):
        part.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(ours(x), fall(rise(x), x))


def gallery(model: MultiSEA, images: int, captions: int) -> tuple[Encoded, Encoded]:
    random = torch.Generator().manual_seed(5)
    mask = torch.arange(12) < torch.randint(3, 13, (captions, 1), generator=random)
    return (
        Encoded(torch.randn(images, 16, generator=random), torch.randn(images, 17, 16)),
        Encoded(torch.randn(captions, 16, generator=random), torch.randn(captions, 12, 16), mask),
    )


@torch.inference_mode()
def test_reranking_equals_scoring_one_query_at_a_time() -> None:
    from itr.evaluation.rerank import RerankConfig, rerank

    model = build().eval()
    images, texts = gallery(model, 7, 20)
    expected = plain.score_matrix(model, images, texts, k=10)
    found = rerank(model, images, texts, RerankConfig(k=10, batch_size=13))
    for shortlist, scores in zip(found, expected, strict=True):
        torch.testing.assert_close(scores.gather(1, shortlist.candidates), shortlist.scores)
        assert ((scores != -100.0).sum(dim=1) == shortlist.scores.shape[1]).all()


def test_padding_is_arithmetic_but_its_ids_are_not() -> None:
    model, given = build().eval(), batch()
    assert given.tokens is not None and given.token_mask is not None
    other = dataclasses.replace(given, tokens=torch.where(given.token_mask, given.tokens, 17))
    with torch.no_grad():
        a, b = model.encode_texts(given), model.encode_texts(other)
        torch.testing.assert_close(a.pooled, b.pooled)
        torch.testing.assert_close(a.tokens, b.tokens)
        images = model.encode_images(given)
        pairs = torch.arange(6)[:, None].expand(-1, 2)
        short = Encoded(a.pooled, a.tokens[:, :11], a.mask[:, :11])  # type: ignore[index]
        some = pairs[1:]  # but for the one caption that fills the padding
        whole = model.rerank(images, a, some, "t2i")
        assert (whole - model.rerank(images, short, some, "t2i")).abs().max() > 1e-7


# What each option does


def test_options_change_what_they_name() -> None:
    given = batch()
    reference = build().train()
    base = reference(given, Clock(epoch=1), Draws()).losses
    share = build(distill=True, distill_weight=0.5).train()
    soft = share(given, Clock(epoch=1), Draws()).losses["itc"]
    assert soft != base["itc"]
    started = share(given, Clock(batch=0, batches_per_epoch=4), Draws()).losses["itc"]
    torch.testing.assert_close(started, base["itc"])  # ramped up in the first epoch
    hinge = build(Triplet(negatives="sum"), distill=True).train()
    assert hinge(given, Clock(epoch=1), Draws()).losses["itc"].isfinite()
    raw = build(enhance=False).eval()
    with torch.no_grad():
        feats = raw.encode_texts(given).pooled
        torch.testing.assert_close(feats, raw.texts(given.tokens, given.token_mask)[0])
    for fields in (
        {"queue_size": 0},
        {"itm_depths": [3, 1, 0]},
        {"negatives": "local"},
        {"aformer": dataclasses.replace(config().aformer, agents=0)},
        {"aformer": dataclasses.replace(config().aformer, gate="single", activation="swish")},
        {"aformer": dataclasses.replace(config().aformer, agents=0, gate="none")},
    ):
        assert step(build(**fields).train(), given, Draws()).isfinite()


def test_temperature_and_alpha_are_clamped_in_training_only() -> None:
    model = build()
    with torch.no_grad():
        model.temp.fill_(9.0)
        model.alpha.fill_(0.01)
        model.eval().encode_images(batch())
        assert model.temp == 9.0
        model.before_step(Clock())
    assert model.temp == 3.0
    torch.testing.assert_close(model.alpha.detach(), torch.tensor(0.2))


def test_the_queue_drops_rows_beyond_its_end() -> None:
    model, draws = build().train(), Draws()
    for pointer in (6, 0, 6):
        step(model, batch(), draws)
        assert model.image_queue.pointer == model.text_queue.pointer == pointer
    assert model.image_queue.ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]


def test_only_unfrozen_weights_are_updated() -> None:
    model = build().train()
    freeze(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step(model, batch(), Draws())
    optimizer.step()
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    tower = "images.tower."
    frozen = {"class_embedding", "positional_embedding", "conv1.weight"}
    frozen |= {"ln_pre.weight", "ln_pre.bias"}
    blocks = tuple(f"{tower}transformer.resblocks.{i}." for i in (0, 1))
    expected = {tower + name for name in frozen} | {n for n in before if n.startswith(blocks)}
    assert still == expected
    groups = {name: g for g in model.parameter_groups(1.0, 0.1) for name in g.names}
    assert groups.keys() == before.keys()
    assert groups["alpha"].lr == 1e-4 and groups["temp"].lr == 5e-4
    assert groups["texts.roberta.pooler.dense.weight"].lr == pytest.approx(0.1)


def test_modules_of_terms_of_weight_zero_are_frozen() -> None:
    model = build()
    model.weights = {"itc": 1.0, "itm": 0.0}
    assert {"itm_head", "aformer.text.0.cross"} <= model.sleeping(Clock())
    assert set(model.train()(batch(), Clock(), Draws()).losses) == {"itc"}
    model.weights = {"itc": 0.0, "itm": 1.0}
    assert "slots.itc" in model.sleeping(Clock())


# Speed


@torch.no_grad()
def test_reranking_does_not_synchronize_and_projects_each_image_once() -> None:
    model = build().eval()
    images, texts = gallery(model, 3, 30)
    pairs = torch.stack([torch.arange(30) // 10, torch.arange(30)], dim=1)
    rows: list[int] = []
    handle = model.aformer.text[0].cross.key.register_forward_hook(  # type: ignore[union-attr]
        lambda _module, inputs, _output: rows.append(inputs[0].shape[0])
    )
    counts = count_operators(lambda: model.rerank(images, texts, pairs, "t2i"))
    handle.remove()
    assert rows == [3]
    counts += count_operators(lambda: model.rerank(images, texts, pairs, "i2t"))
    assert not host_syncs(counts)
    assert sum(counts.values()) <= 520


# Starting points


def test_clip_weights_from_hugging_face_and_from_openai_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    theirs = CLIPVisionModel(sizes).eval()
    theirs.save_pretrained(tmp_path / "clip")
    image = CLIPConfig(name=str(tmp_path / "clip"), size=16, head_width=8, trained_layers=None)
    tower = build_clip_vision(image, pretrained=True).eval()
    pixels = batch().pixels
    assert pixels is not None and len(tower.transformer.resblocks) == 2
    with torch.no_grad():
        states = theirs(pixels, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(tower.tokens(pixels), states)
    openai = {f"visual.{k}": v.half() for k, v in clip_vision_weights(image.name).items()}
    torch.save({**openai, "logit_scale": torch.zeros(())}, tmp_path / "plain.pt")
    save_archive(openai, tmp_path / "archive.pt")
    for file in ("plain.pt", "archive.pt"):
        larger = dataclasses.replace(image, name=str(tmp_path / file), size=24)
        again = build_clip_vision(larger, pretrained=True)
        assert again.positional_embedding.shape == (37, 16)
        torch.testing.assert_close(
            again.transformer.resblocks[1].mlp.c_fc.weight,  # type: ignore[union-attr]
            tower.transformer.resblocks[1].mlp.c_fc.weight,  # type: ignore[union-attr]
            rtol=1e-3,
            atol=1e-3,
        )


def test_pretrained_towers_determine_the_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2}
    text = RobertaConfig(vocab_size=50, num_hidden_layers=2, max_position_embeddings=20, **small)
    RobertaModel(text).save_pretrained(tmp_path / "roberta")
    vision = CLIPVisionConfig(num_hidden_layers=4, image_size=16, patch_size=8, **small)
    CLIPVisionModel(vision).save_pretrained(tmp_path / "clip")
    model = build(
        pretrained=True,
        image=CLIPConfig(name=str(tmp_path / "clip"), size=16, head_width=8, trained_layers=None),
        text=RobertaTextConfig(name=str(tmp_path / "roberta")),
    )
    assert model.view.tokenizer == str(tmp_path / "roberta")
    found = model.config
    assert (found.pretrained, found.image.depth, found.image.patch) == (False, 3, 8)
    assert (found.text.width, found.text.depth) == (16, 2)
    assert model.facts.vocabulary == 50
    again = MultiSEA(found, nn.ModuleDict(), {}, model.facts)
    again.load_state_dict({k: v for k, v in model.state_dict().items() if "slots" not in k})
    with pytest.raises(ConfigError, match=r"text_padding=40.*pass model.text_padding=18"):
        build(
            pretrained=True,
            text_padding=40,
            image=found.image.__class__(
                name=str(tmp_path / "clip"), size=16, head_width=8, trained_layers=None
            ),
            text=RobertaTextConfig(name=str(tmp_path / "roberta")),
        )


def test_position_embeddings_are_resized() -> None:
    small, large = build(), build(image=dataclasses.replace(config().image, size=24))
    fitted = large.fit_weights(small.state_dict())
    large.load_state_dict(fitted)
    assert fitted["images.tower.positional_embedding"].shape == (37, 16)


# Bad input


def test_a_batch_without_negatives_trains_on_positives() -> None:
    for ids in ([3, 3, 3, 3], [0]):
        model = build().train()
        assert step(model, batch(len(ids), ids), Draws()).isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    # Only positives count: the matching term is that of their own logits.
    model, given = build().train(), batch(4, [3, 3, 3, 3])
    found = model(given, Clock(epoch=1), Draws()).losses["itm"]
    images = model.image_features(given.pixels)  # type: ignore[arg-type]
    texts = model.text_features(given.tokens, given.token_mask)  # type: ignore[arg-type]
    own = torch.arange(4)
    rows = PairRows(texts.embeds, texts.mask, own), PairRows(images.embeds, None, own)
    logits = [model.match_logits("text", *rows), model.match_logits("image", *rows[::-1])]
    expected = -torch.stack([part.log_softmax(1)[:, 1].mean() for part in logits]).mean()
    torch.testing.assert_close(found, expected)


def test_confident_rows_still_have_a_negative() -> None:
    model, given = build().train(), batch(3)
    with torch.no_grad():
        model.texts.project_feats.weight.mul_(3e3)
        model.images.project_feats.weight.mul_(3e3)
    assert step(model, given, Draws()).isfinite()
    images = model.image_features(given.pixels)  # type: ignore[arg-type]
    texts = model.text_features(given.tokens, given.token_mask)  # type: ignore[arg-type]
    feats = (images.feats.detach(), texts.feats.detach(), given.image_id)
    found = model.hard_negatives(images, texts, given.image_id, feats, Draws())  # type: ignore[arg-type]
    assert found.has_image.all() and found.has_text.all()
    assert (found.images != torch.arange(3)).all() and (found.texts != torch.arange(3)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_padding": 30}, r"text_padding=30: .* positions for 18 ids"),
        ({"itm_depths": [4]}, r"itm_depths=\[4\]: .* from 0 to model.aformer.depth=3"),
        ({"itm_depths": []}, r"itm_depths"),
        ({"negatives": "some"}, r"model.negatives=some: .*all, local"),
        ({"embed_size": 15}, r"model.aformer.heads=2: .*model.embed_size=15"),
        ({"image": CLIPConfig(size=15, width=16, head_width=8)}, r"size=15: .*patch=16"),
        ({"image": CLIPConfig(depth=2, trained_layers=3)}, r"depth=2, trained_layers=3"),
        ({"image": CLIPConfig(width=100)}, r"model.image.head_width=64: .*100"),
        ({"text": RobertaTextConfig(tokenizer="wordpiece")}, r"pass model.text.pad_id=0"),
        ({"aformer": AFormerConfig(gate="triple")}, r"model.aformer.gate=triple: .* cross"),
    ],
)
def test_invalid_options_are_rejected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**fields)


def test_missing_and_invalid_weights_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.image.name=.*nowhere.*pass"):
        build_clip_vision(CLIPConfig(name=str(tmp_path / "nowhere")), pretrained=True)
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"broken.pt.*truncated"):
        build_clip_vision(CLIPConfig(name=str(tmp_path / "broken.pt")), pretrained=True)
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"holds no CLIP vision Transformer"):
        build_clip_vision(CLIPConfig(name=str(tmp_path / "other.pt")), pretrained=True)


def test_images_of_another_size_and_losses_that_need_cosines() -> None:
    with pytest.raises(DataError, match=r"32 x 32"):
        build().encode_images(Batch(pixels=torch.zeros(1, 3, 32, 32)))
    loss = {"name": "x", "default": {"_target_": "itr.losses.triplet.DistanceWeightedTriplet"}}
    with pytest.raises(ConfigError, match=r"needs cosine similarities.*plain dot products"):
        build_slots(loss, MultiSEA, config())


def test_initialization_follows_the_paper() -> None:
    model = build()
    assert model.temp.item() == 1.0 and math.isclose(model.alpha.item(), 0.7, rel_tol=1e-6)
    norms = model.text_queue.features.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert (model.text_queue.features >= 0).all() and (model.image_queue.ids == -100).all()


def test_half_precision_stays_close() -> None:
    model, given, draws = build().train(), batch(), [Draws(3), Draws(3)]
    whole = model(given, Clock(epoch=1), draws[0]).losses
    with torch.autocast("cpu", torch.bfloat16):
        half = model(given, Clock(epoch=1), draws[1]).losses
    sum(half.values(), torch.zeros(())).backward()
    for name, value in whole.items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], value, rtol=0.02, atol=0.02)
