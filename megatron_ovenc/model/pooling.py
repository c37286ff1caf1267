"""Attention pooling: one learned probe looks at all tokens of a sample and answers with its embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from megatron_ovenc.config import ModelConfig
from megatron_ovenc.model.attention import Segments, attend


class AttentionPool(torch.nn.Module):
    """a = MHA(probe, tokens); output a + MLP(RMSNorm(a)). No positions, no residual from the probe (SigLIP's MAP head)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_heads
        self.gelu = {"erf": "none", "tanh": "tanh"}[config.gelu]
        self.probe = torch.nn.Parameter(torch.empty(width))
        self.query_key_value = torch.nn.Linear(width, 3 * width)
        self.projection = torch.nn.Linear(width, width)
        self.norm = torch.nn.RMSNorm(width, eps=config.norm_eps)
        self.fc1 = torch.nn.Linear(width, config.ffn_size)
        self.fc2 = torch.nn.Linear(config.ffn_size, width)

    def forward(self, tokens_ND: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Pool each sample's tokens.

        Args:
            tokens_ND: tokens of all samples, concatenated.
            segments: where samples lie among them.

        Returns:
            [B, D] embeddings.
        """
        weights, biases = self.query_key_value.weight.chunk(3), self.query_key_value.bias.chunk(3)
        query_1D = F.linear(self.probe[None], weights[0], biases[0])
        keys_ND, values_ND = (F.linear(tokens_ND, weights[i], biases[i]) for i in (1, 2))
        query_BHd, key_NHd, value_NHd = (
            x.unflatten(-1, (self.heads, -1)) for x in (query_1D.repeat(len(segments.lengths), 1), keys_ND, values_ND)
        )
        probes = Segments.single(len(segments.lengths), tokens_ND.device)
        pooled_BD = self.projection(attend(query_BHd, key_NHd, value_NHd, probes, segments).flatten(1))
        return pooled_BD + self.fc2(F.gelu(self.fc1(self.norm(pooled_BD)), approximate=self.gelu))
