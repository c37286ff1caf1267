"""MXNet's indexed RecordIO, as its `im2rec` writes image sets: `<name>.rec` with `<name>.idx` beside it.

    .idx    a text line a sample: key, tab, byte offset of its record
    .rec    records, each of parts [uint32 magic][uint32 flag << 29 | length][payload][zeros up to a multiple of 4]; a payload
            that holds the magic at a multiple of 4 is cut there, without it, into parts flagged 1 (first), 2 ..., 3 (last); 0
            is a whole record
    payload [uint32 n][float32 label][uint64 id][uint64 id2][n float32 labels, in place of the one above, if n > 0][image file]

All numbers are little-endian. Labels are float32 there, so class numbers are exact up to 2^24.
"""

from __future__ import annotations

import os
import struct
from functools import cached_property

import numpy as np

from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.storage.base import FileRef, Shard
from megatron_ovenc.data.storage.files import Storage
from megatron_ovenc.data.storage.labels import find_labels, label_width
from megatron_ovenc.data.storage.local import Readable

MAGIC = 0xCED7230A
_MAGIC = struct.pack("<I", MAGIC)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
WHOLE, FIRST, MIDDLE, LAST = range(4)
LABELS_AHEAD = 1024
"""Bytes that are read for the labels alone."""
MOST_AHEAD = 1 << 20
"""Bytes that are read at first where the index knows of no next record nearby."""


class RecordReader:
    """The images of one .rec file, in the order of its index."""

    @classmethod
    def inspect(cls, path: str, storage: Storage) -> Shard:
        index_path = f"{path[: -len('.rec')]}.idx"
        try:
            index = storage.stat(index_path)
        except FileNotFoundError:
            raise ValueError(
                f"shard {path} has no index {index_path}; write one with MXNet's tools/rec2idx.py"
            ) from None
        content = storage.stat(path)
        _, offsets = _read_index(index, storage)
        if len(offsets) and int(offsets.max()) + _PART.size + _HEADER.size > content.size:
            raise ValueError(
                f"{index_path} lists a record at byte {offsets.max()}, but shard {path} has only {content.size} bytes: one of "
                f"them is stale or cut off; copy both again"
            )
        labels = find_labels(path, len(offsets), storage)
        shard = Shard(path=path, length=len(offsets), label_width=0, content=content, index=index, labels=labels)
        return Shard(
            path=path,
            length=len(offsets),
            label_width=label_width(labels, storage) if labels else _check_ends(shard, offsets, storage),
            content=content,
            index=index,
            labels=labels,
        )

    def __init__(self, shard: Shard, storage: Storage) -> None:
        self._shard = shard
        self._storage = storage
        self._keys, self._offsets = _read_index(shard.index, storage)
        ascending = bool((np.diff(self._offsets) > 0).all())
        self._starts = self._offsets if ascending else np.unique(self._offsets)

    @cached_property
    def _file(self) -> Readable:
        return self._storage.open(self._shard.content)

    def key(self, row: int) -> str:
        return str(self._keys[row])

    def read(self, row: int) -> tuple[dict[str, bytes], np.ndarray]:
        payload = self._record(int(self._offsets[row]))
        labels, start = _labels(payload)
        # Pillow looks at the content, whatever the extension says.
        return {"jpg": payload[start:]}, labels

    def own_labels(self, row: int) -> np.ndarray:
        offset = int(self._offsets[row])
        payload = read_record(self._file, offset, ahead=LABELS_AHEAD, whole=False)
        if len(payload) >= _HEADER.size and _labels_end(payload) > len(payload):
            payload = self._record(offset)
        return _labels(payload)[0]

    def _record(self, offset: int) -> bytes:
        # Up to where the next one begins: one read, and none of it in vain.
        after = int(np.searchsorted(self._starts, offset, side="right"))
        end = int(self._starts[after]) if after < len(self._starts) else self._shard.content.size
        return read_record(self._file, offset, ahead=min(end - offset, MOST_AHEAD))


