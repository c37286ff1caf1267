"""Lists of image or video files with labels: each file is a sample, each list a shard.

    .txt      whitespace-separated: path, labels, and for a clip with patches chosen beforehand the path of their `.visidx.npy`;
              the reference's lists of clips have 10 labels
    .csv      path,label,label,... without a header
    .jsonl    {"path": ..., "labels": [...], "visidx": ...}; labels and visidx may be left out

Paths are relative to the list's folder; they are bytes to us and need not be UTF-8. Labels may be left out if they lie beside
the list (`storage.labels`). As in the reference, a `k4096.visidx.npy` in a `.txt` list stands for its `k2048.visidx.npy`.
"""

from __future__ import annotations

import codecs
import csv
import json
import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.storage.base import VISIDX_EXTENSION, Shard, printable
from megatron_ovenc.data.storage.files import Storage, is_remote
from megatron_ovenc.data.storage.labels import find_labels, label_width

STRIDE = 64
"""Lines between places that are remembered: a list of millions costs little memory, a sample a few lines' reading."""
_BLOCK = 1 << 24

Line = tuple[str, np.ndarray, str | None]
"""Path of the file, labels int64 [L], path of its patch selection."""


class ListReader:
    """The files of one list."""

    @classmethod
    def inspect(cls, path: str, storage: Storage) -> Shard:
        content = storage.stat(path)
        lines = _Lines(storage.local(content))
        labels = find_labels(path, len(lines), storage)
        try:
            width = label_width(labels, storage) if labels else len(_parser(path)(lines[0])[1]) if len(lines) else 0
        except ValueError as error:
            raise ValueError(f"line 1 of the list {printable(path)}: {error}") from error
        return Shard(path=path, length=len(lines), label_width=width, content=content, index=content, labels=labels)

    def __init__(self, shard: Shard, storage: Storage) -> None:
        self._path = shard.path
        self._storage = storage
        self._lines = _Lines(storage.local(shard.index))
        self._parse = _parser(shard.path)

    def key(self, row: int) -> str:
        try:
            return printable(self._line(row)[0])
        except BadSample:
            return f"[{row}]"

    def read(self, row: int) -> tuple[dict[str, bytes], np.ndarray]:
        path, labels, visidx = self._line(row)
        members = {os.path.splitext(path)[1].lower().lstrip("."): self._content(path)}
        if visidx is not None:
            members[VISIDX_EXTENSION] = self._content(visidx)
        return members, labels

    def own_labels(self, row: int) -> np.ndarray:
        return self._line(row)[1]

    def _line(self, row: int) -> Line:
        try:
            return self._parse(self._lines[row])
        except ValueError as error:
            raise BadSample(f"line {row + 1} of its list: {error}") from error

    def _content(self, path: str) -> bytes:
        place = path if is_remote(path) else os.path.join(os.path.dirname(self._path), path)
        try:
            return self._storage.read_whole(place)
        except OSError as error:
            raise BadSample(f"its file {printable(place)} cannot be read: {error.strerror or error}") from error


class _Lines:
    """The lines of a file on disk, by number."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        starts, self._count = [np.zeros(1, np.int64)], 0
        for begin in range(0, size, _BLOCK):
            block = np.frombuffer(self._content[begin : begin + _BLOCK], np.uint8)
            ends = np.flatnonzero(block == ord("\n")) + begin + 1
            starts.append(ends[-(self._count + 1) % STRIDE :: STRIDE])
            self._count += len(ends)
        if size and self._content[size - 1] != ord("\n"):
            self._count += 1
        self._starts = np.append(np.concatenate(starts), size)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> bytes:
        place, line = divmod(number, STRIDE)
        found: bytes = self._content[self._starts[place] : self._starts[place + 1]].split(b"\n")[line]
        return found.removeprefix(codecs.BOM_UTF8) if number == 0 else found  # spreadsheets begin with such a mark


def _parser(path: str) -> Callable[[bytes], Line]:
    return {"txt": _parse_txt, "csv": _parse_csv, "jsonl": _parse_json}[path.rsplit(".", 1)[-1].lower()]


def _parse_txt(line: bytes) -> Line:
    columns = [os.fsdecode(column) for column in line.split()]
    if not columns:
        raise ValueError("it is empty")
    visidx = columns.pop() if len(columns) > 1 and columns[-1].endswith(".npy") else None
    if visidx is not None:
        visidx = visidx.replace("k4096.visidx.npy", "k2048.visidx.npy")
    return columns[0], _labels(columns[1:]), visidx


def _parse_csv(line: bytes) -> Line:
    row = next(csv.reader([os.fsdecode(line.rstrip(b"\r"))]), [])
    if not row or not row[0]:
        raise ValueError("it names no file")
    return row[0], _labels([text for text in row[1:] if text.strip()]), None


def _parse_json(line: bytes) -> Line:
    entry = json.loads(os.fsdecode(line))
    try:
        path, labels, visidx = entry["path"], entry.get("labels", []), entry.get("visidx")
        if not isinstance(path, str) or not isinstance(labels, list) or not isinstance(visidx, str | None):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise ValueError('it is not {"path": text, "labels": [numbers], "visidx": text}') from None
    return path, _labels(labels), visidx


def _labels(values: list[Any]) -> np.ndarray:
    try:
        # JSON has fractions and truth values too, which `int` would take.
        if any(isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()) for value in values):
            raise ValueError
        return np.array([int(value) for value in values], np.int64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"its labels {values[:8]} are not class numbers") from None
