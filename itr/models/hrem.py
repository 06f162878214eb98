"""HREM: Learning Semantic Relationship among Instances for Image-Text Matching (CVPR 2023).

Fu, Mao, Song, Zhang; the fusion variant with BERT. Two encoders produce one unit embedding per
image and caption. In training, the embeddings of a batch are the nodes of a graph, and a
Transformer over it produces enhanced embeddings.

B pairs (I images = C captions = B), M fragments of a sample (R regions or L words), D joint width,
K top-k. v, u: image and caption embeddings; a tilde: enhanced by the graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.losses.score import ScoreLoss, pair_scores
from itr.models.base import (
    Encoded,
    ParameterGroup,
    RetrievalModel,
    SlotScores,
    Terms,
    parameter_names,
)
from itr.nn.attention import TransformerLayer
from itr.nn.bert.bert import TextConfig, bert_states, build_bert, with_loaded_sizes
from itr.nn.lora import LoRAConfig
from itr.nn.pooling import l2_normalize, masked_mean, masked_top2_mean
from itr.nn.region_layers import RegionMLP
from itr.options import configured, option
from itr.parallel import all_gather, world_size
from itr.view import CaptionAugment, Facts, RegionView, TextView, View


@dataclass
@configured("model/hrem.yaml", "model.graph")
class GraphConfig:
    """The graph over the instances of a batch (section 3.3 of the paper); training only."""

    warmup: int | None = option(at_least=0)
    depth: int = option(at_least=1)
    topk: int = option()
    threshold: float = option(above=0, at_most=1)
    mask_weight: float = option()
    normalize_nodes: bool = option()
    sigma: float = option(above=0)
    temperature: float = option(above=0)
    scan_similarity: bool = option()
    residual: bool = option()
    mask_padded_regions: bool = option()
    intra_connection: str = option(choices=("intra", "cross"))


@dataclass
@configured("model/hrem.yaml", "model")
class HREMConfig:
    """Options of `HREM`; the defaults are the paper's Flickr30K settings."""

    pretrained: bool = option()
    init: str | None = option()
    lora: LoRAConfig = option()
    embed_size: int = option(at_least=1)
    heads: int = option(at_least=1)
    dropout: float = option(at_least=0, below=1)
    residual_weight: float = option()
    normalize_images: bool = option()
    normalize_texts: bool = option()
    region_drop: float = option(at_least=0, below=1)
    caption_augment: bool = option()
    cutoff: float = option()
    bert_lr_factor: float = option()
    graph_lr_factor: float = option()
    shrinking_top2: bool = option()
    text: TextConfig = option()
    graph: GraphConfig = option()


class Instances(NamedTuple):
    """The encoded instances of one modality of a batch."""

    unit: Tensor  # [B, D] float32: the embedding that is scored
    raw: Tensor  # [B, D] float32: the same before normalization
    fragments: Tensor  # [B, M, D]: regions or words before the fragment-level layer
    mask: Tensor  # [B, M] bool


# 3.1 Encoders and fragment-level relations


class FragmentRelation(nn.Module):
    """Fragment-level relations: beta * top-2 of the fragments + (1 - beta) * mean of a Transformer
    layer over them."""

    def __init__(self, config: HREMConfig, normalize: bool):
        super().__init__()
        size = config.embed_size
        self.layer = TransformerLayer(size, config.heads, size, config.dropout)
        self.beta, self.normalize = config.residual_weight, normalize
        self.shrinking = config.shrinking_top2

    def forward(self, fragments: Tensor, mask: Tensor) -> Instances:
        """[B, M, D], [B, M] bool -> instances."""
        top = masked_top2_mean(fragments, mask, self.shrinking)
        mean = masked_mean(self.layer(fragments, mask[:, None, None, :]), mask)
        raw = self.beta * top.float() + (1.0 - self.beta) * mean.float()
        return Instances(l2_normalize(raw) if self.normalize else raw, raw, fragments, mask)


