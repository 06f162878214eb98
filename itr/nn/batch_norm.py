"""Batch normalization over the global batch of all ranks. C channels, W ranks.

`torch.nn.SyncBatchNorm` needs GPUs; this one works with any backend that can gather.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from itr.parallel import all_gather, world_size


class CrossRankBatchNorm(_BatchNorm):
    """Batch normalization with differentiable statistics over all ranks.

    All ranks must have equal batch sizes. Parameters, buffers and evaluation are those of
    `nn.BatchNorm1d` and `nn.BatchNorm2d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] -> [N, C, ...]; computed in float32, as in torch."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        with torch.autocast(input.device.type, enabled=False):
            x = input.float()
            axes = [axis for axis in range(x.dim()) if axis != 1]
            variance, mean = torch.var_mean(x, axes, correction=0)  # [C] each
            # Law of total variance; sums of squares would lose precision.
            variances, means = all_gather(torch.stack([variance, mean])[None], "full").unbind(1)
            mean = means.mean(dim=0)
            variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
            self._update_running(
                mean.detach(), variance.detach(), world_size() * x.numel() // len(mean)
            )
            shape = [1, -1] + [1] * (x.dim() - 2)
            normalized = (x - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


def sync_batch_norms(model: nn.Module) -> int:
    """Make every batch normalization in ``model`` use all ranks; returns their number."""
    changed = 0
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = CrossRankBatchNorm  # keeps weights and statistics in place
            changed += 1
    return changed


def batch_norms(model: nn.Module) -> list[str]:
    """Names of the batch normalizations in ``model``."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def statistics(model: nn.Module) -> list[Tensor]:
    """Running means and variances of the batch normalizations in ``model``."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    return [buffer for buffer in buffers if buffer is not None]
