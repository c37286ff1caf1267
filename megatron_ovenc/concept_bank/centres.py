"""Which rows of a bank a rank owns, and what they hold before training.

Rows never move: row index = concept id, and rank r of W owns the r-th run of ceil(C / W) rows, as DTensor's `Shard(0)`
would have it. The last ranks may own fewer rows, or none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ovenc.concept_bank.files import BankFileError, StoredBank, open_bank
from megatron_ovenc.concept_bank.sampling import BLOCK_ROWS, draw_key

INIT_STD = 0.01
"""Standard deviation of random centres."""


def row_range(num_classes: int, world: int, rank: int) -> tuple[int, int]:
    """The rows [lo, hi) of a bank of `num_classes` that `rank` of `world` owns."""
    run = -(-num_classes // world)
    return min(rank * run, num_classes), min((rank + 1) * run, num_classes)


def random_centres(num_classes: int, dim: int, seed: int, head: str, lo: int, hi: int) -> Tensor:
    """Rows [lo, hi) of a random bank: float32 [hi - lo, dim], N(0, INIT_STD), whatever the number of ranks.

    Every block of rows has a generator of its own, on the CPU, so that all devices get the same numbers.
    """
    centres = torch.empty(hi - lo, dim)
    for start in range(lo - lo % BLOCK_ROWS, hi, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, num_classes)
        generator = torch.Generator().manual_seed(draw_key(seed, head, "centres", start // BLOCK_ROWS))
        block = torch.randn(stop - start, dim, generator=generator).mul_(INIT_STD)
        begin, end = max(start, lo), min(stop, hi)
        centres[begin - lo : end - lo] = block[begin - start : end - start]
    return centres


def check_centres(path: str, num_classes: int, dim: int, head: str) -> StoredBank:
    """The bank at `path`, of whose files only the headers are read.

    Args:
        path: anything that `files.open_bank` takes.

    Raises:
        ValueError: it is missing, damaged or of another kind, or holds other than num_classes centres of width dim.
    """
    key = f"heads.{head}.bank.init={path}"
    try:
        bank = open_bank(path)
    except BankFileError as error:
        raise ValueError(f"{key}: {error}") from error
    if (bank.num_classes, bank.width) != (num_classes, dim):
        raise ValueError(
            f"{key} holds {bank.dtype} {[bank.num_classes, bank.width]}, but this run needs {[num_classes, dim]}: "
            f"[heads.{head}.bank.num_classes, model.hidden_size]; choose another file or change those keys"
        )
    return bank


def stored_centres(path: str, num_classes: int, dim: int, head: str, lo: int, hi: int) -> Tensor:
    """Rows [lo, hi) of a bank on disk, float32 [hi - lo, dim] whatever it is stored in; no other row is read.

    Raises:
        ValueError: as `check_centres`.
    """
    bank = check_centres(path, num_classes, dim, head)
    try:
        return bank.read(lo, hi).float()
    except BankFileError as error:
        raise ValueError(f"heads.{head}.bank.init={path}: {error}") from error
