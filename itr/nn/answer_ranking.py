"""Ranks a fixed list of answers for each question by their likelihood under a decoder.

The first id after [CLS] gives a short list; the answers on it are then scored in full. Source:
ALBEF, the appendix on VQA, and the authors' code.

B questions, A answers in the list, K on the short list, T ids of the longest answer, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from itr.nn.bert.decoder import AnswerDecoder
from itr.nn.bert.fusion import KeysValues


class AnswerList(NamedTuple):
    """The ids of a fixed list of answers: [CLS], pieces, [SEP], padding."""

    tokens: Tensor  # [A, T] int64
    pieces: Tensor  # [A] int64: ids between [CLS] and [SEP]

    @classmethod
    def of(cls, tokens: Tensor, mask: Tensor) -> AnswerList:
        """From padded ids and their mask [A, T], True for [CLS] and [SEP] as well."""
        return cls(tokens, mask.sum(dim=1) - 2)

    def to(self, device: torch.device | str) -> AnswerList:
        """The same list on ``device``."""
        return AnswerList(self.tokens.to(device), self.pieces.to(device))

    def __len__(self) -> int:
        return len(self.tokens)


class RankedAnswers(NamedTuple):
    """The short list of each question, the best answer first."""

    ids: Tensor  # [B, K] int64: rows of the answer list
    probabilities: Tensor  # [B, K] float32, which add up to 1
    likelihood: Tensor  # [B, K] float32: log-likelihood of all ids, [SEP] included
    first: Tensor  # [B, A] float32: log-probability of the first id of each answer in the list


@torch.no_grad()
def rank_answers(
    decoder: AnswerDecoder,
    states: Tensor,
    mask: Tensor,
    answers: AnswerList,
    k: int,
    first_token_twice: bool = True,
) -> RankedAnswers:
    """Rank ``answers`` for questions of ``states`` [B, L, D] and ``mask`` [B, L] bool.

    The ``k`` answers with the most probable first id are ranked by the log-likelihood of all their
    ids; with ``first_token_twice`` that of the first is added once more (as the authors do). Equal
    scores keep the order of the list. Exact, though [CLS] passes the decoder once a question, its
    keys and values are cached, and an answer passes as many further positions as it has pieces.
    """
    questions, count = decoder.body.keys_values(states), len(states)
    start = answers.tokens[:1, 0].expand(count)
    state, past = decoder.next_position(start, None, questions, mask)
    after_start = decoder.logits(state).float().log_softmax(dim=1)
    first = after_start.index_select(1, answers.tokens[:, 1])
    short = first.sort(dim=1, descending=True, stable=True).indices[:, :k]
    later = _later_ids(decoder, short, answers, past, questions, mask)
    known = first.gather(1, short)
    likelihood = known + later
    total = likelihood + known if first_token_twice else likelihood
    order = total.sort(dim=1, descending=True, stable=True).indices
    return RankedAnswers(
        short.gather(1, order),
        total.gather(1, order).softmax(dim=1),
        likelihood.gather(1, order),
        first,
    )


def _later_ids(
    decoder: AnswerDecoder,
    short: Tensor,
    answers: AnswerList,
    past: list[KeysValues],
    questions: list[KeysValues],
    mask: Tensor,
) -> Tensor:
    """Log-likelihood [B, K] of all ids behind the first of the answers ``short`` [B, K]."""
    pieces, slot = answers.pieces[short].sort(dim=1, descending=True, stable=True)
    ids = answers.tokens[short.gather(1, slot)]
    longest = answers.tokens.shape[1] - 2
    # How many answers of a question have that many pieces. This is the only transfer to the host;
    # without it every answer would pass as many positions as the longest of the list.
    place = torch.arange(1, longest + 1, device=pieces.device)
    widths = (pieces[..., None] >= place).sum(dim=1).amax(dim=0).tolist()
    total = torch.zeros(short.shape, device=short.device)
    held = [(keys[:, None], values[:, None]) for keys, values in past]
    for number, width in enumerate(widths, start=1):
        if width == 0:
            break
        grown = [(_first(keys, width), _first(values, width)) for keys, values in held]
        tokens = ids[:, :width, number].flatten()
        state, grown = decoder.next_position(tokens, grown, questions, mask)
        found = decoder.log_probability(state, ids[:, :width, number + 1].flatten())
        counted = pieces[:, :width] >= number
        total[:, :width] += torch.where(counted, found.view(-1, width), 0.0)
        held = [(k.unflatten(0, (-1, width)), v.unflatten(0, (-1, width))) for k, v in grown]
    return torch.zeros_like(total).scatter(1, slot, total)


def _first(cached: Tensor, width: int) -> Tensor:
    """Of [B, W, ...] (W = 1: of all answers) the first ``width`` answers: [B width, ...]."""
    if cached.shape[1] == 1:
        cached = cached.expand(-1, width, *cached.shape[2:])
    return cached[:, :width].flatten(0, 1)
