"""Transformer layers. B sequences, L tokens, D width, H heads.

Implemented here because `torch.nn.TransformerEncoderLayer` cannot be evaluated with the additive
attention bias of HREM's graph: without gradients it takes a fused path that interprets the bias as
a bool mask and returns NaN (torch 2.15).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from itr.errors import ConfigError


class SelfAttention(nn.Module):
    """Multi-head self-attention with one joint projection of queries, keys and values.

    Initialized as `torch.nn.MultiheadAttention`. Raises ConfigError if the heads do not divide
    the width.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ConfigError(f"model.heads={heads}: expected a divisor of the width {width}")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]. ``mask`` broadcasts to [B, H, L, L]: bool (True: attend) or a
        bias added to the logits."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class TransformerLayer(nn.Module):
    """Post-norm layer: y = LN(x + Drop(Attention(x))), z = LN(y + Drop(W2 Drop(relu(W1 y))))."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]; ``mask`` as for `SelfAttention`."""
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        hidden = self.dropout(F.relu(self.expand(x)))
        return self.norm2(x + self.dropout(self.contract(hidden)))
