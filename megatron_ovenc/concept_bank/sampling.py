"""Which rows of a bank compete in a step: a pure function of (seed, head, step, class block).

Classes are grouped into virtual blocks of BLOCK_ROWS consecutive ids, whoever owns them. A block at classes [a, b) sends
exactly floor(rate * b) - floor(rate * a) of its rows, so a bank of C classes draws floor(rate * C) rows a step and every row
is drawn with probability equal to its block's share (within one row of `rate`). The rows of a block are the first of a keyed
permutation of it, so that the work grows with what is drawn and not with what exists. Nothing is stored between steps and
nothing depends on the number of ranks: each rank evaluates the blocks that its own rows lie in, with integer arithmetic
that gives the same answer on a CPU and on a GPU.

The classes that the batch names are added to the draw. They compete for every sample, as in PartialFC (An et al.,
arXiv 2203.15565), but unlike there they take no drawn row's place.

Shapes: N samples of the global batch, K labels a sample, R rows of this rank, M competing rows of this rank.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_ROWS = 4096
"""Classes in a virtual block. Part of the draw: another number draws other rows."""

_WORD = 0xFFFFFFFF
_HALF_BITS = 6
_HALF = (1 << _HALF_BITS) - 1
_ROUNDS = 6
assert BLOCK_ROWS == 1 << 2 * _HALF_BITS


@dataclass(frozen=True, kw_only=True, slots=True)
class Competitors:
    """The rows of one rank that compete in a step, and where the batch's labels stand among them."""

    rows: Tensor | None
    """int64 [M], ascending positions in the rank's weight, padded at the end with R; None when all R rows compete."""
    places: Tensor
    """int64 [N, K]: place of each label's row in `rows`; -1 for labels of other ranks and for the label -1."""
    log_weights: Tensor | None = None
    """float32 [M]: log of the number of rows that each competing row stands for; None when each stands for itself."""


def draw_key(seed: int, head: str, *where: int | str) -> int:
    """64 bits that name one draw; equal arguments give equal bits on any machine."""
    return int.from_bytes(hashlib.blake2b(repr((seed, head, *where)).encode(), digest_size=8).digest(), "little")


def scramble(ids: Tensor, key: int) -> Tensor:
    """A bijection of [0, 2**32) chosen by a 64-bit key, so distinct ids never tie.

    Two keyed rounds of the 32-bit integer hash with the multipliers found by C. Wellons' `hash-prospector` (lowbias32).

    Args:
        ids: int64, values in [0, 2**32).
    """
    for half in (key & _WORD, key >> 32):
        ids = ids ^ half
        ids = ((ids ^ (ids >> 16)) * 0x7FEB352D) & _WORD
        ids = ((ids ^ (ids >> 15)) * 0x846CA68B) & _WORD  # may wrap around in 64 bits; the low word is right
        ids = ids ^ (ids >> 16)
    return ids


def permuted(blocks: Tensor, count: int, key: int) -> Tensor:
    """The first `count` ids of each block in the order of its own permutation.

    A Feistel network (Luby and Rackoff, 1988) on 12 bits: six rounds, each with a word of its own for every block.

    Args:
        blocks: int64 [b], block numbers.
        count: at most BLOCK_ROWS.
        key: names the draw.

    Returns:
        int64 [b, count], offsets within the block, distinct in each row.
    """
    offsets = torch.arange(count, device=blocks.device).expand(len(blocks), count)
    left, right = offsets >> _HALF_BITS, offsets & _HALF
    for number in range(_ROUNDS):
        word = scramble(blocks * _ROUNDS + number, key)[:, None]
        mixed = ((right * 0x9E3779B1) ^ word) & _WORD
        mixed = ((mixed ^ (mixed >> 15)) * 0x846CA68B) & _WORD
        left, right = right, left ^ (mixed >> (32 - _HALF_BITS))
    return (left << _HALF_BITS) | right


