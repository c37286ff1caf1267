"""Three-axis rotary position embedding: channels of a head turn by angles that grow with time, row and column.

Half of a head's d channels is split 4:6:6 over (t, row, col); axis a has n_a frequencies

    omega_a[i] = theta ** (-i / n_a),  i = 0 .. n_a - 1

and a token's angles are phi = [t * omega_t | row * omega_row | col * omega_col], d/2 of them. Channels turn in
interleaved pairs (2i, 2i + 1). Which angle a channel gets is the config's `rope_type`:

    reference   [phi | phi]              what the released weights were trained with; no true rotation
    rotation    phi repeated pairwise    both members of a pair share one angle

Nothing is kept in buffers: those are left uninitialised by meta-device loading and rounded by `.to(bfloat16)`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_frequencies(head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 frequencies of the t, row and col axis; `head_dim` / 32 times 4, 6 and 6 of them."""
    unit = head_dim // 32

    def axis(size: int) -> Tensor:
        return theta ** (-torch.arange(size, dtype=torch.float32, device=device) / size)

    spatial = axis(6 * unit)
    return axis(4 * unit), spatial, spatial


def rope_cos_sin(positions: Tensor, head_dim: int, theta: float, rope_type: str) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every channel's angle, always computed in fp32.

    Args:
        positions: integers [..., 3]: t, row, col of each token.
        head_dim: channels of a head, a multiple of 32.
        theta: base of the frequencies.
        rope_type: "reference" or "rotation", see the module docstring.

    Returns:
        Two fp32 tensors [..., head_dim].
    """
    coordinates = positions.to(torch.float32).unbind(-1)
    frequencies = rope_frequencies(head_dim, theta, positions.device)
    phi = torch.cat([x[..., None] * omega for x, omega in zip(coordinates, frequencies, strict=True)], dim=-1)
    angles = torch.cat([phi, phi], dim=-1) if rope_type == "reference" else phi.repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the interleaved channel pairs of `x` [..., d] by angles given as cos and sin, broadcast to `x`.

    cos and sin are cast to the dtype of `x` first: the released weights were trained with products in that dtype.
    """
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)
