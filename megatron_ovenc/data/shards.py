"""WebDataset tar shards with random access: any sample of any shard by number, on any rank, in any order.

    shard-000000.tar               members <key>.<extension>, those of a sample next to each other
    shard-000000.tar.index.json    {"version": 1, "tar_size": bytes, "samples": [[key, {extension: [offset, size, crc32]}], ...]}
    shard-000000.tar.labels.npy    int64 [n, L], row i = candidate concepts of the index's sample i, -1 = none

Labels live outside the tar, so that labelling a data set anew never rewrites it.
"""

from __future__ import annotations

import glob
import io
import json
import os
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np

from megatron_ovenc.data.errors import BadSample

INDEX_VERSION = 1
OPEN_SHARDS = 128
"""Shards a process keeps open at a time, with their indexes: well under the usual limit of 1024 open files."""

Entry: TypeAlias = tuple[int, int, int]
"""Offset, size and CRC-32 of a member's bytes in the tar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawSample:
    """A sample as stored."""

    key: str
    members: dict[str, bytes]
    """Content by extension, lower case, without the dot."""
    labels: np.ndarray
    """int64 [L], -1 = none."""
    sample_id: str
    """Shard path, `#`, key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What is known of a shard without its index in memory."""

    path: str
    length: int
    label_width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardIndex:
    """Where the samples of one tar are."""

    tar_size: int
    keys: tuple[str, ...]
    members: tuple[dict[str, Entry], ...]

    def dumps(self) -> str:
        samples = [[key, members] for key, members in zip(self.keys, self.members, strict=True)]
        return json.dumps({"version": INDEX_VERSION, "tar_size": self.tar_size, "samples": samples})


def index_path(tar: str | os.PathLike[str]) -> str:
    return f"{os.fspath(tar)}.index.json"


def labels_path(tar: str | os.PathLike[str]) -> str:
    return f"{os.fspath(tar)}.labels.npy"


class ShardSet:
    """The samples of many shards as one sequence. Safe to share between threads and forks, and to pickle."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self._ends = tuple(accumulate(shard.length for shard in self.shards))
        # Evicting a file only drops a reference: it is closed when the last thread reading from it is done.
        self._file = lru_cache(OPEN_SHARDS)(_open_unbuffered)
        self._index = lru_cache(OPEN_SHARDS)(read_index)
        self._labels = lru_cache(OPEN_SHARDS)(_map_labels)

    @classmethod
    def open(cls, patterns: Sequence[str]) -> ShardSet:
        """Find and check shards: paths or glob patterns, each sorted, in the order given.

        Raises:
            ValueError: a pattern matches nothing, a shard comes twice, has no index or labels, or they do not fit together.
        """
        paths: list[str] = []
        for pattern in patterns:
            matches = sorted(glob.glob(pattern, recursive=True))
            if not matches:
                raise ValueError(f"no shard matches {pattern!r} (in {os.getcwd()}); make shards with tools.make_shards")
            paths += matches
        twice = {path for path in paths if paths.count(path) > 1} if len(set(paths)) < len(paths) else ()
        if twice:
            raise ValueError(f"shard {min(twice)} is matched by more than one pattern of {list(patterns)}")
        return cls([_inspect(path) for path in paths])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __reduce__(self) -> tuple[type[ShardSet], tuple[tuple[Shard, ...]]]:
        return ShardSet, (self.shards,)

    def sample_id(self, number: int) -> str:
        """Name of a sample, without reading it; by its row where the index has gone since the start."""
        shard, row = self._locate(number)
        try:
            return f"{shard.path}#{self._index(shard.path).keys[row]}"
        except (OSError, ValueError):
            return f"{shard.path}#[{row}]"

    def read(self, number: int) -> RawSample:
        """All of a sample.

        Raises:
            BadSample: a member is cut off or its checksum is wrong, or the shard can no longer be read.
        """
        shard, row = self._locate(number)
        try:
            index = self._index(shard.path)
            file = self._file(shard.path)
            return RawSample(
                key=index.keys[row],
                members={ext: _read_member(file, ext, entry) for ext, entry in index.members[row].items()},
                labels=np.array(self._labels(shard.path)[row]),
                sample_id=f"{shard.path}#{index.keys[row]}",
            )
        except (OSError, ValueError, IndexError) as error:
            raise BadSample(f"its shard was sound at the start but cannot be read any more: {error}") from error

    def labels(self, shard: Shard) -> np.ndarray:
        """The labels of one shard, int64 [n, L], mapped rather than read."""
        return self._labels(shard.path)

    def _locate(self, number: int) -> tuple[Shard, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        place = bisect_right(self._ends, number)
        shard = self.shards[place]
        return shard, number - (self._ends[place] - shard.length)


def index_tar(path: str | os.PathLike[str]) -> ShardIndex:
    """Read a tar through and list its samples: consecutive members that share a name up to its first dot.

    Raises:
        ValueError: not a tar, or one whose samples are torn apart or repeat an extension.
    """
    members: dict[str, dict[str, Entry]] = {}
    last = None
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if not info.isfile():
                    continue
                directory, name = os.path.split(info.name)
                stem, _, extension = name.partition(".")
                key = os.path.join(directory, stem)
                if (key != last and key in members) or extension.lower() in members.get(key, {}):
                    raise ValueError(
                        f"{path}: member {info.name} repeats an earlier sample; give every sample its own name"
                    )
                content = tar.extractfile(info)
                assert content is not None, "a regular file has content"
                entry = (info.offset_data, info.size, zlib.crc32(content.read()))
                members.setdefault(key, {})[extension.lower()] = entry
                last = key
    except tarfile.TarError as error:
        raise ValueError(f"{path} cannot be read as an uncompressed tar: {error}") from error
    return ShardIndex(tar_size=os.path.getsize(path), keys=tuple(members), members=tuple(members.values()))


def read_index(tar: str) -> ShardIndex:
    """The index beside a shard.

    Raises:
        ValueError: it is missing, of another version, or not an index.
    """
    path = index_path(tar)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        version, size = content["version"], content["tar_size"]
        if version == INDEX_VERSION:
            keys = tuple(key for key, _ in content["samples"])
            members = tuple({ext: _entry(values) for ext, values in found.items()} for _, found in content["samples"])
    except FileNotFoundError:
        raise ValueError(f"shard {tar} has no index {path}; make shards with tools.make_shards") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a shard index ({error!r}); make the shard anew with tools.make_shards"
        ) from error
    if version != INDEX_VERSION:
        raise ValueError(f"{path} has version {version!r}, this program reads {INDEX_VERSION}; make the shard anew")
    return ShardIndex(tar_size=size, keys=keys, members=members)


