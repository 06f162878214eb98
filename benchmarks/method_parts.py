"""The method-specific parts of a training step, without the encoders.

Each part runs forward and backward from fixed fragments or embeddings, once with our code and once
with the literal code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.comparison import SideBySide
from benchmarks.literal import hrem, multisea, vse
from benchmarks.literal.plain import lengths_of, multinomial, update
from itr.batch import Batch
from itr.models.albef import ALBEF
from itr.models.alip import ALIP
from itr.models.hrem import HREM, Instances, fragment_overlap
from itr.models.momentum_contrast import MomentumFeatures
from itr.models.multisea import EnhancedFeatures, MultiSEA
from itr.models.user import USER, MomentumKeys, queue_scores
from itr.models.vse import VSE
from itr.nn.pooling import l2_normalize, masked_mean, masked_top2_mean
from itr.training.optim import clip_gradients

Part = tuple[str, Callable[[], object], Callable[[], object]]  # description, ours, literal


def leaf(*shape: int, unit: bool = False, seed: int = 0) -> Tensor:
    """A random leaf tensor that requires a gradient."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (F.normalize(values, dim=-1) if unit else values).requires_grad_()


def masks(batch: Batch) -> tuple[Tensor, Tensor]:
    """Masks of regions and of words."""
    assert batch.region_mask is not None and batch.token_mask is not None
    return batch.region_mask, batch.token_mask


def parts(both: SideBySide) -> Iterator[Part]:
    """The parts of a method."""
    known = {HREM: _hrem, USER: _user, VSE: _gpo, ALIP: _alip, ALBEF: _albef, MultiSEA: _multisea}
    yield from known[type(both.model)](both)
    both.ours_backward(), both.literal_backward()
    yield (
        "clipping and AdamW",
        lambda: _update(both),
        lambda: update(both.literal.model, both.literal_optimizer, both.config.optim.max_norm),
    )


def _update(both: SideBySide) -> None:
    clip_gradients(both.model.parameters(), both.config.optim.max_norm)
    both.optimizer.step()


def _hrem(both: SideBySide) -> Iterator[Part]:
    model, batch = both.model, both.batch
    assert isinstance(model, HREM) and batch.image_id is not None
    ids, sides = batch.image_id, masks(batch)
    width = model.config.embed_size
    fragments = [leaf(*mask.shape, width) for mask in sides]
    regions, words = (values.detach() for values in fragments)
    lengths = [lengths_of(mask) for mask in sides]
    for what, ours, literal in (
        ("top-2 pooling of regions", masked_top2_mean, hrem.top2_pool),
        ("mean pooling of regions", masked_mean, hrem.mean_pool),
    ):
        yield (
            what,
            lambda pool=ours: pool(fragments[0], sides[0]).sum().backward(),
            lambda pool=literal: pool(fragments[0], lengths[0]).sum().backward(),
        )
    given = [
        Instances(f[:, 0], f[:, 0], f, m) for f, m in zip((regions, words), sides, strict=True)
    ]
    yield (
        "adjacency, forward",
        lambda: fragment_overlap(given[0], given[1], model.config.graph),
        lambda: hrem.overlap(words, lengths[1], regions, model.config.graph.topk),
    )
    raw = [leaf(len(batch), width, seed=seed) for seed in (1, 2)]

    def graph() -> None:
        given = [
            Instances(l2_normalize(r), r, f.detach(), mask)
            for r, f, mask in zip(raw, fragments, sides, strict=True)
        ]
        pairs = batch.positive_pairs
        terms = model.criterion(given[0], given[1], ids, pairs, both.clock, both.draws)
        both.total(terms.losses).backward()

    def literal_graph() -> None:
        given = [(vse.l2norm(r), r, f.detach()) for r, f in zip(raw, fragments, strict=True)]
        both.total(both.literal.criterion(*given, lengths[1], ids, multinomial)).backward()

    yield "graph and losses", graph, literal_graph


def _gpo(both: SideBySide) -> Iterator[Part]:
    model, batch = both.model, both.batch
    assert isinstance(model, VSE)
    sides = masks(batch)
    shortest = batch.min_region_length, batch.min_token_length
    pools = model.images.pool, model.texts.pool
    literal_pools = both.literal.model.images.pool, both.literal.model.texts.pool
    fragments = [leaf(*mask.shape, model.config.embed_size) for mask in sides]

    def ours() -> None:
        found = [
            pool(f, mask, low)
            for pool, f, mask, low in zip(pools, fragments, sides, shortest, strict=True)
        ]
        torch.cat(found).sum().backward()

    def literally() -> None:
        found = [
            vse.gpo(pool, f, lengths_of(mask).float())
            for pool, f, mask in zip(literal_pools, fragments, sides, strict=True)
        ]
        torch.cat(found).sum().backward()

    yield "GPO of both sides", ours, literally
    for name, side in (("regions", 0), ("words", 1)):
        lengths = lengths_of(sides[side])
        longest = sides[side].shape[1]
        yield (
            f"GPO, weights alone, {name}",
            lambda s=side, n=longest: pools[s].weights(max(shortest[s], 1), n).sum().backward(),
            lambda s=side, n=lengths: (
                vse.pooling_weights(literal_pools[s], n.float(), sides[s]).sum().backward()
            ),
        )