def quotas(num_classes: int, rate: float, first: int, last: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows that the blocks [first, last) send, and rows that they have: int64 [last - first] each."""
    edges = (torch.arange(first, last + 1, device=device) * BLOCK_ROWS).clamp(max=num_classes)
    return (edges.double() * rate).floor().long().diff(), edges.diff()


def drawn(num_classes: int, rate: float, key: int, lo: int, hi: int, device: torch.device) -> Tensor:
    """Which of the classes [lo, hi) are drawn.

    Args:
        num_classes: C, of the whole bank.
        rate: share of the rows that is drawn, in (0, 1].
        key: names the draw; see `draw_key`.

    Returns:
        bool [hi - lo], equal to the same slice of the draw of the whole bank.
    """
    owned = hi - lo
    mask = torch.zeros(owned + 1, dtype=torch.bool, device=device)
    first, last = lo // BLOCK_ROWS, math.ceil(hi / BLOCK_ROWS)
    quota, size = quotas(num_classes, rate, first, last, device)
    # Only the bank's last block may be short: its permutation is walked to the end, skipping ids that are no classes.
    short = num_classes % BLOCK_ROWS if last * BLOCK_ROWS > num_classes else 0
    full = last - first - (short > 0)
    for begin, stop, count in ((0, full, _largest_quota(rate)), (full, last - first, BLOCK_ROWS)):
        if begin == stop:
            continue
        ids = permuted(torch.arange(first + begin, first + stop, device=device), count, key)
        valid = ids < size[begin:stop, None]
        chosen = valid & (valid.cumsum(1) <= quota[begin:stop, None])
        ids = ids + (torch.arange(first + begin, first + stop, device=device) * BLOCK_ROWS - lo)[:, None]
        ours = chosen & (ids >= 0) & (ids < owned)
        mask.index_fill_(0, torch.where(ours, ids, owned).flatten(), True)
    return mask[:owned]


def competitors(
    labels: Tensor, *, num_classes: int, rate: float, key: int, lo: int, hi: int, static: bool, correct: bool = False
) -> Competitors:
    """The rows of [lo, hi) that compete: the drawn ones and those of the labels.

    Args:
        labels: int64 [N, K] of the global batch, -1 for none.
        num_classes, rate, key: as in `drawn`; at rate 1 nothing is drawn and all rows compete.
        static: keep M independent of the draw and the labels, by padding to the most rows there can be. For an
            accelerator, which would have to stall until it could tell the host the number.
        correct: give the rows the weights that make a weighted sum over them an unbiased estimate of the sum over all
            rows: a row that the batch names is there for certain and stands for itself, any other one is there with the
            probability at which its block sends rows (Horvitz and Thompson, 1952). A block so short that it sends none is
            not represented.
    """
    local = (labels >= lo) & (labels < hi)
    if rate >= 1:
        return Competitors(rows=None, places=torch.where(local, labels - lo, -1))
    owned = hi - lo
    # One entry more than rows, for the labels of other ranks to point at.
    named = torch.zeros(owned + 1, dtype=torch.bool, device=labels.device)
    named.index_fill_(0, torch.where(local, labels - lo, owned).flatten(), True)
    named[owned] = False
    mask = named.clone()
    mask[:owned] |= drawn(num_classes, rate, key, lo, hi, labels.device)
    first, last = lo // BLOCK_ROWS, math.ceil(hi / BLOCK_ROWS)
    most = min(owned, (last - first) * _largest_quota(rate) + labels.numel())
    rows = torch.nonzero_static(mask, size=most, fill_value=owned) if static else mask.nonzero()
    rows = rows.squeeze(1)
    log_weights = None
    if correct:
        quota, size = quotas(num_classes, rate, first, last, labels.device)
        stands_for = (size / quota.clamp(min=1)).log().float()
        block = ((rows + lo) // BLOCK_ROWS - first).clamp(max=max(last - first - 1, 0))
        log_weights = stands_for[block].masked_fill_(named[rows], 0)
    return Competitors(
        rows=rows,
        places=torch.where(local, torch.searchsorted(rows, labels - lo), -1),
        log_weights=log_weights,
    )


def _largest_quota(rate: float) -> int:
    return min(BLOCK_ROWS, math.floor(rate * BLOCK_ROWS) + 1)
