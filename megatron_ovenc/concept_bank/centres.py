"""Which rows of a bank a rank owns, and what they hold before training.

Rows never move: row index = concept id, and rank r of W owns the r-th run of ceil(C / W) rows, as DTensor's `Shard(0)`
would have it. The last ranks may own fewer rows, or none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

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


def stored_centres(path: str, num_classes: int, dim: int, head: str, lo: int, hi: int) -> Tensor:
    """Rows [lo, hi) of a bank in a file; no other row is read.

    Args:
        path: `.npy`, or `.safetensors` with a tensor named `weight`; float32 [num_classes, dim].

    Raises:
        ValueError: the file is missing, of another kind, damaged, or holds another shape or type.
    """
    key = f"heads.{head}.bank.init={path}"
    if not Path(path).is_file():
        raise ValueError(f"{key}: there is no such file")
    if path.endswith(".npy"):
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise ValueError(f"{key} is not a readable .npy file: {error}") from error
        _check_centres(key, head, array.shape, str(array.dtype), "float32", (num_classes, dim))
        return torch.from_numpy(np.array(array[lo:hi]))
    if path.endswith(".safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                if "weight" not in file.keys():  # noqa: SIM118 (not a mapping)
                    raise ValueError(f"{key} has no tensor `weight`, only {sorted(file.keys())}")
                stored = file.get_slice("weight")
                _check_centres(key, head, stored.get_shape(), stored.get_dtype(), "F32", (num_classes, dim))
                return stored[lo:hi] if lo < hi else torch.empty(0, dim)
        except SafetensorError as error:
            raise ValueError(f"{key} is not a readable .safetensors file: {error}") from error
    raise ValueError(f"{key} is neither a .npy nor a .safetensors file")


def _check_centres(
    key: str, head: str, shape: tuple[int, ...], dtype: str, float32: str, wanted: tuple[int, int]
) -> None:
    if tuple(shape) != wanted or dtype != float32:
        raise ValueError(
            f"{key} holds {dtype} {list(shape)}, but this run needs float32 {list(wanted)}: "
            f"[heads.{head}.bank.num_classes, model.hidden_size]; choose another file or change those keys"
        )
