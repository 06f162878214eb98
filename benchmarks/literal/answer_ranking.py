"""ALBEF's answering literally: one question after the other, every answer of its short list padded
to the longest of the list, and a softmax over the vocabulary at every position.

K answers on the short list, T ids of the longest answer, L words of the question, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.literal.albef import HIDDEN, attend
from itr.nn.bert.decoder import AnswerDecoder

NOT_A_WORD = -1e9


def decode(
    decoder: AnswerDecoder, tokens: Tensor, mask: Tensor, states: Tensor, words: Tensor
) -> Tensor:
    """Logits [K, T, V] of ``tokens`` [K, T] with questions ``states`` [K, L, D]."""
    length = tokens.shape[1]
    causal = torch.ones(length, length).tril() * mask[:, None, None, :].float()
    x = decoder.embeddings(input_ids=tokens)
    question = (1.0 - words.float())[:, None, None, :] * NOT_A_WORD
    for layer in decoder.body.layers:
        x = attend(layer.words, x, x, (1.0 - causal) * HIDDEN)
        x = attend(layer.image, x, states, question)
        x = layer.norm(x + layer.dropout(layer.contract(F.gelu(layer.expand(x)))))
    head = decoder.words
    embedding = decoder.embeddings.word_embeddings.weight
    return head.norm(F.gelu(head.dense(x))) @ embedding.t() + head.bias


def answer(
    decoder: AnswerDecoder,
    states: Tensor,
    words: Tensor,
    tokens: Tensor,
    mask: Tensor,
    k: int,
    twice: bool,
) -> tuple[Tensor, Tensor]:
    """Rows of the list [K] for one question, the best first, and their probabilities [K].

    ``states`` [1, L, D] and ``words`` [1, L] are those of the question, ``tokens`` and ``mask``
    [A, T] those of the list.
    """
    start = decode(decoder, tokens[:1, :1], mask[:1, :1], states, words)[0, 0]
    share = start.softmax(dim=0)[tokens[:, 1]]
    first, short = share.sort(descending=True, stable=True)
    first, short = first[:k], short[:k]
    chosen, known = tokens[short], mask[short]
    repeated = states.expand(k, -1, -1), words.expand(k, -1)
    log_p = decode(decoder, chosen, known, *repeated).log_softmax(dim=2)
    targets = log_p[:, :-1].gather(2, chosen[:, 1:, None])[..., 0]
    total = (targets * known[:, 1:]).sum(dim=1)
    if twice:
        total = total + first.log()
    order = total.sort(descending=True, stable=True).indices
    return short[order], total.softmax(dim=0)[order]
