"""What a place in a head's order is given, by exact shares of every global micro-batch in seeded places: which view of its clip,
and, where a head's sources are weighted, which of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np

from megatron_ovenc.config.tree import ModesConfig
from megatron_ovenc.data.order import generator, unit_hash

Mode: TypeAlias = Literal["codec", "frames", "collage"]
MODES: tuple[Mode, ...] = get_args(Mode)

CYCLE = 1 << 16
"""Micro-batches after which the rounding of quotas repeats."""
_STRIDE = 40503
"""CYCLE / golden ratio, odd: multiples modulo CYCLE visit every phase once, and cover them more evenly than chance."""


def mode_at(position: int, modes: ModesConfig, micro_batch: int, *, seed: int, head: str) -> Mode:
    """The mode of the sample at a global position; `micro_batch` is the samples of a micro-batch over all ranks."""
    block, offset = divmod(position, micro_batch)
    shares = tuple(getattr(modes, mode) for mode in MODES)
    return MODES[_arrangement("mode", block, micro_batch, shares, seed, head)[offset]]


def source_at(position: int, weights: Sequence[float], micro_batch: int, *, seed: int, head: str) -> tuple[int, int]:
    """The source of the sample at a global position, and how many samples that source has given before it.

    Args:
        position: place in the head's global order.
        weights: positive numbers, in proportion to which samples are taken.
        micro_batch: samples of this head in a micro-batch over all ranks.
        seed, head: `train.seed` and the head's name.
    """
    block, offset = divmod(position, micro_batch)
    total = sum(weights)
    shares = tuple(weight / total for weight in weights)
    arrangement = _arrangement("source", block, micro_batch, shares, seed, head)
    source = int(arrangement[offset])
    before = counts_before(block, micro_batch, shares, purpose="source", seed=seed, head=head)[source]
    return source, before + int(np.count_nonzero(arrangement[:offset] == source))


def counts(block: int, micro_batch: int, shares: tuple[float, ...], *, purpose: str, seed: int, head: str) -> list[int]:
    """How many samples of micro-batch number `block` each share has.

    The quota `micro_batch * share` where that is whole. Otherwise the quota rounded up or down, and such that
    micro-batches have it right on average (systematic sampling, Madow 1949): a share whose quota is below one has its turn
    every few micro-batches, where rounding to the largest remainder would never let it come.
    """
    place = block % CYCLE
    table = _cumulative(micro_batch, shares, purpose, seed, head)
    return (table[place + 1] - table[place]).tolist()


def counts_before(
    block: int, micro_batch: int, shares: tuple[float, ...], *, purpose: str, seed: int, head: str
) -> list[int]:
    """How many samples of the micro-batches before number `block` each share has had."""
    cycles, place = divmod(block, CYCLE)
    table = _cumulative(micro_batch, shares, purpose, seed, head)
    return [cycles * int(whole) + int(rest) for whole, rest in zip(table[CYCLE], table[place], strict=True)]


@lru_cache(maxsize=32)
def _cumulative(micro_batch: int, shares: tuple[float, ...], purpose: str, seed: int, head: str) -> np.ndarray:
    """Samples of each share in the first 0, 1, ..., CYCLE micro-batches, int64 [CYCLE + 1, shares]."""
    start = int(unit_hash("mixture", purpose, seed, head) * CYCLE)
    phases = (start + np.arange(CYCLE) * _STRIDE) % CYCLE / CYCLE
    # Rounding forgives shares such as 0.1 their last bit.
    ends = np.floor(np.round(np.cumsum(shares) * micro_batch, 9) + phases[:, None]).astype(np.int64)
    ends[:, -1] = micro_batch
    table = np.zeros((CYCLE + 1, len(shares)), np.int64)
    np.cumsum(np.diff(ends, prepend=0, axis=1), axis=0, out=table[1:])
    return table


@lru_cache(maxsize=16)
def _arrangement(
    purpose: str, block: int, micro_batch: int, shares: tuple[float, ...], seed: int, head: str
) -> np.ndarray:
    """Which share every sample of a micro-batch belongs to, int64 [micro_batch]."""
    numbers = counts(block, micro_batch, shares, purpose=purpose, seed=seed, head=head)
    return generator(purpose, seed, head, block).permutation(np.repeat(np.arange(len(shares)), numbers))
