"""Which view of its clip a sample is given: exact shares of every global micro-batch, in seeded places."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np

from megatron_ovenc.config.tree import ModesConfig
from megatron_ovenc.data.order import generator, unit_hash

Mode: TypeAlias = Literal["codec", "frames", "collage"]
MODES: tuple[Mode, ...] = get_args(Mode)

_GOLDEN = 0.6180339887498949
"""Fractional part of the golden ratio: its multiples modulo 1 cover [0, 1) more evenly than chance."""


def mode_at(position: int, modes: ModesConfig, micro_batch: int, *, seed: int, head: str) -> Mode:
    """The mode of the sample at a global position; `micro_batch` is the samples of a micro-batch over all ranks."""
    block, offset = divmod(position, micro_batch)
    shares = tuple(getattr(modes, mode) for mode in MODES)
    return MODES[_arrangement(block, micro_batch, shares, seed, head)[offset]]


def mode_counts(block: int, micro_batch: int, shares: tuple[float, ...], *, seed: int, head: str) -> list[int]:
    """How many samples of micro-batch number `block` have each mode.

    The quota `micro_batch * share` where that is whole. Otherwise the quota rounded up or down, and such that
    micro-batches have it right on average (systematic sampling, Madow 1949): a mode whose quota is below one has its turn
    every few micro-batches, where rounding to the largest remainder would never let it come.
    """
    start = (unit_hash("mixture", seed, head) + block * _GOLDEN) % 1.0
    # Rounding forgives shares such as 0.1 their last bit.
    ends = np.floor(np.round(np.cumsum(shares) * micro_batch, 9) + start).astype(np.int64)
    ends[-1] = micro_batch
    return np.diff(ends, prepend=0).tolist()


@lru_cache(maxsize=16)
def _arrangement(block: int, micro_batch: int, shares: tuple[float, ...], seed: int, head: str) -> np.ndarray:
    """Index into MODES of every sample of a micro-batch, int64 [micro_batch]."""
    counts = mode_counts(block, micro_batch, shares, seed=seed, head=head)
    return generator("mode", seed, head, block).permutation(np.repeat(np.arange(len(shares)), counts))
