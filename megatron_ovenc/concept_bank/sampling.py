"""Which rows of a bank compete in a step: a pure function of (seed, head, step, class block).

Classes are grouped into virtual blocks of BLOCK_ROWS consecutive ids, whoever owns them. A block at classes [a, b) sends
exactly floor(rate * b) - floor(rate * a) of its rows, those whose scrambled ids are smallest, so a bank of C classes
draws floor(rate * C) rows a step and every row is drawn with probability equal to its block's share (within one row of
`rate`). Nothing is stored between steps and nothing depends on the number of ranks: each rank evaluates the blocks that
its own rows lie in, with integer arithmetic that gives the same answer on a CPU and on a GPU.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Competitors:
    """The rows of one rank that compete in a step, and where the batch's labels stand among them."""

    rows: Tensor | None
    """int64 [M], ascending positions in the rank's weight, padded at the end with R; None when all R rows compete."""
    places: Tensor
    """int64 [N, K]: place of each label's row in `rows`; -1 for labels of other ranks and for the label -1."""


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


def drawn(num_classes: int, rate: float, key: int, lo: int, hi: int, device: torch.device) -> Tensor:
    """Which of the classes [lo, hi) are drawn.

    Args:
        num_classes: C, of the whole bank.
        rate: share of the rows that is drawn, in (0, 1].
        key: names the draw; see `draw_key`.

    Returns:
        bool [hi - lo], equal to the same slice of the draw of the whole bank.
    """
    first, last = lo // BLOCK_ROWS, math.ceil(hi / BLOCK_ROWS)
    ids = torch.arange(first * BLOCK_ROWS, last * BLOCK_ROWS, device=device).view(-1, BLOCK_ROWS)
    edges = (torch.arange(first, last + 1, device=device) * BLOCK_ROWS).clamp(max=num_classes)
    quota = (edges.double() * rate).floor().long().diff()
    order = scramble(ids, key).masked_fill_(ids >= num_classes, _WORD + 1)
    smallest = order.topk(_largest_quota(rate), dim=1, largest=False).indices
    chosen = torch.arange(smallest.shape[1], device=device) < quota[:, None]
    mask = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, smallest, chosen)
    return mask.view(-1)[lo - first * BLOCK_ROWS : hi - first * BLOCK_ROWS]


def competitors(
    labels: Tensor, *, num_classes: int, rate: float, key: int, lo: int, hi: int, static: bool
) -> Competitors:
    """The rows of [lo, hi) that compete: the drawn ones and those of the labels.

    Args:
        labels: int64 [N, K] of the global batch, -1 for none.
        num_classes, rate, key: as in `drawn`; at rate 1 nothing is drawn and all rows compete.
        static: keep M independent of the draw and the labels, by padding to the most rows there can be. For an
            accelerator, which would have to stall until it could tell the host the number.
    """
    local = (labels >= lo) & (labels < hi)
    if rate >= 1:
        return Competitors(rows=None, places=torch.where(local, labels - lo, -1))
    owned = hi - lo
    # One entry more than rows, for the labels of other ranks to point at.
    mask = torch.zeros(owned + 1, dtype=torch.bool, device=labels.device)
    mask[:owned] = drawn(num_classes, rate, key, lo, hi, labels.device)
    mask.index_fill_(0, torch.where(local, labels - lo, owned).flatten(), True)
    mask[owned] = False
    blocks = math.ceil(hi / BLOCK_ROWS) - lo // BLOCK_ROWS
    most = min(owned, blocks * _largest_quota(rate) + labels.numel())
    rows = torch.nonzero_static(mask, size=most, fill_value=owned) if static else mask.nonzero()
    rows = rows.squeeze(1)
    return Competitors(rows=rows, places=torch.where(local, torch.searchsorted(rows, labels - lo), -1))


def _largest_quota(rate: float) -> int:
    return min(BLOCK_ROWS, math.floor(rate * BLOCK_ROWS) + 1)
