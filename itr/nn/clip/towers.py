"""CLIP's image and text Transformers (Radford et al. 2021). B samples, L tokens, D width.

Implemented here, although open_clip has them under the same weight names (our weights load strictly
there; open_clip 3.3, torch 2.14, CPU). Its attention computes other numbers: under ``no_grad`` in
eval mode a fused path differs by up to 1.2e-6, and gradients by up to 9.7e-7 of the largest entry
(14 of 56 weights of an image tower, 14 of 53 of a text tower are not bit-equal), so metrics under a
fixed seed would change. Its text tower also needs the full context length: with 24 of 77 ids, a
training step takes three times as long. transformers splits the projections, timm has no text
tower. The residual image tower is in `itr.nn.clip.resnet`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.errors import ConfigError, DataError


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.702 * x)


class CLIPAttention(nn.Module):
    """Multi-head self-attention with the names and initialization of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ConfigError(f"heads={heads}: expected a divisor of the tower's width {width}")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """[B, L, D] -> [B, L, D]; ``causal``: tokens attend to themselves and earlier ones."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU (exact, or OpenAI's approximation), Linear."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool):
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return self.c_proj(self.gelu(self.c_fc(x)))


class ResidualBlock(nn.Module):
    """Pre-norm: x + CLIPAttention(LN x), then x + MLP(LN x)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, quick_gelu: bool, causal: bool):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CLIPAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio), quick_gelu)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = x + self.attn(self.ln_1(x), self.causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """``layers`` residual blocks."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float = 4.0,
        quick_gelu: bool = False,
        causal: bool = False,
    ):
        super().__init__()
        self.resblocks = nn.ModuleList(
            ResidualBlock(width, heads, mlp_ratio, quick_gelu, causal) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        for block in self.resblocks:
            x = block(x)
        return x


class CLIPVisionTransformer(nn.Module):
    """CLIP's ViT: a Transformer over patches and a class token, which is projected.

    ``embed_dim`` None omits the projection (if only `tokens` is used). Raises ConfigError for sizes
    that do not divide one another.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        embed_dim: int | None,
        mlp_ratio: float = 4.0,
        quick_gelu: bool = False,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ConfigError(
                f"model.image.size={image_size}: expected a multiple of model.image.patch="
                f"{patch_size}"
            )
        self.image_size, self.grid = image_size, image_size // patch_size
        start = width**-0.5
        self.class_embedding = nn.Parameter(start * torch.randn(width))
        self.positional_embedding = nn.Parameter(start * torch.randn(self.grid**2 + 1, width))
        if embed_dim is not None:
            self.proj = nn.Parameter(start * torch.randn(width, embed_dim))
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp_ratio, quick_gelu)
        self.ln_post = nn.LayerNorm(width)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + patches, D], class token first, before ``ln_post``."""
        require_size(images, self.image_size)
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        return self.transformer(self.ln_pre(x))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, embed_dim], not normalized."""
        return self.ln_post(self.tokens(images)[:, 0]) @ self.proj


class CLIPTextTransformer(nn.Module):
    """CLIP's text encoder: a causal Transformer, whose end-of-text token is projected.

    That token is the first one with the largest id. Later tokens have no influence, so ids may be
    cut to the longest text of a batch. Initialized as CLIP, with scales that depend on the depth.
    """

    def __init__(
        self,
        context_length: int,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        embed_dim: int,
        quick_gelu: bool = False,
    ):
        super().__init__()
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context_length, width))
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))
        self.transformer = Transformer(width, layers, heads, quick_gelu=quick_gelu, causal=True)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.ln_final = nn.LayerNorm(width)
        self._start(width, layers)

    def _start(self, width: int, layers: int) -> None:
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        into_stream = width**-0.5 * (2 * layers) ** -0.5
        for block in self.transformer.resblocks:
            assert isinstance(block, ResidualBlock)
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=into_stream)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=into_stream)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L] ids -> [B, embed_dim], not normalized. Raises DataError if L is too large."""
        if tokens.shape[1] > len(self.positional_embedding):
            raise DataError(
                f"a text has {tokens.shape[1]} token ids, but the text encoder has "
                f"{len(self.positional_embedding)} positions; set model.text.max_positions"
            )
        x = self.token_embedding(tokens)
        x = self.transformer(x + self.positional_embedding[: tokens.shape[1]].to(x.dtype))
        rows = torch.arange(len(x), device=x.device)
        return self.ln_final(x[rows, tokens.argmax(dim=-1)]) @ self.text_projection


def require_size(images: Tensor, image_size: int) -> None:
    """Raises DataError unless ``images`` [B, 3, H, W] have ``image_size`` pixels per side."""
    if images.shape[-2:] != (image_size, image_size):
        raise DataError(
            f"images have {images.shape[-2]} x {images.shape[-1]} pixels, but the image encoder "
            f"needs {image_size} x {image_size}; set model.image.size={images.shape[-1]}"
        )
