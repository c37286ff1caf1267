"""WebDataset tar files with random access.

shard-000000.tar               members <key>.<extension>, those of a sample next to each other
shard-000000.tar.index.json    {"version": 1, "tar_size": bytes, "samples": [[key, {extension: [offset, size, crc32]}], ...]}
shard-000000.tar.labels.npy    int64 [n, L], row i = candidate concepts of the index's sample i, -1 = none
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.storage.base import Shard
from megatron_ovenc.data.storage.files import Storage
from megatron_ovenc.data.storage.labels import NO_LABELS, find_labels, label_width, labels_path
from megatron_ovenc.data.storage.local import Readable

INDEX_VERSION = 1

Entry: TypeAlias = tuple[int, int, int]
"""Offset, size and CRC-32 of a member's bytes in the tar."""


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


class TarReader:
    """The samples of one tar."""

    @classmethod
    def inspect(cls, path: str, storage: Storage) -> Shard:
        try:
            index_ref = storage.stat(index_path(path))
        except FileNotFoundError:
            raise _no_index(path) from None
        index = load_index(path, storage.local(index_ref))
        content = storage.stat(path)
        if content.size != index.tar_size:
            raise ValueError(
                f"shard {path} has {content.size} bytes, but its index {index_path(path)} was made for {index.tar_size}: one "
                f"of them is stale or cut off; copy both again, or repeat the call that made them"
            )
        count = len(index.keys)
        labels = find_labels(path, count, storage)
        if labels is None:
            raise ValueError(f"shard {path} has no labels {labels_path(path)}; write int64 [{count}, L], -1 = none")
        width = label_width(labels, storage)
        return Shard(path=path, length=count, label_width=width, content=content, index=index_ref, labels=labels)

    def __init__(self, shard: Shard, storage: Storage) -> None:
        self._shard = shard
        self._storage = storage
        self._index = load_index(shard.path, storage.local(shard.index))

    @cached_property
    def _file(self) -> Readable:
        return self._storage.open(self._shard.content)

    @property
    def keys(self) -> tuple[str, ...]:
        return self._index.keys

    def key(self, row: int) -> str:
        return self._index.keys[row]

    def read(self, row: int) -> tuple[dict[str, bytes], np.ndarray]:
        entries = self._index.members[row]
        contents = self._file.read_parts([(offset, size) for offset, size, _ in entries.values()])
        for content, (extension, (_, size, checksum)) in zip(contents, entries.items(), strict=True):
            if len(content) < size:
                missing = size - len(content)
                raise BadSample(f"its .{extension} is cut off: {missing} of {size} bytes are missing from the tar")
            if zlib.crc32(content) != checksum:
                raise BadSample(f"its .{extension} is damaged: the CRC-32 of its {size} bytes is not the index's")
        return dict(zip(entries, contents, strict=True)), NO_LABELS

    def own_labels(self, row: int) -> np.ndarray:
        return NO_LABELS


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
    """The index beside a local tar.

    Raises:
        ValueError: it is missing, of another version, or not an index.
    """
    return load_index(tar, index_path(tar))


def load_index(tar: str, local: str) -> ShardIndex:
    """As `read_index`, of any tar whose index is at the path `local`."""
    path = index_path(tar)
    try:
        with open(local, encoding="utf-8") as file:
            content = json.load(file)
        version, size = content["version"], content["tar_size"]
        if version == INDEX_VERSION:
            keys = tuple(key for key, _ in content["samples"])
            members = tuple({ext: _entry(values) for ext, values in found.items()} for _, found in content["samples"])
    except FileNotFoundError:
        raise _no_index(tar) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a shard index ({error!r}); make the shard anew with tools.make_shards"
        ) from error
    if version != INDEX_VERSION:
        raise ValueError(f"{path} has version {version!r}, this program reads {INDEX_VERSION}; make the shard anew")
    return ShardIndex(tar_size=size, keys=keys, members=members)


def _no_index(tar: str) -> ValueError:
    return ValueError(f"shard {tar} has no index {index_path(tar)}; python -m tools.index_shards writes it")


def _entry(values: Any) -> Entry:
    offset, size, checksum = values
    return int(offset), int(size), int(checksum)
