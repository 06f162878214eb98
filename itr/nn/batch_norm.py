"""Batch normalisation over the batch of all ranks. C channels, W ranks.

torch's own SyncBatchNorm needs GPUs; this one works wherever the ranks can gather.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from itr.parallel import all_gather, world_size


class CrossRankBatchNorm(_BatchNorm):
    """Statistics over the samples of all ranks, with their gradient; equal counts on all ranks.

    Parameters, buffers and evaluation are those of `nn.BatchNorm1d` and `nn.BatchNorm2d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] -> the same; in float32 inside, as torch's."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        with torch.autocast(input.device.type, enabled=False):
            x = input.float()
            axes = [axis for axis in range(x.dim()) if axis != 1]
            variance, mean = torch.var_mean(x, axes, correction=0)  # [C] each
            # The law of total variance; sums of squares would lose digits.
            variances, means = all_gather(torch.stack([variance, mean])[None], "full").unbind(1)
            mean = means.mean(dim=0)
            variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
            self._remember(mean.detach(), variance.detach(), world_size() * x.numel() // len(mean))
            shape = [1, -1] + [1] * (x.dim() - 2)
            normal = (x - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


def sync_batch_norms(model: nn.Module) -> int:
    """Let every batch normalisation below ``model`` see the samples of all ranks; how many."""
    changed = 0
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = CrossRankBatchNorm  # weights and statistics stay where they are
            changed += 1
    return changed


def batch_norms(model: nn.Module) -> list[str]:
    """Names of the batch normalisations below ``model``."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def statistics(model: nn.Module) -> list[Tensor]:
    """Running means and variances of the batch normalisations below ``model``."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    found = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    return [buffer for buffer in found if buffer is not None]