def _user(both: SideBySide) -> Iterator[Part]:
    model, batch = both.model, both.batch
    assert isinstance(model, USER) and batch.image_id is not None
    ids = batch.image_id
    yield from _gpo(both)
    yield "momentum encoders follow", model.twin.update, both.literal.move_keys
    v, u = (leaf(len(batch), model.config.embed_size, unit=True, seed=n) for n in (1, 2))
    v_keys, u_keys = v.detach().clone(), u.detach().clone()

    def ours() -> None:
        terms = model.batch_terms(v, u, batch, both.clock, both.draws)
        scores = queue_scores(v, u_keys, ids, model.text_queue)
        scores.back = queue_scores(u, v_keys, ids, model.image_queue)
        model.add_term(terms, "queue", scores, both.clock, both.draws)
        both.total(terms.losses).backward()
        model.pending = MomentumKeys(v_keys, u_keys, ids)
        model.after_step(both.clock)

    def literally() -> None:
        both.total(both.literal.losses(v, u, v_keys, u_keys)).backward()

    yield "losses and queues", ours, literally


def _alip(both: SideBySide) -> Iterator[Part]:
    model, batch = both.model, both.batch
    assert isinstance(model, ALIP) and batch.image_id is not None
    ids = batch.image_id
    x, t, c = (leaf(len(batch), model.config.embed_size, unit=True, seed=n) for n in (1, 2, 3))

    def ours() -> None:
        terms = model.criterion(x, t, c, ids, batch.positive_pairs, both.clock, both.draws)
        both.total(terms.losses).backward()

    yield "gates and losses", ours, lambda: both.total(both.literal.criterion(x, t, c)).backward()


def _albef(both: SideBySide) -> Iterator[Part]:
    model, batch, literal = both.model, both.batch, both.literal
    assert isinstance(model, ALBEF) and batch.image_id is not None
    assert batch.token_mask is not None
    ids, mask, size = batch.image_id, batch.token_mask, model.config.embed_size
    yield "momentum encoders follow", model.twin.update, literal.move_keys
    v, u = (leaf(len(batch), size, unit=True, seed=n) for n in (1, 2))
    keys = MomentumFeatures(v.detach().clone(), u.detach().clone(), torch.zeros(0))
    scores = model.contrast(v, u, keys, ids, 0.4)

    def contrast() -> None:
        found = model.contrast(v, u, keys, ids, 0.4)
        model.slots["itc"](found, both.clock, both.draws).backward()
        model.pending = (keys, ids)
        model.after_step(both.clock)

    def literal_contrast() -> None:
        literal.contrast(v, u, keys.images, keys.texts, ids)[0].backward()

    yield "ITC and queues", contrast, literal_contrast
    count = len(batch)
    tokens = 1 + model.vision.patch_embed.num_patches
    images = leaf(count, tokens, model.config.image.width)
    texts = leaf(*mask.shape, model.config.text.width)
    i2t = scores.values.detach()
    t2i = scores.reverse().values.detach()

    def matching() -> None:
        chosen = model.negatives(scores, both.draws)
        fused = model.fusion.keys_values(images)
        logits = model.matching_logits(texts, mask, fused, chosen)
        F.cross_entropy(logits, (torch.arange(3 * count) < count).long()).backward()

    def literal_matching() -> None:
        literal.matching(images, texts, mask, i2t, t2i, ids, multinomial).backward()

    yield "ITM of 3B pairs", matching, literal_matching


def _multisea(both: SideBySide) -> Iterator[Part]:
    model, batch, literal = both.model, both.batch, both.literal
    assert isinstance(model, MultiSEA) and batch.image_id is not None
    assert batch.token_mask is not None
    ids, mask, width = batch.image_id, batch.token_mask, model.config.embed_size
    patches = model.images.tower.grid**2 + 1
    images, texts = leaf(len(batch), patches, width), leaf(*mask.shape, width)
    v, u = (leaf(len(batch), width, unit=True, seed=n) for n in (1, 2))
    full = torch.ones(images.shape[:2], dtype=torch.bool)

    def enhance() -> None:
        for kind, x, there in (("image", images, None), ("text", texts, mask)):
            model.aformer.unimodal(kind, x, there)[-1].sum().backward()

    def literal_enhance() -> None:
        for kind, x, there in (("image", images, full), ("text", texts, mask)):
            multisea.stack(literal.model, kind, x, there)[-1].sum().backward()

    yield "A-Former, each side alone", enhance, literal_enhance

    def matching() -> None:
        left, right = EnhancedFeatures(v, images, None), EnhancedFeatures(u, texts, mask)
        chosen = model.hard_negatives(left, right, ids, (v, u, ids), both.draws)
        model.matching(left, right, chosen).backward()

    def literal_matching() -> None:
        chosen = multisea.negatives(literal.model, v, u, ids, multinomial)
        multisea.matching(literal.model, (images, full), (texts, mask), chosen).backward()

    yield "ITM of 3B pairs, both ways", matching, literal_matching
