"""Stochastic rounding to bfloat16, by noise that is a pure function of where and when.

bfloat16 keeps 8 bits of a number. A moment that moves by a thousandth of itself a step would never move if it were rounded to
nearest; rounded up with the probability of the part that is cut off, it is right on average (Gupta et al., arXiv 1502.02551).
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ovenc.concept_bank.sampling import scramble

_CUT = 16
"""Bits of a float32 that a bfloat16 does not have."""


def round_stochastically(values: Tensor, row_ids: Tensor, key: int) -> Tensor:
    """Round to bfloat16.

    Args:
        values: float32 [M, D], finite.
        row_ids: int64 [M], ids in the whole bank: the noise of a row does not depend on who owns it.
        key: 64 bits that name the noise, see `sampling.draw_key`.
    """
    columns = torch.arange(values.shape[1], device=values.device)
    noise = scramble(row_ids, key)[:, None] ^ scramble(columns, ~key & 0xFFFFFFFFFFFFFFFF)
    noise = ((noise * 0x7FEB352D) & 0xFFFFFFFF) >> (32 - _CUT)
    bits = values.contiguous().view(torch.int32) + noise.int()
    return (bits & ~((1 << _CUT) - 1)).view(torch.float32).bfloat16()
