"""3-D rotary angles, from patch positions alone.

Half of a head's channels is split 4 : 6 : 6 into t, row and column. Axis a with n_a frequencies uses
theta^(-i / n_a), i = 0 .. n_a - 1, so every axis starts at frequency 1 (OneVision-Encoder, arXiv 2602.08683, and its code).

`reference` repeats the half vector, [phi | phi], while the attention layer rotates adjacent pairs: the two members of a pair
turn by different angles. That is not a rotation, but released weights were trained so. `rotation` gives both members of a pair
the same angle, so that q.k depends on relative positions only; it is for models trained from scratch.
"""

from __future__ import annotations

from typing import Literal

import torch


def axis_frequencies(head_dim: int, theta: float, device: torch.device) -> list[torch.Tensor]:
    """Frequencies of t, row and column, fp32, of lengths 4, 6 and 6 times head_dim / 32."""
    assert head_dim % 32 == 0, "checked with the configuration"
    unit = head_dim // 32
    return [theta ** (-torch.arange(n, dtype=torch.float32, device=device) / n) for n in (4 * unit, 6 * unit, 6 * unit)]


def rotary_angles(
    positions_N3: torch.Tensor, head_dim: int, theta: float, kind: Literal["reference", "rotation"]
) -> torch.Tensor:
    """Angle of every channel of every token.

    Args:
        positions_N3: t, row, col of each token, any numeric type and range.
        head_dim: channels d of a head, a multiple of 32.
        theta: base of the frequencies.
        kind: layout of the angles over adjacent channel pairs, see the module docstring.

    Returns:
        fp32 [N, d].
    """
    frequencies = axis_frequencies(head_dim, theta, positions_N3.device)
    positions = positions_N3.float()
    half = torch.cat([positions[:, axis, None] * frequencies[axis] for axis in range(3)], dim=1)
    if kind == "reference":
        return torch.cat([half, half], dim=1)
    return half.repeat_interleave(2, dim=1)
