"""Arithmetic of the encoder, counted from the shapes, for MFU."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ovenc.config import ModelConfig


def training_flops(model: ModelConfig, lengths: Sequence[int]) -> float:
    """Floating-point operations of forward and backward for samples of the given token counts.

    A multiplication with its addition counts as two, backward as twice the forward; what recomputation repeats is not
    useful work and does not count. Norms, rotary positions and the bank are left out (under 3 % of ViT-L).
    """
    width, ffn, patch = model.hidden_size, model.ffn_size, 3 * model.patch_size**2
    per_token = patch * width + model.num_layers * (4 * width**2 + 2 * width * ffn) + 2 * width**2
    per_sample = 2 * width**2 + 2 * width * ffn
    tokens, pairs = sum(lengths), sum(n * n for n in lengths)
    attention = 2 * width * (model.num_layers * pairs + tokens)
    return 3 * 2 * (per_token * tokens + per_sample * len(lengths) + attention)
