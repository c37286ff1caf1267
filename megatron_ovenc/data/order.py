"""Which sample comes when: pure functions of (seed, head, position), with no state and no memory of past draws.

A head's samples are numbered by the position at which they are consumed, over the whole run and all ranks. Every epoch of n
positions is its own permutation of the data set, evaluated point by point, so that resuming costs nothing and the number of
ranks or workers never enters.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np

ROUNDS = 8
"""Feistel rounds; four make a strong permutation of large domains (Luby and Rackoff 1988), tiny ones want more."""


def sample_indices(positions: np.ndarray | int, n: int, *, seed: int, head: str) -> np.ndarray:
    """Samples at global positions: in every epoch (n positions) each of [0, n) once, in another order.

    Args:
        positions: int, or int64 array of any shape, each >= 0.
        n: number of samples of the data set, >= 1.
        seed: `train.seed`.
        head: the head's name, so that heads over the same data are not in lockstep.

    Returns:
        int64 array of the shape of `positions`.
    """
    position = np.asarray(positions, dtype=np.uint64)
    shape = position.shape
    epoch, offset = np.divmod(position.reshape(-1), np.uint64(n))
    key = np.uint64(_digest("order", seed, head) % 2**64)
    return _permute(offset, n, _mix(epoch ^ key)).astype(np.int64).reshape(shape)


def replacement_index(position: int, attempt: int, n: int, *, seed: int, head: str) -> int:
    """The sample that stands in at `position` after `attempt` (>= 1) bad ones: a hash, uniform over [0, n)."""
    return _digest("replacement", seed, head, position, attempt) % n


def generator(*key: object) -> np.random.Generator:
    """A random generator that is a pure function of `key` (its parts' texts), independent between keys."""
    return np.random.Generator(np.random.Philox(key=_digest(*key)))


def unit_hash(*key: object) -> float:
    """A number in [0, 1) that is a pure function of `key`."""
    return (_digest(*key) >> 75) / 2**53


def micro_batch_slices(global_batch: int, grad_accumulation: int, data_size: int, *, head: str) -> tuple[slice, ...]:
    """Each data rank's share of a micro-batch, as offsets into it.

    A step's samples are cut into `grad_accumulation` equal micro-batches, and each of those over the ranks as evenly as it
    goes, the first ranks taking one more. So the micro-batch of a sample never depends on the number of ranks.

    Raises:
        ValueError: the batch does not divide into micro-batches, or these are smaller than the number of ranks.
    """
    key = f"heads.{head}.global_batch_size"
    micro_batch, rest = divmod(global_batch, grad_accumulation)
    if rest:
        raise ValueError(
            f"{key} is {global_batch}, which {grad_accumulation} micro-batches (train.grad_accumulation) do not divide; "
            f"set {key} to a multiple of {grad_accumulation}"
        )
    if micro_batch < data_size:
        raise ValueError(
            f"{key} is {global_batch}: its micro-batches of {micro_batch} leave some of the {data_size} data-parallel ranks "
            f"without a sample; set {key} to {data_size * grad_accumulation} or more"
        )
    share, more = divmod(micro_batch, data_size)
    starts = [rank * share + min(rank, more) for rank in range(data_size + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(starts))


def _digest(*key: object) -> int:
    """128 bits that are a pure function of the key on every machine (`hash` is not)."""
    text = "\0".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def _permute(values: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of [0, n) for each key, evaluated at uint64 [m] `values` with uint64 [m] `keys`.

    A Feistel network permutes the smallest power of four that holds n; walking its cycle until the value falls below n
    restricts it to [0, n) (Black and Rogaway 2002). That takes under four steps on average.
    """
    half = np.uint64(max(1, (int(n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = values.copy()
    pending = np.arange(len(values))
    while len(pending):
        left, right = result[pending] >> half, result[pending] & mask
        for round_number in range(ROUNDS):
            left, right = right, left ^ (_mix(right + _mix(keys[pending] + np.uint64(round_number))) & mask)
        result[pending] = (left << half) | right
        pending = pending[result[pending] >= n]
    return result


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
