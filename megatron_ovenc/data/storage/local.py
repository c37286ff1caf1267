"""Positioned reads of local files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol


class Readable(Protocol):
    """A file that any thread or forked process may read at any place."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only where the file ends.

        Raises:
            OSError: the file cannot be read.
        """

    def read_parts(self, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """As `read_at` for each (offset, size) of neighbours."""


class LocalFile:
    """A file on a disk; it is closed when the last reference goes."""

    def __init__(self, path: str) -> None:
        # Open for as long as the object lives.
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115

    def read_at(self, offset: int, size: int) -> bytes:
        # Positioned reads leave the file's cursor alone, which threads and forked processes share.
        parts = []
        while size > 0 and (part := os.pread(self._file.fileno(), size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def read_parts(self, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.read_at(offset, size) for offset, size in parts]
