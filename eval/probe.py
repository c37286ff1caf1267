"""The probes: what a little attention can read off frozen tokens, and what a plane can read off pooled embeddings.

Training them is `eval.probe_training`'s.

Legend: B samples, L tokens, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

HEAD_WIDTH = 64
"""Channels of an attention head, where D is a multiple of it."""
LOGIT_INIT = 1e-3
"""Factor on the classifier's initial weights: it starts near the uniform answer."""


class AttentiveProbe(nn.Module):
    """A learned query attends to all tokens; residual MLP on its RMSNorm; LayerNorm; linear classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, _heads(width), batch_first=True)
        self.norm = nn.RMSNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.classifier_norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.classifier.weight.mul_(LOGIT_INIT)

    def forward(self, tokens_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits [B, C].

        Args:
            tokens_BLD: float tokens; what lies beyond a sample's length is ignored.
            lengths_B: integers from 1 to L.
        """
        beyond_BL = torch.arange(tokens_BLD.shape[1], device=tokens_BLD.device) >= lengths_B[:, None]
        probe = self.probe.expand(len(tokens_BLD), -1, -1)
        pooled, _ = self.attention(probe, tokens_BLD, tokens_BLD, key_padding_mask=beyond_BL, need_weights=False)
        pooled = pooled.squeeze(1)
        pooled = pooled + self.mlp(self.norm(pooled))
        return self.classifier(self.classifier_norm(pooled))


class LinearProbe(nn.Module):
    """A linear classifier on embeddings that are brought to the training set's mean 0 and deviation 1, channel by channel."""

    def __init__(self, mean_D: Tensor, deviation_D: Tensor, classes: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", mean_D)
        self.register_buffer("deviation", deviation_D.clamp(min=1e-6))
        self.classifier = nn.Linear(len(mean_D), classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, embeddings_BD: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.classifier((embeddings_BD - self.mean) / self.deviation)


def _heads(width: int) -> int:
    """The most heads of at least HEAD_WIDTH channels that divide `width`."""
    return max(heads for heads in range(1, max(1, width // HEAD_WIDTH) + 1) if width % heads == 0)
