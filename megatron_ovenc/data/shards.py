"""The samples of many shards as one sequence: any sample by number, on any rank, in any order.

A shard is one file, and its suffix tells its format; formats may be mixed, and any of them may be an fsspec URL:

    .tar                 WebDataset tar with an index (tools.make_shards)
    .rec                 MXNet's RecordIO with an .idx
    .txt, .csv, .jsonl   a list of files

`<shard>.labels.npy` beside a shard holds its labels; without one, those inside a .rec or a list count.
"""

from __future__ import annotations

import os
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import accumulate

import numpy as np

from megatron_ovenc.config.tree import DataConfig
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.storage.base import RawSample, Shard, ShardReader, printable
from megatron_ovenc.data.storage.files import Storage, is_http, is_remote
from megatron_ovenc.data.storage.labels import map_labels
from megatron_ovenc.data.storage.lists import ListReader
from megatron_ovenc.data.storage.recordio import RecordReader
from megatron_ovenc.data.storage.tar import TarReader

FORMATS: dict[str, type[ShardReader]] = {
    "tar": TarReader,
    "rec": RecordReader,
    "txt": ListReader,
    "csv": ListReader,
    "jsonl": ListReader,
}
OPEN_SHARDS = 128
"""Shards a process keeps open at a time, with their indexes: well under the usual limit of 1024 open files."""
REMOTE_THREADS = 16
"""Remote shards that are looked at at the same time."""


