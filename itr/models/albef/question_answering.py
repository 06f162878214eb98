"""ALBEF for visual question answering: a decoder generates the answer from the question's states.

Source: section 5 of the paper (VQA) and the authors' code.

B questions, L words, A answers of all questions, T ids of the longest, K candidates, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.models.albef.config import ALBEFConfig
from itr.models.albef.encoders import ALBEFEncoders, fused_states
from itr.models.base import Terms
from itr.nn.answer_ranking import AnswerList, rank_answers
from itr.nn.bert.decoder import AnswerDecoder
from itr.nn.chunked import in_chunks
from itr.nn.distillation import answer_costs
from itr.view import Facts


class ALBEFQuestionAnswering(ALBEFEncoders):
    """ALBEF with a causal answer decoder. Its only term is ``answer``."""

    tasks = ("vqa",)
    term_names = ("answer",)
    starts_from = ("vqa", "pretrain")

    def __init__(
        self, config: ALBEFConfig, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__(config, slots, weights, facts)
        whole = self.build_encoders()
        self.decoder = AnswerDecoder(
            self.config.text, self.facts.vocabulary, self.config.answer_depth
        )
        if whole is not None:
            self.decoder.load_bert(whole)
        if self.config.distill:
            self.build_twin("vision", "text", "fusion", "decoder")

    # The training step

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """Term ``answer``."""
        states = self.states(batch) | self.frozen_states(batch)
        return self.terms_of(states, batch, clock, draws)

    def states(self, batch: Batch) -> dict[str, Tensor]:
        """Questions that have seen their images."""
        assert batch.pixels is not None
        return {"question": fused_states(self, batch.pixels, *self.words_of(batch))}

    @torch.no_grad()
    def frozen_states(self, batch: Batch) -> dict[str, Tensor]:
        """The same from the momentum copies."""
        if self.twin is None:
            return {}
        assert batch.pixels is not None
        return {"question_key": fused_states(self.twin, batch.pixels, *self.words_of(batch))}

    def terms_of(
        self, states: Mapping[str, Tensor], batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """The weighted sum of the answers' costs, divided by the number of questions."""
        assert batch.answer_weights is not None
        costs = self.costs(states, batch, self.alpha(clock))
        return Terms({"answer": (batch.answer_weights * costs).sum() / len(batch)})

    def costs(self, states: Mapping[str, Tensor], batch: Batch, alpha: float) -> Tensor:
        """The cost [A] of each answer, given those of `states` and `frozen_states`.

        Keys and values are projected once a question. Answers pass the decoder ``chunk_pairs`` at
        a time.
        """
        assert batch.answer_tokens is not None and batch.answer_mask is not None
        _, question_mask = self.words_of(batch)
        questions = self.decoder.body.keys_values(states["question"])
        teacher, keys = self._teacher(states)

        def cost(tokens: Tensor, mask: Tensor, question_of: Tensor) -> Tensor:
            given = (tokens[:, :-1], mask[:, :-1])  # nothing follows the last id
            place = (question_mask, question_of)
            soft = None
            if teacher is not None:
                with torch.no_grad():
                    soft = teacher.logits(teacher(*given, keys, *place))
            logits = self.decoder.logits(self.decoder(*given, questions, *place))
            return answer_costs(logits, tokens[:, 1:], mask[:, 1:], soft, alpha)

        rows = question_rows(batch.answer_counts, batch.answer_tokens.device)
        return in_chunks(cost, self.chunk_pairs, batch.answer_tokens, batch.answer_mask, rows)

    @torch.no_grad()
    def _teacher(self, states: Mapping[str, Tensor]) -> tuple[AnswerDecoder | None, list]:
        """The momentum copy of the decoder, and its keys and values of the questions."""
        if self.twin is None:
            return None, []
        decoder = self.twin["decoder"]
        assert isinstance(decoder, AnswerDecoder)
        return decoder, decoder.body.keys_values(states["question_key"])

    # Answering

    def encode_questions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """States [B, L, D] of questions that have seen their images, and their mask [B, L]."""
        assert batch.pixels is not None
        tokens, mask = self.words_of(batch)
        states = fused_states(self, batch.pixels, tokens, mask, image_of=batch.image_of)
        return states, mask

    def rank_answers(
        self,
        states: Tensor,
        mask: Tensor,
        answers: AnswerList,
        k: int,
        first_token_twice: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` most probable ``answers`` of each question, the best first.

        Returns rows of the list [B, K] and probabilities [B, K]. ``states`` and ``mask`` come from
        `encode_questions`; see `itr.nn.answer_ranking.rank_answers`.
        """
        ranked = rank_answers(self.decoder, states, mask, answers, k, first_token_twice)
        return ranked.ids, ranked.probabilities

    # Initial weights

    def adopt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a pre-trained model, the fusion layers, embeddings and word head are also those of
        the decoder."""
        if any(name.startswith("decoder.") for name in state):
            return state
        sources = {
            "fusion.": "decoder.body.",
            "text.embeddings.": "decoder.embeddings.",
            "words.": "decoder.words.",
        }
        expected, adopted = self.state_dict(), dict(state)
        for name, value in state.items():
            owner = "twin." if name.startswith("twin.") else ""
            for theirs, ours in sources.items():
                if not name.startswith(owner + theirs):
                    continue
                target = owner + ours + name.removeprefix(owner + theirs)
                # Images may be wider than the questions that the decoder attends to.
                if target in expected and expected[target].shape == value.shape:
                    adopted[target] = value
                if theirs == "words.":
                    del adopted[name]
        return adopted


def question_rows(counts: Sequence[int], device: torch.device) -> Tensor:
    """The question [A] of each answer, if question b has ``counts[b]`` of them."""
    repeats = torch.tensor(counts, dtype=torch.int64)
    rows = torch.arange(len(counts)).repeat_interleave(repeats, output_size=sum(counts))
    return rows.to(device, non_blocking=True)
