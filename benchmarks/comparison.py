"""Runs our implementation of a method and the literal one with equal weights and compares them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.literal.plain import Choose, multinomial, update
from benchmarks.methods import LITERAL
from itr.clock import Clock
from itr.draws import Draws
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.rerank import RerankConfig
from itr.models.base import RetrievalModel
from itr.training.optim import build_optimizer, clip_gradients


def sleep(model: RetrievalModel, clock: Clock) -> None:
    """Turn off gradients of inactive parameters, as the trainer does."""
    asleep = model.sleeping(clock)
    below = tuple(f"{name}." for name in asleep)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (name in asleep or name.startswith(below)))


class Recorded(Draws):
    """Draws that record their results."""

    def __init__(self) -> None:
        super().__init__(0)
        self.columns: list[Tensor] = []

    def categorical(self, weights: Tensor) -> Tensor:
        """As `Draws`."""
        self.columns.append(super().categorical(weights))
        return self.columns[-1]

    def replay(self) -> Choose:
        """Return the recorded columns again, in any portions. A column of weight 0 is an error."""
        left = torch.cat(self.columns).tolist() if self.columns else []

        def choose(weights: Tensor) -> Tensor:
            taken = torch.tensor([left.pop(0) for _ in range(len(weights))])
            assert (weights.gather(1, taken[:, None]) > 0).all(), "drawn where nothing may be"
            return taken

        return choose


class SideBySide:
    """Our training step and the literal one on the same batch, each with its own model."""

    def __init__(self, case: Case, *overrides: str, **options: Any):
        self.model, self.config = case.model(*case.train, *overrides)
        self.clock = Clock(epoch=1, batches_per_epoch=100, forwards=100)
        sleep(self.model.train(), self.clock)
        other = copy.deepcopy(self.model)
        self.literal = LITERAL[case.name](other, **options)
        self.batch = case.batch(self.model, self.config)
        self.draws = Draws(0)
        optim = self.config.optim
        self.optimizer = build_optimizer(self.model, optim)
        groups = other.parameter_groups(optim.lr, optim.weight_decay)
        named = dict(other.named_parameters())
        self.literal_optimizer = torch.optim.AdamW(
            [
                {
                    "params": [named[name] for name in group.names],
                    "lr": group.lr,
                    "weight_decay": group.weight_decay,
                }
                for group in groups
            ],
            betas=(optim.betas[0], optim.betas[1]),
            eps=optim.eps,
            foreach=False,
            fused=False,
        )

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of terms."""
        return torch.stack([self.model.weights[key] * value for key, value in terms.items()]).sum()

    def ours_backward(self, draws: Draws | None = None) -> Tensor:
        """One micro-batch, as in the trainer."""
        self.model.before_step(self.clock)
        total = self.total(self.model(self.batch, self.clock, draws or self.draws).losses)
        total.backward()
        self.model.after_step(self.clock)
        return total.detach()

    def literal_backward(self, choose: Choose = multinomial) -> Tensor:
        """The same with the literal code, which reads the loss for a log line."""
        total = self.total(self.literal.forward(self.batch, choose))
        total.backward()
        total.item()
        return total.detach()

    def ours(self) -> None:
        """A whole step."""
        self.ours_backward()
        clip_gradients(self.model.parameters(), self.config.optim.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def literally(self) -> None:
        """A whole step."""
        self.literal_backward()
        update(self.literal.model, self.literal_optimizer, self.config.optim.max_norm)
        self.literal_optimizer.zero_grad()


def compare_losses(case: Case, batches: int = 1) -> SideBySide:
    """Assert equal losses for equal draws, without dropout. With several ``batches``, queues and
    running means take part."""
    both = SideBySide(case, *case.no_dropout)
    for _ in range(batches):
        draws = Recorded()
        found = both.ours_backward(draws)
        expected = both.literal_backward(draws.replay())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    return both


def compare_step(case: Case, batches: int = 1) -> float:
    """`compare_losses` and equal gradients; returns their largest relative difference."""
    both, worst = compare_losses(case, batches), 0.0
    theirs = dict(both.literal.model.named_parameters())
    norms = {n: p.grad.norm() for n, p in both.model.named_parameters() if p.grad is not None}
    known = {n for n, p in theirs.items() if p.grad is not None and p.grad.any()}
    assert known <= norms.keys(), f"no gradient of ours for {known - norms.keys()}"
    # A gradient that is zero in exact arithmetic is rounding noise on both sides.
    noise = 1e-5 * float(max(norms.values()))
    for name, parameter in both.model.named_parameters():
        if parameter.grad is None:
            continue
        other = theirs[name].grad
        other = torch.zeros_like(parameter.grad) if other is None else other
        difference = float((parameter.grad - other).norm())
        assert difference <= 1e-4 * float(other.norm()) + noise, f"gradient of {name}"
        if float(other.norm()) > 10 * noise:
            worst = max(worst, difference / float(other.norm()))
    return worst


class Evaluations:
    """Our evaluation and the literal one of one model on one split."""

    def __init__(self, case: Case, folder: Path):
        self.case = case
        self.model, self.config = case.model(*case.evaluate)
        self.model.eval()
        self.split = case.split(self.config, folder)
        self.tokens = case.words.table(self.split.n_captions)
        self.literal = LITERAL[case.name](self.model)
        self.rerank = RerankConfig(k=case.rerank_k) if case.rerank_k else RerankConfig()

    def ours(self) -> dict[str, Any]:
        """Metrics of the evaluator."""
        view = self.model.view
        evaluator = Evaluator(self.split, view, self.tokens, batch_size=128, rerank=self.rerank)
        return evaluator.run(self.model)

    def literally(self) -> dict[str, float]:
        """Metrics of the loops."""
        if self.case.rerank_k:
            return self.literal.evaluate(self.split, self.tokens, self.case.rerank_k)
        return self.literal.evaluate(self.split, self.tokens)


def compare_metrics(case: Case, ours: dict[str, Any], literally: dict[str, float]) -> None:
    """Assert equal recalls and, without re-ranking, median and mean ranks within 0.1 %: two scores
    that differ only by rounding may swap their ranks."""
    for key, expected in literally.items():
        if "_r" in key:
            torch.testing.assert_close(ours[key], expected, rtol=1e-6, atol=1e-9, msg=f"{key}")
        elif not case.rerank_k:
            torch.testing.assert_close(ours[key], expected, rtol=1e-3, atol=1e-9, msg=f"{key}")
