"""Labels beside shards: the nearest centres of every sample, and how well an approximate search finds them."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage.files import is_remote
from megatron_ovenc.data.storage.labels import labels_path
from tools.bank.kmeans import Points, Search, nearest

COMPARED = 2048
"""Points on which an approximate search is compared with an exact one."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Nearest:
    """Nearest centre of every point."""

    owners: np.ndarray
    """int32 [N]"""
    cosines: np.ndarray
    """float32 [N]"""


def label_shards(shards: ShardSet, points: Points, centres: np.ndarray, count: int, search: Search) -> Nearest:
    """Write each shard's labels: int64 [n, count], nearest centre first, -1 for samples without features.

    Args:
        shards: the samples that `points.rows` numbers.
        points: features of the good ones.
        centres: float32 [C, F].
        count: centres a sample, at most C.
        search: finds them.
    """
    labels = np.full((len(shards), count), -1, np.int64)
    owners, cosines = np.empty(len(points), np.int32), np.empty(len(points), np.float32)
    for numbers, found, values in search(points, centres, count):
        labels[points.rows[numbers]] = found
        owners[numbers], cosines[numbers] = found[:, 0], values[:, 0]
    write_labels(shards, labels)
    return Nearest(owners=owners, cosines=cosines)


def agreement(points: Points, centres: np.ndarray, count: int, search: Search, seed: int) -> Mapping[str, float]:
    """Compare a search with the exact one on points drawn at random: shares of nearest centres, and of labels, that both find."""
    drawn = np.random.default_rng(seed).choice(len(points), min(COMPARED, len(points)), replace=False)
    some = Points(matrix=points.matrix, rows=points.rows[np.sort(drawn)])
    found, exact = (np.concatenate([labels for _, labels, _ in way(some, centres, count)]) for way in (search, nearest))
    both = (found[:, :, None] == exact[:, None, :]).any(axis=2)
    return {
        "points": len(some),
        "nearest": float((found[:, 0] == exact[:, 0]).mean()),
        "labels": float(both.mean()),
    }


def check_unlabelled(shards: ShardSet, overwrite: bool) -> None:
    """Refuse to replace labels unasked.

    Raises:
        ValueError: a shard has labels, and they may not be overwritten; or it is remote.
    """
    if remote := [shard.path for shard in shards.shards if is_remote(shard.path)]:
        raise ValueError(f"labels are written beside the shards, but {remote[0]} is remote; give local shards")
    labelled = [shard.path for shard in shards.shards if (shards.labels(shard) != -1).any()]
    if labelled and not overwrite:
        raise ValueError(
            f"{len(labelled)} of the {len(shards.shards)} shards have labels already, such as {labels_path(labelled[0])}; add "
            f"--overwrite-labels to replace them"
        )


def write_labels(shards: ShardSet, labels: np.ndarray) -> None:
    """Write int64 [samples, L], in one stroke a shard."""
    start = 0
    for shard in shards.shards:
        write_array(Path(labels_path(shard.path)), labels[start : start + shard.length])
        start += shard.length


def write_array(path: Path, array: np.ndarray) -> None:
    """As `.npy`, all or nothing."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_file(path, buffer.getvalue())


def write_file(path: Path, content: bytes) -> None:
    """All or nothing, even if the call is interrupted."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
