"""CLIP's modified ResNet (Radford et al. 2021). B images, C channels, D width, H, W pixels.

Differences from a plain ResNet: a stem of three convolutions, strides by average pooling before a
convolution, attention pooling at the end. Implemented here, although timm has it: weight names are
those of the released files, as ALIP's checkpoints need (timm renames them in one direction only),
and the pooling computes one query, where timm computes all positions and drops the others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.errors import ConfigError
from itr.nn.clip.towers import require_size

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; strides are average pooling."""

    def __init__(self, inner: int, width: int, stride: int):
        super().__init__()
        outer = width * EXPANSION
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        nn.init.zeros_(self.bn3.weight)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inner != outer:
            pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            convolution = nn.Conv2d(inner, outer, 1, bias=False)
            parts = [("-1", pool), ("0", convolution), ("1", nn.BatchNorm2d(outer))]
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 4 width, H / stride, W / stride]."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(self.pool(hidden))) + self.downsample(x))


class AttentionPool(nn.Module):
    """Attention pooling: the mean of all positions attends to itself and every position."""

    def __init__(self, grid: int, width: int, heads: int, embed_dim: int):
        super().__init__()
        if width % heads:
            raise ConfigError(f"heads={heads}: expected a divisor of the tower's width {width}")
        self.heads = heads
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(grid**2 + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(linear.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, embed_dim]."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).flatten(1))


class CLIPResNet(nn.Module):
    """The image tower of CLIP's RN50, RN101, ...; ``layers`` are the blocks of its four stages."""

    def __init__(
        self, image_size: int, width: int, layers: Sequence[int], heads: int, embed_dim: int
    ):
        super().__init__()
        if image_size % 32 or len(layers) != 4:
            raise ConfigError(
                f"model.image.size={image_size}, model.image.depth={list(layers)}: a residual "
                "image tower needs a multiple of 32 pixels and four stages"
            )
        self.image_size = image_size
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(width * EXPANSION, width * 2, layers[1], stride=2)
        self.layer3 = _stage(width * 2 * EXPANSION, width * 4, layers[2], stride=2)
        self.layer4 = _stage(width * 4 * EXPANSION, width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool(image_size // 32, width * 32, heads, embed_dim)

    def stem(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, H / 4, W / 4]."""
        # Channels last reduces the time of the whole tower by a third, also on a CPU.
        images = images.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, embed_dim], not normalized."""
        require_size(images, self.image_size)
        x = self.stem(images)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.attnpool(x)


def _stage(inner: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    later = (Bottleneck(width * EXPANSION, width, 1) for _ in range(1, blocks))
    return nn.Sequential(Bottleneck(inner, width, stride), *later)
