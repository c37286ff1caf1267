"""Label arrays beside shards, `<shard>.labels.npy`: int64 [n, L], -1 = none.

They replace labels that are inside a shard, so that labelling a data set anew never rewrites it.
"""

from __future__ import annotations

import os

import numpy as np

from megatron_ovenc.data.storage.base import FileRef
from megatron_ovenc.data.storage.files import Storage

NO_LABELS = np.empty(0, np.int64)


def labels_path(shard: str | os.PathLike[str]) -> str:
    return f"{os.fspath(shard)}.labels.npy"


def find_labels(shard: str, count: int, storage: Storage) -> FileRef | None:
    """The label array of a shard of `count` samples, if there is one.

    Raises:
        ValueError: it does not fit the shard.
    """
    path = labels_path(shard)
    try:
        ref = storage.stat(path)
    except FileNotFoundError:
        return None
    try:
        labels = map_labels(ref, storage)
    except ValueError as error:
        raise ValueError(f"{path} is not a .npy array that can be mapped: {error}") from error
    if labels.dtype != np.int64 or labels.ndim != 2 or len(labels) != count:
        raise ValueError(
            f"{path} holds {labels.dtype} {list(labels.shape)}, but shard {shard} needs int64 [{count}, L]: "
            f"a row a sample, in the order of its index"
        )
    return ref


def map_labels(ref: FileRef, storage: Storage) -> np.ndarray:
    """int64 [n, L], mapped rather than read."""
    labels = np.load(storage.local(ref), mmap_mode="r", allow_pickle=False)
    if not isinstance(labels, np.ndarray):
        raise ValueError("it holds more than one array")
    return labels


def label_width(ref: FileRef, storage: Storage) -> int:
    return int(map_labels(ref, storage).shape[1])
