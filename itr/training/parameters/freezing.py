"""Modules that are not trained, for a time or at all."""

from __future__ import annotations

from torch.nn.modules.batchnorm import _BatchNorm

from itr.clock import Clock
from itr.errors import ConfigError, first_of, nearest
from itr.models.base import Model
from itr.training.config import TrainerConfig

SHOWN = 12  # names in a message


class Freezing:
    """The modules of ``trainer.freeze``, which sleep until update ``trainer.thaw_at``, and the
    weights beside adapters, which sleep for ever.

    A frozen parameter gets no gradient, hence no update, no decay and no moments. Batch
    normalization in a frozen module uses its running statistics and leaves them as they are.
    Raises ConfigError for a name that is no module or parameter of ``model``, and if nothing would
    be trained.
    """

    def __init__(self, model: Model, settings: TrainerConfig):
        self.model, self.thaw_at = model, settings.thaw_at
        self.names = frozenset(full for name in settings.freeze for full in _expanded(model, name))
        if settings.thaw_at is not None and not settings.freeze:
            raise ConfigError(
                f"trainer.thaw_at={settings.thaw_at}: nothing is frozen; pass "
                "trainer.freeze=[image], or leave it out"
            )
        self.norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
        trained, total = self.counts()
        if not trained:
            raise ConfigError(
                f"trainer.freeze={settings.freeze}: all {total:,} parameters are frozen, so "
                "nothing would be trained; leave a module out"
            )

    def counts(self) -> tuple[int, int]:
        """How many parameters are trained while the modules are frozen, and how many there are."""
        sizes = {name: p.numel() for name, p in self.model.named_parameters()}
        trained = sum(size for name, size in sizes.items() if not self._is_frozen(name))
        return trained, sum(sizes.values())

    def _is_frozen(self, parameter: str) -> bool:
        below = tuple(f"{name}." for name in self.names)
        return (
            parameter in self.names
            or parameter in self.model.frozen_weights
            or parameter.startswith(below)
        )

    def _thawed(self, clock: Clock) -> bool:
        return self.thaw_at is not None and clock.updates >= self.thaw_at

    def asleep(self, clock: Clock) -> frozenset[str]:
        """The names that are frozen at ``clock``."""
        beside_adapters = self.model.frozen_weights
        return beside_adapters if self._thawed(clock) else self.names | beside_adapters

    def hold(self, clock: Clock) -> None:
        """Put batch normalization in frozen modules into eval mode; call it after `train`."""
        names = frozenset() if self._thawed(clock) else self.names
        below = tuple(f"{name}." for name in names)
        for name, norm in self.norms.items():
            beside_adapters = f"{name}.weight" in self.model.frozen_weights
            if name in names or name.startswith(below) or beside_adapters:
                norm.eval()

    def describe(self) -> str:
        """A line for the log; empty if nothing is frozen."""
        trained, total = self.counts()
        share = f"{trained:,} of {total:,} parameters are trained"
        if not self.names:
            return f"model.lora: {share}" if self.model.frozen_weights else ""
        until = "" if self.thaw_at is None else f" until update {self.thaw_at}"
        return f"trainer.freeze: {', '.join(sorted(self.names))} frozen{until}: {share}"


def _expanded(model: Model, name: str) -> tuple[str, ...]:
    """``image`` and ``text`` as the model's own modules; other names as they are."""
    towers = model.towers()
    if name in towers:
        return towers[name]
    known = {n for n, m in model.named_modules() if n and any(True for _ in m.parameters())}
    known |= {n for n, _ in model.named_parameters()}
    if name not in known:
        top = [n for n in sorted(known) if n.count(".") <= (1 if n.startswith("tower.") else 0)]
        raise ConfigError(
            f"trainer.freeze={name}: no module or parameter of this model"
            f"{nearest(name, [*towers, *known])}; expected {', '.join(towers)}, or a name such as "
            f"{first_of(top, SHOWN)}"
        )
    return (name,)