class HREMImageEncoder(nn.Module):
    """Encodes region features as one embedding."""

    def __init__(self, config: HREMConfig, region_width: int):
        super().__init__()
        self.project = nn.Linear(region_width, config.embed_size)
        self.mlp = RegionMLP(region_width, config.embed_size)
        for linear in (self.project, self.mlp.inner, self.mlp.outer):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.relation = FragmentRelation(config, config.normalize_images)

    def forward(self, regions: Tensor, mask: Tensor) -> Instances:
        """[B, R, width], [B, R] bool -> image instances."""
        return self.relation(self.project(regions) + self.mlp(regions), mask)


class HREMTextEncoder(nn.Module):
    """Encodes token ids as one embedding."""

    def __init__(self, config: HREMConfig, vocabulary: int):
        super().__init__()
        self.bert = build_bert(config.text, config.pretrained, vocabulary)
        self.project = nn.Linear(self.bert.config.hidden_size, config.embed_size)
        self.relation = FragmentRelation(config, config.normalize_texts)

    def forward(self, tokens: Tensor, mask: Tensor) -> Instances:
        """[B, L], [B, L] bool -> caption instances."""
        return self.relation(self.project(bert_states(self.bert, tokens)), mask)


# 3.2 Connections and relevance between instances


class Overlap(NamedTuple):
    """Fragment similarities of every image and caption, without gradient."""

    p_t2i: Tensor  # [C, I] mean over the caption's words
    p_i2t: Tensor  # [I, C] mean over the image's regions
    q_t2i: Tensor  # [C, I, K] similarities of its top-K words
    q_i2t: Tensor  # [I, C, K] similarities of its top-K regions


class Relations(NamedTuple):
    """The four blocks of the graph, stacked in the order of `BLOCKS`; rows are queries."""

    overlap: Overlap
    connect: Tensor  # [4, B, B] bool: the row may attend to the column
    relevance: Tensor  # [4, B, B]: added to the attention logits


BLOCKS = ("i2i", "i2t", "t2i", "t2t")
CHUNK = 2**27  # fragment pairs compared per chunk: 512 MB in float32