def _entry(values: Any) -> Entry:
    offset, size, checksum = values
    return int(offset), int(size), int(checksum)


def _inspect(tar: str) -> Shard:
    """Check that tar, index and labels fit together."""
    index = read_index(tar)
    size = os.path.getsize(tar)
    if size != index.tar_size:
        raise ValueError(
            f"shard {tar} has {size} bytes, but its index {index_path(tar)} was made for {index.tar_size}: one of them is "
            f"stale or cut off; copy both again or make the shard anew with tools.make_shards"
        )
    path = labels_path(tar)
    try:
        labels = _map_labels(tar)
    except FileNotFoundError:
        raise ValueError(f"shard {tar} has no labels {path}; write int64 [{len(index.keys)}, L], -1 = none") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a .npy array that can be mapped: {error}") from error
    if labels.dtype != np.int64 or labels.ndim != 2 or len(labels) != len(index.keys):
        raise ValueError(
            f"{path} holds {labels.dtype} {list(labels.shape)}, but shard {tar} needs int64 [{len(index.keys)}, L]: "
            f"a row a sample, in the order of its index"
        )
    return Shard(path=tar, length=len(index.keys), label_width=labels.shape[1])


def _map_labels(tar: str) -> np.ndarray:
    labels = np.load(labels_path(tar), mmap_mode="r", allow_pickle=False)
    assert isinstance(labels, np.ndarray)
    return labels


def _open_unbuffered(path: str) -> io.FileIO:
    return open(path, "rb", buffering=0)


def _read_member(file: io.FileIO, extension: str, entry: Entry) -> bytes:
    offset, size, checksum = entry
    # Positioned reads leave the file's cursor alone, which threads and forked processes share.
    parts = []
    while size > 0 and (part := os.pread(file.fileno(), size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    content = b"".join(parts)
    if size > 0:
        raise BadSample(f"its .{extension} is cut off: {size} of {entry[1]} bytes are missing from the tar")
    if zlib.crc32(content) != checksum:
        raise BadSample(f"its .{extension} is damaged: the CRC-32 of its {len(content)} bytes is not the index's")
    return content
