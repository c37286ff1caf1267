"""Self-attention of the encoder, by whichever implementation transformers is told to use: eager, sdpa, flash.

A file of its own because `set_attn_implementation` searches the source of the model's file: where that defines an
attention module, it is refused unless the text spells one transformers version's dispatch, and 4.57 and 5.x differ.
Shape letters as in the modelling file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_onevision_encoder import OneVisionEncoderConfig
from .rope_onevision_encoder import apply_rope


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Plain attention in transformers' interface: q, k, v [B, N, L, d] -> output [B, L, N, d], weights [B, N, L, L]."""
    weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class OneVisionEncoderAttention(nn.Module):
    """Bidirectional self-attention among all tokens of a sample, with rotary queries and keys."""

    # transformers' sdpa and flash functions ask the module, and take a missing answer for "causal".
    is_causal = False

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BLD: Tensor, cos_B1Ld: Tensor, sin_B1Ld: Tensor) -> tuple[Tensor, Tensor | None]:
        """Output [B, L, D] and, from the eager implementation only, weights [B, N, L, L]."""
        by_head = (*x_BLD.shape[:-1], -1, self.head_dim)
        query, key, value = (
            project(x_BLD).view(by_head).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        implementation = self.config._attn_implementation
        attend = eager_attention if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
        mixed_BLNd, weights = attend(
            self,
            apply_rope(query, cos_B1Ld, sin_B1Ld),
            apply_rope(key, cos_B1Ld, sin_B1Ld),
            value,
            None,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        return self.out_proj(mixed_BLNd.reshape(x_BLD.shape)), weights