@torch.no_grad()
def fragment_overlap(images: Instances, texts: Instances, config: GraphConfig) -> Overlap:
    """Similarities of the words of every caption with the regions of every image.

    Computed in chunks of captions to bound the memory.
    """
    words = F.normalize(texts.fragments.float(), dim=-1)
    regions = F.normalize(images.fragments.float(), dim=-1)
    pairs_of_caption = words.shape[1] * regions.shape[0] * regions.shape[1]
    step = max(1, CHUNK // pairs_of_caption)
    chunks = [
        _overlap_of(chunk, chunk_mask, regions, images.mask, config)
        for chunk, chunk_mask in zip(words.split(step), texts.mask.split(step), strict=True)
    ]
    if len(chunks) == 1:
        p_t2i, p_i2t, q_t2i, q_i2t = chunks[0]
    else:
        p_t2i, p_i2t, q_t2i, q_i2t = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return Overlap(p_t2i, p_i2t.t(), q_t2i, q_i2t.transpose(0, 1))


def _overlap_of(
    words: Tensor, mask: Tensor, regions: Tensor, region_mask: Tensor, config: GraphConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four fields of `Overlap`, caption first. ``words`` [c, L, D], ``regions`` [I, R, D].

    As in the authors' code, padding words count as long as a caption has fewer than K words, and
    padded regions always count.
    """
    lengths = mask.sum(dim=1)  # [c]
    order = torch.arange(mask.shape[1], device=mask.device)
    counted = (order < lengths.clamp(min=config.topk)[:, None])[:, :, None]  # [c, L, 1]
    s = (words.flatten(0, 1) @ regions.flatten(0, 1).t()).view(*words.shape[:2], *regions.shape[:2])
    if config.scan_similarity:
        s = F.leaky_relu_(s, 0.1)
        by_word = (s * counted[..., None]).norm(dim=1, keepdim=True).clamp_(min=1e-12)
        by_region = s.norm(dim=3, keepdim=True).clamp_(min=1e-12)
        over_words, over_regions = s / by_word, s.div_(by_region)
    else:
        over_words, over_regions = s, s.clone()
    if config.mask_padded_regions:
        over_words = over_words.masked_fill(~region_mask, -torch.inf)
    rows = over_words.amax(dim=3)  # [c, L, I]: each word's best region
    over_regions.masked_fill_(~mask[:, :, None, None], -torch.inf)
    columns = over_regions.amax(dim=1)  # [c, I, R]: each region's best word
    q_t2i = rows.masked_fill(~counted, -torch.inf).topk(config.topk, dim=1).values
    p_t2i = (rows * mask[:, :, None]).sum(dim=1) / lengths[:, None]
    if config.mask_padded_regions:
        best = columns.masked_fill(~region_mask, -torch.inf).topk(config.topk, dim=2).values
        q_i2t = best.masked_fill(best == -torch.inf, 0.0)
        p_i2t = (columns * region_mask).sum(dim=2) / region_mask.sum(dim=1)
    else:
        q_i2t, p_i2t = columns.topk(config.topk, dim=2).values, columns.mean(dim=2)
    return p_t2i, p_i2t, q_t2i.transpose(1, 2), q_i2t


class Relevance(nn.Module):
    """Connections and relevance between the instances of a batch."""

    def __init__(self, config: GraphConfig):
        super().__init__()
        self.config, k = config, config.topk
        self.t2i = nn.Sequential(nn.Linear(k, k), nn.ReLU(), nn.Linear(k, 1))
        self.i2t = nn.Sequential(nn.Linear(k, k), nn.ReLU(), nn.Linear(k, 1))
        self.i2t.load_state_dict(self.t2i.state_dict())

    def forward(self, images: Instances, texts: Instances) -> Relations:
        """The four blocks. Fragments get no gradient; embeddings get it through the distances."""
        config = self.config
        overlap = fragment_overlap(images, texts, config)
        i2t, t2i = self.i2t(overlap.q_i2t).squeeze(-1), self.t2i(overlap.q_t2i).squeeze(-1)
        if config.residual:
            i2t, t2i = i2t + overlap.p_i2t, t2i + overlap.p_t2i
        both = torch.stack([images.unit, texts.unit])
        i2i, t2t = exponential_kernel(both, both, config.sigma)
        with torch.no_grad():
            crossed = config.intra_connection == "cross"
            ii, tt = both @ (both.flip(0) if crossed else both).transpose(1, 2)
            similarity = torch.stack([ii, overlap.p_i2t, overlap.p_t2i, tt])
            k = max(1, int(similarity.shape[1] * config.threshold))
            connect = similarity >= similarity.topk(k, dim=2).values[..., -1:]
        return Relations(overlap, connect, torch.stack([i2i, i2t, t2i, t2t]))


def exponential_kernel(a: Tensor, b: Tensor, sigma: float) -> Tensor:
    """exp(-distance / sigma) of ``a``, ``b`` [..., B, D]: [..., B, B].

    Distances are computed without matrix products, so that the diagonal of equal inputs is exactly
    1.
    """
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return (distance * (-1.0 / sigma)).exp()


def relevance_divergence(
    relations: Relations, images: Instances, texts: Instances, config: GraphConfig
) -> Tensor:
    """KL divergence of the learned cross-modal relevance from the similarity of the embeddings.

    The sum of both directions, a scalar.
    """
    t = config.temperature
    guide = exponential_kernel(images.unit.detach(), texts.unit.detach(), config.sigma)
    log_p = (torch.stack([guide, guide.t()]) / t).log_softmax(dim=2)
    log_q = (relations.relevance[1:3] / t).log_softmax(dim=2)
    return F.kl_div(log_p, log_q, reduction="sum", log_target=True) * (t**2 / len(guide))


# 3.3 Relation interaction by fusion


class FusionGraph(nn.Module):
    """A Transformer over the 2B instances of a batch, with relevance as an attention bias."""

    def __init__(self, config: HREMConfig):
        super().__init__()
        size = config.embed_size
        self.layers = nn.ModuleList(
            TransformerLayer(size, config.heads, size, config.dropout)
            for _ in range(config.graph.depth)
        )
        self.mask_weight, self.normalize_nodes = (
            config.graph.mask_weight,
            config.graph.normalize_nodes,
        )

    def bias(self, relations: Relations) -> Tensor:
        """Attention bias [2B, 2B], images first: lambda * relevance if connected, else -inf."""
        scaled = relations.relevance * self.mask_weight
        blocks = scaled.masked_fill(~relations.connect, -torch.inf)
        size = 2 * blocks.shape[1]
        return blocks.unflatten(0, (2, 2)).transpose(1, 2).reshape(size, size)

    def nodes(self, images: Instances, texts: Instances) -> Tensor:
        """The input [2B, D] of the Transformer, images first."""
        if self.normalize_nodes:
            return torch.cat([images.unit, texts.unit])
        return torch.cat([images.raw, texts.raw])

    def forward(
        self, images: Instances, texts: Instances, relations: Relations
    ) -> tuple[Tensor, Tensor]:
        """Enhanced embeddings of images and captions, [B, D] each, unit length."""
        x, bias = self.nodes(images, texts)[None], self.bias(relations)
        for layer in self.layers:
            x = layer(x, bias)
        enhanced_images, enhanced_texts = F.normalize(x[0], dim=-1).chunk(2)
        return enhanced_images, enhanced_texts


# The model


class HREM(RetrievalModel):
    """Slots: ``base`` scores plain embeddings, ``graph`` pairs with an enhanced embedding."""

    Config = HREMConfig
    slot_names = ("base", "graph")
    term_names = ("base", "cross", "graph", "reg")
    config: HREMConfig

    def __init__(
        self, config: HREMConfig, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__(config, slots, weights, facts)
        self._check()
        assert facts.region_width is not None
        self.images = HREMImageEncoder(config, facts.region_width)
        self.texts = HREMTextEncoder(config, facts.vocabulary)
        self.relevance = Relevance(config.graph)
        self.graph = FusionGraph(config)
        if config.pretrained:
            self.config, self.facts = with_loaded_sizes(config, facts, self.texts.bert)
            self.view = self.view_for(self.config)

    def _check(self) -> None:
        graph = self.config.graph
        if self.facts.region_width is None:
            raise ConfigError(
                "HREM needs region features, but this dataset has none; choose a dataset with "
                "region arrays, or a model that reads pixels"
            )
        positions = self.config.text.max_positions
        if not 1 <= graph.topk <= positions:
            raise ConfigError(
                f"model.graph.topk={graph.topk}: captions are padded to this length; expected 1 to "
                f"{positions}, the positions of the text encoder"
            )
        if not self.uses_term("base") and (graph.warmup != 0 or self._graph_inactive(Clock())):
            raise ConfigError(
                "loss.weights.base=0: nothing would be trained before the graph is enabled; pass "
                "model.graph.warmup=0 and a positive weight for cross, graph or reg"
            )

    @classmethod
    def view_for(cls, config: HREMConfig) -> View:
        """Regions and captions, padded to at least K; an epoch visits every caption."""
        text, topk = config.text, config.graph.topk
        plain = TextView(max_length=text.max_positions, min_pad=topk)
        augment = CaptionAugment() if config.caption_augment else None
        return View(
            kind="regions",
            tokenizer=text.tokenizer or text.name,
            text=dataclasses.replace(plain, augment=augment),
            text_eval=plain,
            regions=RegionView(drop=config.region_drop, min_pad=topk),
            regions_eval=RegionView(min_pad=topk),
            padding_is_arithmetic=True,
            vocabulary_size=text.vocabulary_size,
        )

    @classmethod
    def slot_scores(cls, config: HREMConfig, slot: str) -> SlotScores:
        """Cosines if both modalities are normalized."""
        both = config.normalize_images and config.normalize_texts
        return SlotScores(both, remedy="model.normalize_images=true model.normalize_texts=true")

    def encode_images(self, batch: Batch) -> Encoded:
        """Embeddings [B, D] of the regions."""
        assert batch.regions is not None and batch.region_mask is not None
        return Encoded(self.images(batch.regions, batch.region_mask).unit)

    def encode_texts(self, batch: Batch) -> Encoded:
        """Embeddings [B, D] of the captions."""
        assert batch.tokens is not None and batch.token_mask is not None
        return Encoded(self.texts(batch.tokens, batch.token_mask).unit)

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """Terms ``base`` and, after the warm-up, ``cross``, ``graph``, ``reg``."""
        assert batch.regions is not None and batch.region_mask is not None
        assert batch.tokens is not None and batch.token_mask is not None
        assert batch.image_id is not None
        images = self.images(batch.regions, batch.region_mask)
        texts = self.texts(batch.tokens, batch.token_mask)
        ids, pairs = batch.image_id, batch.positive_pairs
        if world_size() > 1:  # the graph and the negative sampler use the pairs of all ranks
            graph = not self._graph_inactive(clock)
            images, texts = self._gather(images, graph), self._gather(texts, graph)
            ids, pairs = all_gather(ids), batch.shared_pairs
        return self.criterion(images, texts, ids, pairs, clock, draws)

    def _gather(self, side: Instances, graph: bool) -> Instances:
        """``side`` of all ranks; raw embeddings and fragments only if the ``graph`` needs them."""
        unit = all_gather(side.unit, "full")
        if not graph:
            return Instances(unit, unit, side.fragments, side.mask)
        raw = unit if self.config.graph.normalize_nodes else all_gather(side.raw, "full")
        return Instances(unit, raw, all_gather(side.fragments), all_gather(side.mask))

    def criterion(
        self,
        images: Instances,
        texts: Instances,
        ids: Tensor,
        positive_pairs: int,
        clock: Clock,
        draws: Draws,
    ) -> Terms:
        """All terms of a batch; ``ids`` [B] are image ids.

        Computed in float32, because the sampler's log-weights reach hundreds.
        """
        terms = Terms({})

        def loss(slot: str, v: Tensor, u: Tensor) -> Tensor:
            module = self.slots[slot]
            assert isinstance(module, ScoreLoss)
            value = module(pair_scores(v, u, ids, positive_pairs or None), clock, draws)
            for key, number in module.report.items():  # the largest of the slot's calls
                key, number = f"{slot}_{key}", number.detach()
                terms.report[key] = torch.maximum(terms.report.get(key, number), number)
            return value

        with torch.autocast(ids.device.type, enabled=False):
            v, u = images.unit, texts.unit
            if self.uses_term("base"):
                terms.losses["base"] = loss("base", v, u)
            if self._graph_inactive(clock):
                return terms
            relations = self.relevance(images, texts)
            if self.uses_term("cross") or self.uses_term("graph"):
                enhanced_v, enhanced_u = self.graph(images, texts, relations)
            if self.uses_term("cross"):
                terms.losses["cross"] = loss("graph", v, enhanced_u) + loss("graph", enhanced_v, u)
            if self.uses_term("graph"):
                terms.losses["graph"] = loss("graph", enhanced_v, enhanced_u)
            if self.uses_term("reg"):
                terms.losses["reg"] = relevance_divergence(
                    relations, images, texts, self.config.graph
                )
        return terms

    def _graph_inactive(self, clock: Clock) -> bool:
        warmup = self.config.graph.warmup
        used = any(map(self.uses_term, ("cross", "graph", "reg")))
        return warmup is None or clock.forwards < warmup or not used

    def pretrained_towers(self) -> tuple[tuple[str, ...], ...]:
        """BERT; the image encoder begins with random weights."""
        return (("texts.bert",),)

    def sleeping(self, clock: Clock) -> frozenset[str]:
        """BERT's pooler and the unused norm; the graph during its warm-up."""
        names = {"texts.bert.pooler", "images.mlp.unused_norm"}
        if not self.uses_term("base"):
            names.add("slots.base")
        if self._graph_inactive(clock):
            names |= {"relevance", "graph", "slots.graph"}
        elif not self.uses_term("cross") and not self.uses_term("graph"):
            names |= {"graph", "slots.graph"}
        return frozenset(names)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[ParameterGroup]:
        """Groups for text without BERT, BERT, images, graph, and losses (without decay)."""
        config, texts = self.config, self.texts
        groups = (
            ("text", [texts.project, texts.relation], lr, weight_decay),
            ("bert", [texts.bert], lr * config.bert_lr_factor, weight_decay),
            ("image", [self.images], lr, weight_decay),
            ("graph", [self.relevance, self.graph], lr * config.graph_lr_factor, weight_decay),
            ("loss", [self.slots], lr, 0.0),
        )
        named = (
            ParameterGroup(name, parameter_names(self, modules), rate, decay)
            for name, modules, rate, decay in groups
        )
        return [group for group in named if group.names]