def read_record(file: Readable, offset: int, *, ahead: int, whole: bool = True) -> bytes:
    """The payload of the record at a byte offset.

    Args:
        file: the .rec file.
        offset: of its first part.
        ahead: bytes to read before its length is known.
        whole: False is content with what of its first part these hold.

    Raises:
        BadSample: no record begins there, or it is cut off.
    """
    parts: list[bytes] = []
    while True:
        chunk = file.read_at(offset, max(ahead, _PART.size))
        flag, length = _part_header(chunk, offset)
        if (flag in (MIDDLE, LAST)) != bool(parts):
            raise BadSample(
                f"its record is damaged: a part flagged {flag} at byte {offset} of the .rec file is out of place"
            )
        if not whole:
            return chunk[_PART.size : _PART.size + length]
        end = _PART.size + length
        if len(chunk) < end:
            chunk += file.read_at(offset + len(chunk), end - len(chunk))
        if len(chunk) < end:
            raise BadSample(
                f"its record is cut off: {end - len(chunk)} of {length} bytes are missing from the .rec file"
            )
        parts.append(chunk[_PART.size : end])
        ahead -= end
        if flag in (WHOLE, LAST):
            return _MAGIC.join(parts)
        offset += end + -length % 4


def _part_header(chunk: bytes, offset: int) -> tuple[int, int]:
    """Flag and length."""
    if len(chunk) < _PART.size:
        raise BadSample(f"its record is cut off: the .rec file ends at byte {offset + len(chunk)}")
    magic, value = _PART.unpack_from(chunk)
    if magic != MAGIC:
        raise BadSample(
            f"no record begins at byte {offset} of the .rec file: {magic:#010x} is not its magic {MAGIC:#010x}"
        )
    flag = value >> 29
    if flag > LAST:
        raise BadSample(f"its record is damaged: a part at byte {offset} of the .rec file has the unknown flag {flag}")
    return flag, value & (1 << 29) - 1


def _labels_end(payload: bytes) -> int:
    return _HEADER.size + 4 * int.from_bytes(payload[:4], "little")


def _labels(payload: bytes) -> tuple[np.ndarray, int]:
    """int64 [L], and where the image begins."""
    if len(payload) < _HEADER.size:
        raise BadSample(f"its record has {len(payload)} bytes, fewer than the header of an image record")
    count, label, _, _ = _HEADER.unpack_from(payload)
    start = _labels_end(payload)
    if start > len(payload):
        raise BadSample(f"its record announces {count} labels, more than its {len(payload)} bytes hold")
    values = np.frombuffer(payload, "<f4", count, _HEADER.size) if count else np.array([label], np.float32)
    if not (np.isfinite(values).all() and (values == np.rint(values)).all() and (np.abs(values) < 2**63).all()):
        raise BadSample(f"its labels {values.tolist()[:8]} are not class numbers")
    return values.astype(np.int64), start


def _read_index(ref: FileRef, storage: Storage) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets, int64 [n] each.

    Raises:
        ValueError: not such an index.
    """
    with open(storage.local(ref), "rb") as file:
        columns = np.array(file.read().split())
    try:
        keys, offsets = columns.astype(np.int64).reshape(-1, 2).T
    except ValueError as error:
        raise ValueError(f"{ref.path} is not an index of records ('key<TAB>offset' a line): {error}") from error
    if len(offsets) and offsets.min() < 0:
        raise ValueError(f"{ref.path} lists a record at byte {offsets.min()}")
    return keys, offsets


def _check_ends(shard: Shard, offsets: np.ndarray, storage: Storage) -> int:
    """Read the first and the last record; returns the number of labels of the first, 0 if they are damaged."""
    if not len(offsets):
        return 0
    file = storage.open(shard.content)
    try:
        first, _ = (read_record(file, int(offset), ahead=LABELS_AHEAD) for offset in (offsets.min(), offsets.max()))
    except BadSample as error:
        raise ValueError(
            f"shard {shard.path} does not fit its index {os.path.basename(shard.index.path)}: {error}; copy both again"
        ) from error
    try:
        return len(_labels(first)[0])
    except BadSample:
        return 0
