"""A causal BERT decoder that attends to the states of a question (ALBEF's answers).

A answers, T positions, B questions, L words of a question, D width, V vocabulary, H heads.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM

from itr.nn.bert.bert import random_bert
from itr.nn.bert.fusion import FusionBert, FusionTextConfig, KeysValues, MLMHead
from itr.nn.bert.halves import load_mlm_head, split_whole_bert

MOST_LOGITS = 2**24  # logits held at once where only a few of the vocabulary are needed


class AnswerDecoder(nn.Module):
    """BERT layers with causal self-attention and cross-attention in each, and a tied word head."""

    def __init__(self, text: FusionTextConfig, vocabulary: int, depth: int):
        super().__init__()
        self.embeddings = random_bert(vocabulary, replace(text, depth=0)).embeddings
        self.body = FusionBert(
            depth,
            text.width,
            text.width,
            text.heads,
            text.mlp_width,
            text.dropout,
            text.layer_norm_eps,
            text.init_std,
        )
        self.words = MLMHead(text.width, vocabulary, text.layer_norm_eps, text.init_std)

    def load_bert(self, whole: BertForMaskedLM) -> None:
        """Initialize from the embeddings, the lower layers and the head of a BERT.

        Cross-attention keeps its initial weights.
        """
        self.embeddings.load_state_dict(whole.bert.embeddings.state_dict())
        _, layers = split_whole_bert(whole.bert.state_dict(), 0)
        own = self.body.state_dict()
        self.body.load_state_dict({k: v for k, v in layers.items() if k in own}, strict=False)
        load_mlm_head(whole, self.words)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        questions: list[KeysValues],
        question_mask: Tensor,
        question_of: Tensor,
    ) -> Tensor:
        """States [A, T, D] of ``tokens`` [A, T]; ``mask`` [A, T] bool.

        ``questions`` comes from ``body.keys_values`` of question states [B, L, D], of which
        ``question_mask`` [B, L] bool is the mask and ``question_of`` [A] the rows of the answers.
        """
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        return self.body(
            self._embed(tokens),
            causal & mask[:, None, None, :],
            questions,
            question_of,
            question_mask.index_select(0, question_of),
        )

    def next_position(
        self,
        tokens: Tensor,
        past: list[KeysValues] | None,
        questions: list[KeysValues],
        question_mask: Tensor,
    ) -> tuple[Tensor, list[KeysValues]]:
        """State [A, D] of the next position, whose ids are ``tokens`` [A], and its ``past``.

        ``past`` holds the keys and values [A, H, t, D / H] of the t positions before it, by layer.
        Consecutive answers share a question; all questions have equally many.
        """
        start = 0 if past is None else past[0][0].shape[2]
        states, grown = self._embed(tokens[:, None], start), []
        image_mask = question_mask[:, None, None, :]
        for number, layer in enumerate(self.body.layers):
            words = layer.words.keys_values(states)  # type: ignore[operator, union-attr]
            if past is not None:
                words = tuple(
                    torch.cat(pair, dim=2) for pair in zip(past[number], words, strict=True)
                )
            grown.append(words)
            states = layer(states, None, questions[number], image_mask, words=words)
        return states[:, 0], grown

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., V] of the next id from ``states`` [..., D]."""
        return self.words(states, self.embeddings.word_embeddings.weight)

    def log_probability(self, states: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities [P] of the ids ``targets`` [P] after ``states`` [P, D], in float32.

        Holds at most `MOST_LOGITS` logits at a time.
        """
        rows = max(1, MOST_LOGITS // len(self.words.bias))
        parts = []
        for some, wanted in zip(states.split(rows), targets.split(rows), strict=True):
            logits = self.logits(some).float()
            parts.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(dim=1))
        return torch.cat(parts)

    def _embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        places = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        return self.embeddings(input_ids=tokens, position_ids=places)
