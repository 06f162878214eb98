"""A-Former: layers of modality experts with agent cross-attention.

Source: Multi-SEA (Tian et al., Information Processing & Management 62(5), 2025). The same experts
run in two modes: uni-modal (self-attention and feed-forward) and fused, with agent attention to the
other modality in between. Implemented here because no library has agent attention, or projects the
keys and values of an item once for all its pairs.

N items, P pairs of items, L query rows, K rows of the other modality, A agents, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.errors import ConfigError
from itr.nn.gated_feed_forward import GatedFeedForward, RMSNorm
from itr.options import configured, option

Modality = Literal["text", "image"]
HIDDEN = torch.finfo(torch.float32).min  # added to the logits of masked rows; finite


@dataclass
@configured("model/multisea.yaml", "model.aformer")
class AFormerConfig:
    """The A-Former (stages 2 and 3 of Multi-SEA)."""

    depth: int = option(at_least=1)
    heads: int = option(at_least=1)
    mlp_ratio: float = option(above=0)
    agents: int = option(at_least=0)
    gate: str = option(choices=("cross", "double", "single", "none"))
    activation: str = option(choices=("hswish", "swish"))
    beta: float = option()
    attention_dropout: float = option()
    dropout: float = option()


class AgentPlan(NamedTuple):
    """Linear interpolation from L query rows to A agents; each agent mixes two rows."""

    low: Tensor  # [A] int64 row index
    high: Tensor  # [A] int64 row index
    share: Tensor  # [A, 1] weight of row ``high``

    def mix(self, rows: Tensor) -> Tensor:
        """[P, L, D] -> [P, A, D]."""
        return torch.lerp(
            rows.index_select(1, self.low), rows.index_select(1, self.high), self.share.to(rows)
        )

    def needed(self) -> tuple[Tensor, AgentPlan]:
        """Indices [1 + 2A] int64 of row 0 and the rows that agents mix, and the plan for these."""
        agents = torch.arange(len(self.low), device=self.low.device)
        rows = torch.cat([torch.zeros_like(self.low[:1]), self.low, self.high])
        return rows, AgentPlan(1 + agents, 1 + len(agents) + agents, self.share)


def agent_plan(length: int, agents: int, device: torch.device) -> AgentPlan | None:
    """The plan for ``agents`` among ``length`` rows, as in `torch.nn.functional.interpolate`
    (linear, ``align_corners=False``). None if the agents equal the rows."""
    if length == agents:
        return None
    position = (torch.arange(agents, device=device) + 0.5) * (length / agents) - 0.5
    position = position.clamp(min=0.0)
    low = position.long()
    return AgentPlan(low, (low + 1).clamp(max=length - 1), (position - low)[:, None])


class PairRows(NamedTuple):
    """Items of one modality and the index of the item in each of P pairs."""

    embeds: Tensor  # [N, L, D]
    mask: Tensor | None  # [N, L] bool; None: all rows are valid
    chosen: Tensor  # [P] int64

    def per_pair(self) -> tuple[Tensor, Tensor | None]:
        """Embeds [P, L, D] and mask [P, L] of the pairs."""
        mask = None if self.mask is None else self.mask.index_select(0, self.chosen)
        return self.embeds.index_select(0, self.chosen), mask


class Memory(NamedTuple):
    """Keys and values of the other modality, projected once per item."""

    keys: Tensor  # [N, H, K, D / H]
    values: Tensor  # [N, H, K, D / H]

    def of(self, items: Tensor) -> Memory:
        """Keys and values of ``items`` [P] int64."""
        return Memory(self.keys.index_select(0, items), self.values.index_select(0, items))


class MultiHeadAttention(nn.Module):
    """Base class: projections, output and RMSNorm. Raises ConfigError if the heads do not divide
    the width."""

    def __init__(self, width: int, heads: int, attention_dropout: float, dropout: float):
        super().__init__()
        if width % heads:
            raise ConfigError(
                f"model.aformer.heads={heads}: expected a divisor of model.embed_size={width}"
            )
        self.heads, self.attention_dropout = heads, attention_dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm = RMSNorm(width)
        self.dropout = nn.Dropout(dropout)

    def split(self, rows: Tensor) -> Tensor:
        """[P, L, D] -> [P, H, L, D / H]."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def memory(self, rows: Tensor) -> Memory:
        """Keys and values of ``rows`` [N, K, D]."""
        return Memory(self.split(self.key(rows)), self.split(self.value(rows)))

    def attend(self, queries: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """[P, H, L, d] -> [P, H, L, d]; ``mask`` [P, K] bool marks valid keys."""
        return F.scaled_dot_product_attention(
            queries,
            memory.keys,
            memory.values,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.attention_dropout if self.training else 0.0,
        )

    def project_out(self, rows: Tensor, heads: Tensor) -> Tensor:
        """RMS(x + Drop(W z + b)): ``rows`` [P, L, D], ``heads`` [P, H, L, D / H] -> [P, L, D]."""
        mixed = heads.transpose(1, 2).flatten(2)
        return self.norm(rows + self.dropout(self.out(mixed)))


class ExpertSelfAttention(MultiHeadAttention):
    """BERT's self-attention with post-norm."""

    def forward(self, x: Tensor, mask: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """[P, L, D] -> [P, L, D], or [P, R, D] of the rows with indices ``rows`` [R]."""
        query_rows = x if rows is None else x.index_select(1, rows)
        queries = self.split(self.query(query_rows))
        return self.project_out(query_rows, self.attend(queries, self.memory(x), mask))


class AgentAttention(MultiHeadAttention):
    """Agents attend to the other modality, then query rows attend to the agents.

    P1 = softmax(G K^T / sqrt(d)) over the other modality, P2 = softmax(Q G^T / sqrt(d)) over the
    agents G, x <- RMS(x + Drop(W P2 P1 V + b)). A masked query row attends to all agents uniformly.
    Agents are never masked, even if they are interpolated from masked rows.
    """

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        memory: Memory,
        memory_mask: Tensor | None,
        plan: AgentPlan | None,
        first_only: bool = False,
    ) -> Tensor:
        """``x`` [P, L, D], ``mask`` [P, L] -> [P, L, D].

        With ``first_only`` [P, 1, D]: agents still come from all rows, but only row 0 attends.
        """
        query_rows = x[:, :1] if first_only else x
        if first_only or plan is None:
            # Interpolation commutes with an affine map: fewer rows are projected for the agents.
            agents = self.query(x if plan is None else plan.mix(x))
            queries = agents if plan is None else self.query(query_rows)
            queries = queries[:, : query_rows.shape[1]]
        else:
            queries = self.query(x)
            agents = plan.mix(queries)
        heads = self.split(agents)
        gathered = self.attend(heads, memory, memory_mask)
        query_mask = None if mask is None else mask[:, : query_rows.shape[1]]
        mixed = self.diffuse(self.split(queries), heads, gathered, query_mask)
        return self.project_out(query_rows, mixed)

    def diffuse(
        self, queries: Tensor, agents: Tensor, gathered: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Queries [P, H, L, d], agents and their values [P, H, A, d] -> [P, H, L, d]."""
        if mask is None:
            return self.attend(queries, Memory(agents, gathered), None)
        # Not fused: the backward pass of a fused kernel loses the uniform 1 / A of masked rows.
        with torch.autocast(queries.device.type, enabled=False):
            logits = (queries.float() / math.sqrt(queries.shape[-1])) @ agents.float().mT
            logits = logits + torch.where(mask, 0.0, HIDDEN)[:, None, :, None]
            share = F.dropout(logits.softmax(dim=-1), self.attention_dropout, self.training)
        return share.to(gathered.dtype) @ gathered


class PlainCrossAttention(MultiHeadAttention):
    """Ablation: query rows attend to the other modality directly."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        memory: Memory,
        memory_mask: Tensor | None,
        plan: AgentPlan | None,
        first_only: bool = False,
    ) -> Tensor:
        """As `AgentAttention`; ``mask`` and ``plan`` are unused."""
        query_rows = x[:, :1] if first_only else x
        queries = self.split(self.query(query_rows))
        return self.project_out(query_rows, self.attend(queries, memory, memory_mask))


class CrossInputs(NamedTuple):
    """What P pairs of one layer's query rows attend to."""

    memory: Memory  # keys and values of N items
    chosen: Tensor  # [P] int64 item of each pair
    mask: Tensor | None  # [P, K] bool
    plan: AgentPlan | None
    first_only: bool = False  # only row 0 of the output is needed
    queries: PairRows | None = None  # set if self-attention is the same in all pairs of an item


class Expert(nn.Module):
    """The expert of one modality in a layer: self-attention, cross-attention (only if fused),
    feed-forward."""

    def __init__(self, width: int, config: AFormerConfig):
        super().__init__()
        cross = AgentAttention if config.agents else PlainCrossAttention
        hidden = int(width * config.mlp_ratio)
        # Built before the attentions, so that a seed keeps drawing the same weights.
        feedforward = GatedFeedForward(
            width, hidden, config.dropout, config.gate, config.activation, config.beta
        )
        attention = (width, config.heads, config.attention_dropout, config.dropout)
        self.attention = ExpertSelfAttention(*attention)
        self.cross = cross(*attention)
        self.feedforward = feedforward

    def forward(self, x: Tensor, mask: Tensor | None, cross: CrossInputs | None = None) -> Tensor:
        """[P, L, D] -> [P, L, D], without cross-attention if ``cross`` is None; [P, 1, D] if
        ``cross.first_only``.

        One call per layer, so that activation checkpointing and compilation cover all of it.
        """
        if cross is None:
            return self.feedforward(self.attention(x, mask))
        memory, plan = cross.memory.of(cross.chosen), cross.plan
        if cross.first_only:
            x, mask, plan = self._rows_for_first(x, mask, plan)
        elif cross.queries is not None:
            embeds, item_mask, chosen = cross.queries
            x = self.attention(embeds, item_mask).index_select(0, chosen)
        else:
            x = self.attention(x, mask)
        x = self.cross(x, mask, memory, cross.mask, plan, cross.first_only)
        return self.feedforward(x)

    def _rows_for_first(
        self, x: Tensor, mask: Tensor | None, plan: AgentPlan | None
    ) -> tuple[Tensor, Tensor | None, AgentPlan | None]:
        """Self-attention output of the rows that row 0 needs, their mask and plan."""
        if plan is None:
            return self.attention(x, mask), mask, None
        rows, row_plan = plan.needed()
        if len(rows) >= x.shape[1]:
            return self.attention(x, mask), mask, plan
        row_mask = None if mask is None else mask.index_select(1, rows)
        return self.attention(x, mask, rows), row_mask, row_plan


class AFormer(nn.Module):
    """Layers with a text expert and an image expert each, and one pooler for all passes.

    Linear layers are initialized as BERT's: normal(0, 0.02), biases 0. Raises ConfigError for
    invalid options.
    """

    def __init__(self, width: int, config: AFormerConfig):
        super().__init__()
        if config.depth < 1 or config.agents < 0:
            raise ConfigError(
                f"model.aformer: depth={config.depth}, agents={config.agents}; expected depth >= 1 "
                "and agents >= 0"
            )
        self.agents = config.agents
        self.text, self.image = (
            nn.ModuleList(Expert(width, config) for _ in range(config.depth)) for _ in range(2)
        )
        self.pooler = nn.Linear(width, width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def experts(self, kind: Modality) -> list[Expert]:
        """The experts of one modality, layer by layer."""
        return [e for e in (self.text if kind == "text" else self.image) if isinstance(e, Expert)]

    def unimodal(self, kind: Modality, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Without cross-attention: [N, L, D] -> the input and the output of each layer."""
        states = [x]
        for expert in self.experts(kind):
            x = expert(x, mask)
            states.append(x)
        return states

    def pooled(self, states: Tensor) -> Tensor:
        """tanh(W x_0 + b) of row 0: [N, L, D] -> [N, D]."""
        return self.pooler(states[:, 0]).tanh()

    def memories(self, kind: Modality, others: Tensor) -> list[Memory]:
        """Keys and values of ``others`` [N, K, D] for each layer of ``kind``."""
        return [expert.cross.memory(others) for expert in self.experts(kind)]

    def fused(
        self,
        kind: Modality,
        queries: PairRows,
        others: PairRows,
        first_only: bool = True,
        memories: Sequence[Memory] | None = None,
    ) -> list[Tensor]:
        """Fuse P pairs: ``queries`` of modality ``kind`` attend to ``others`` in every layer.

        Returns the input and the output of each layer, [P, L, D] each. With ``first_only`` the last
        output is row 0 only, [P, 1, D], and nothing else is computed for it. ``memories`` may hold
        precomputed `memories` of ``others``.
        """
        experts = self.experts(kind)
        x, mask = queries.per_pair()
        plan = agent_plan(x.shape[1], self.agents, x.device) if self.agents else None
        other_mask = None if others.mask is None else others.mask.index_select(0, others.chosen)
        states = [x]
        layers: Iterable[Memory] = memories or (e.cross.memory(others.embeds) for e in experts)
        for expert, memory in zip(experts, layers, strict=True):
            last = first_only and expert is experts[-1]
            # Without dropout, the first self-attention of an item is the same in all its pairs.
            shared = queries if expert is experts[0] and not self.training else None
            cross = CrossInputs(memory, others.chosen, other_mask, plan, last, shared)
            x = expert(x, mask, cross)
            states.append(x)
        return states


def first_rows_at_depths(states: Sequence[Tensor], depths: Sequence[int]) -> Tensor:
    """Row 0 of the states that are ``depths`` layers before the last, concatenated: [d * P, D]."""
    return torch.cat([states[-1 - depth][:, 0] for depth in depths])