class ShardSet:
    """The samples of many shards as one sequence. Safe to share between threads and forks, and to pickle."""

    def __init__(
        self, shards: Sequence[Shard], storage: Storage | None = None, entry_lengths: Sequence[int] | None = None
    ) -> None:
        """
        Args:
            shards: as `open` found them.
            storage: access to their files; default: local files, and remote ones without a cache.
            entry_lengths: samples of each of the entries that `open` was given; default: one entry.
        """
        self.shards = tuple(shards)
        self.storage = storage or Storage()
        self._ends = tuple(accumulate(shard.length for shard in self.shards))
        self.entry_lengths = (len(self),) if entry_lengths is None else tuple(entry_lengths)
        # Evicting a reader only drops a reference: its file is closed when the last thread reading from it is done.
        self._reader = lru_cache(OPEN_SHARDS)(partial(_reader, storage=self.storage))
        self._labels = lru_cache(OPEN_SHARDS)(partial(_labels, storage=self.storage))

    @classmethod
    def open(cls, patterns: Sequence[str], storage: Storage | None = None) -> ShardSet:
        """Find and check shards: paths, URLs or glob patterns, each sorted, in the order given.

        Raises:
            ValueError: a pattern matches nothing, a shard comes twice, has no index or labels, or they do not fit together.
        """
        storage = storage or Storage()
        entries = [_expand(pattern, storage) for pattern in patterns]
        paths = [path for entry in entries for path in entry]
        twice = {path for path in paths if paths.count(path) > 1} if len(set(paths)) < len(paths) else ()
        if twice:
            raise ValueError(f"shard {min(twice)} is matched by more than one pattern of {list(patterns)}")
        with ThreadPoolExecutor(REMOTE_THREADS if any(map(is_remote, paths)) else 1) as threads:
            shards = list(threads.map(partial(_inspect, storage=storage), paths))
        _check_ranges(shards, storage)
        found = iter(shards)
        return cls(shards, storage, [sum(next(found).length for _ in entry) for entry in entries])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __reduce__(self) -> tuple[type[ShardSet], tuple[tuple[Shard, ...], Storage, tuple[int, ...]]]:
        return ShardSet, (self.shards, self.storage, self.entry_lengths)

    def sample_id(self, number: int) -> str:
        """Name of a sample, without reading it; by its row where the index has gone since the start."""
        shard, row = self._locate(number)
        try:
            key = self._reader(shard).key(row)
        except (OSError, ValueError, IndexError):
            key = f"[{row}]"
        return f"{printable(shard.path)}#{key}"

    def read(self, number: int) -> RawSample:
        """All of a sample.

        Raises:
            BadSample: a member is cut off or its checksum is wrong, or the shard can no longer be read.
        """
        shard, row = self._locate(number)
        try:
            reader = self._reader(shard)
            members, labels = reader.read(row)
            if shard.labels is not None:
                labels = np.array(self._labels(shard)[row])
            key = reader.key(row)
        except (OSError, ValueError, IndexError) as error:
            raise BadSample(f"its shard was sound at the start but cannot be read any more: {error}") from error
        return RawSample(key=key, members=members, labels=labels, sample_id=f"{printable(shard.path)}#{key}")

    def keys(self, shard: Shard) -> list[str]:
        """The names of a shard's samples."""
        reader = self._reader(shard)
        return [reader.key(row) for row in range(shard.length)]

    def labels(self, shard: Shard, step: int = 1) -> np.ndarray:
        """The labels of every step-th sample of a shard, int64 [ceil(n / step), L].

        Mapped rather than read where they are beside the shard. Of labels inside of it each costs a read, and damaged ones are -1.
        """
        if shard.labels is not None:
            return self._labels(shard)[::step]
        reader = self._reader(shard)
        found = [_own_labels(reader, row) for row in range(0, shard.length, step)]
        padded = np.full((len(found), max(map(len, found), default=0)), -1, np.int64)
        for row, values in zip(padded, found, strict=True):
            row[: len(values)] = values
        return padded

    def checksum(self, shard: Shard) -> int:
        """CRC-32 of the file that lists a shard's samples, which for a tar holds the checksum of every member."""
        with open(self.storage.local(shard.index), "rb") as file:
            return zlib.crc32(file.read())

    def _locate(self, number: int) -> tuple[Shard, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        place = bisect_right(self._ends, number)
        shard = self.shards[place]
        return shard, number - (self._ends[place] - shard.length)


def storage_of(data: DataConfig) -> Storage:
    """Access to files as a run is configured."""
    return Storage(data.cache_dir, data.cache_gb, data.remote_retry_s)


def _expand(pattern: str, storage: Storage) -> list[str]:
    try:
        paths = storage.expand(pattern)
    except (OSError, ImportError) as error:
        raise ValueError(f"{pattern!r} cannot be listed: {error}") from error
    if not paths:
        raise ValueError(f"no shard matches {pattern!r} (in {os.getcwd()}); make shards with tools.make_shards")
    return paths


def _format(path: str) -> type[ShardReader]:
    suffix = path.rsplit(".", 1)[-1].lower()
    if suffix not in FORMATS:
        raise ValueError(f"shard {printable(path)} ends in none of .{', .'.join(FORMATS)}")
    return FORMATS[suffix]


def _inspect(path: str, storage: Storage) -> Shard:
    try:
        return _format(path).inspect(path, storage)
    except (OSError, ImportError) as error:
        raise ValueError(f"shard {printable(path)} cannot be opened: {error}") from error


def _check_ranges(shards: Sequence[Shard], storage: Storage) -> None:
    """Refuse web servers that do not serve ranges, by one shard of each. Lists do without: their files are read whole."""
    servers = {
        shard.path.split("/")[2]: shard for shard in shards if is_http(shard.path) and shard.content != shard.index
    }
    for shard in servers.values():
        try:
            storage.read_range(shard.path, 0, min(1, shard.content.size))
        except OSError as error:
            raise ValueError(f"shard {printable(shard.path)} cannot be opened: {error}") from error


def _reader(shard: Shard, storage: Storage) -> ShardReader:
    return _format(shard.path)(shard, storage)


def _labels(shard: Shard, storage: Storage) -> np.ndarray:
    assert shard.labels is not None, "asked for only where there are some"
    return map_labels(shard.labels, storage)


def _own_labels(reader: ShardReader, row: int) -> np.ndarray:
    try:
        return reader.own_labels(row)
    except BadSample:
        return np.array([-1])
