"""Momentum encoders against the formula, parameter by parameter; their modes are their own."""

from __future__ import annotations

import torch
from torch import nn

from itr.nn.momentum import MomentumTwin


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.gru = nn.GRU(4, 2, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(self.norm(self.linear(x))[:, None])[0].squeeze(1)


class Model(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.images, self.texts = Encoder(), Encoder()
        sources = {"images": self.images, "texts": self.texts}
        self.twin = MomentumTwin(sources, 0.9, **options)  # type: ignore[arg-type]


def shake(module: nn.Module) -> None:
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point():
                value.add_(torch.rand_like(value))


def test_update_follows_the_formula() -> None:
    torch.manual_seed(0)
    for copy_buffers in (False, True):
        model = Model(copy_buffers=copy_buffers)
        before = {name: value.clone() for name, value in model.twin.state_dict().items()}
        shake(model.images)
        shake(model.texts)
        sources = {name: v for name, v in model.state_dict().items() if "twin" not in name}
        parameters = {name for name, _ in model.named_parameters()}
        model.twin.update()
        for name, found in model.twin.state_dict().items():
            if name in parameters:
                expected = 0.9 * before[name] + 0.1 * sources[name]
            else:
                expected = sources[name] if copy_buffers else before[name]
            torch.testing.assert_close(found, expected)
        x = torch.randn(5, 3)
        assert not torch.equal(model.twin["images"](x), model.images(x))
        model.twin.reset()
        model.eval()
        model.twin["images"].eval()
        assert torch.equal(model.twin["images"](x), model.images(x))


def test_momentum_weights_are_buffers_that_are_saved_and_converted() -> None:
    model = Model()
    assert not list(model.twin.parameters())
    assert len(list(model.parameters())) == 2 * len(list(Encoder().parameters()))
    names = {f"images.{name}" for name in Encoder().state_dict()}
    assert names <= set(model.twin.state_dict())
    output = model.double().twin["texts"](torch.randn(5, 3, dtype=torch.float64))
    assert output.dtype == torch.float64 and not output.requires_grad
    other = Model().double()
    other.load_state_dict(model.state_dict())
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(other.twin["texts"](x), model.twin["texts"](x))


def test_train_and_eval_do_not_change_the_mode() -> None:
    for training in (True, False):
        twin = (model := Model(training=training)).twin
        for mode in (False, True):
            model.train(mode)
            assert model.images.norm.training is mode
            assert all(module.training is training for module in twin["images"].modules())
