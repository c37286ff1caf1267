"""Copies of remote files on a local disk, shared by all processes of a host.

    <folder>/<digest>.<size>.<name>             a whole file; its modification time is when it was last opened
    <folder>/<digest>.<size>.<name>.partial     one that is being fetched, by the process that holds its lock
    <folder>/lock                               held while room is made

A copy gives way only when it has not been opened for IDLE_S: training reads its shards in random order, and replacing copies
that are in use by others that are in use would fetch a whole shard for every sample.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress

from megatron_ovenc.data.storage.base import FileRef

IDLE_S = 3600.0
"""Seconds without being opened after which a copy may be replaced."""
STAMP_S = 60.0
"""Seconds between notes that a copy is in use."""
_PARTIAL = ".partial"


class FileCache:
    """A folder of bounded size."""

    def __init__(self, folder: str, limit: int, *, private: bool = False) -> None:
        """
        Args:
            folder: made when it is first needed.
            limit: bytes.
            private: refuse a folder that someone else made, as in a directory for all.
        """
        self._folder = folder
        self._limit = limit
        self._private = private

    def find(self, ref: FileRef) -> str | None:
        """Path of the copy of this version of a file, if it is there and has the right size."""
        path = self._place(ref)
        try:
            found = os.stat(path)
            if time.time() - found.st_mtime > STAMP_S:
                os.utime(path)
        except OSError:
            return None
        return path if found.st_size == ref.size else None

    def fetch(self, ref: FileRef, download: Callable[[str], None], *, optional: bool) -> str | None:
        """Have a file copied, by this process or by the one that is at it.

        Args:
            ref: the file.
            download: writes it to a path.
            optional: return None where another process is at it, or where there is no room; else wait, and exceed the limit.

        Raises:
            OSError: the disk is full or cannot be written, or `download` fails.
        """
        self._make_folder()
        target = self._place(ref)
        partial = target + _PARTIAL
        while True:
            # Append mode creates it without harm to what another process writes.
            with open(partial, "ab") as file:
                if not _lock(file.fileno(), wait=not optional):
                    return None
                if not _is(file.fileno(), partial):
                    # Finished or given up by its owner while we waited.
                    if (found := self.find(ref)) is not None:
                        return found
                    continue
                try:
                    if (found := self.find(ref)) is not None:
                        return found
                    if not self._make_room() and optional:
                        return None
                    download(partial)
                    size = os.stat(partial).st_size
                    if size != ref.size:
                        raise OSError(f"{size} bytes of {ref.path} arrived, not its {ref.size}")
                    os.fsync(file.fileno())
                    os.replace(partial, target)
                    return target
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(partial)

    def _place(self, ref: FileRef) -> str:
        digest = hashlib.blake2b(f"{ref.path}\0{ref.version}".encode("utf-8", "replace"), digest_size=12).hexdigest()
        name = os.fsencode(ref.path.rsplit("/", 1)[-1])[-100:].decode("ascii", "replace").replace("\ufffd", "_")
        return os.path.join(self._folder, f"{digest}.{ref.size}.{name}")

    def _make_folder(self) -> None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        if self._private and os.stat(self._folder).st_uid != os.getuid():
            raise PermissionError(f"{self._folder} belongs to another user; set data.cache_dir to a folder of your own")

    def _make_room(self) -> bool:
        """Remove idle copies, oldest first, until what is there or on its way fits; whether it does."""
        with open(os.path.join(self._folder, "lock"), "ab") as lock:
            _lock(lock.fileno(), wait=True)
            total, idle = 0, []
            for entry in os.scandir(self._folder):
                size = entry.name.split(".")[1:2]
                if (
                    not size
                    or not size[0].isdigit()
                    or (entry.name.endswith(_PARTIAL) and _remove_abandoned(entry.path))
                ):
                    continue
                # What is on its way counts with the size that it will have.
                total += int(size[0])
                if not entry.name.endswith(_PARTIAL) and time.time() - (used := entry.stat().st_mtime) > IDLE_S:
                    idle.append((used, int(size[0]), entry.path))
            for _, size_bytes, path in sorted(idle):
                if total <= self._limit:
                    break
                os.unlink(path)
                total -= size_bytes
            return total <= self._limit


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Take a file's lock, which ends with the process that holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _is(descriptor: int, path: str) -> bool:
    """Whether a path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_abandoned(partial: str) -> bool:
    """Remove what a process that died left half fetched; True if it is gone."""
    try:
        with open(partial, "ab") as file:
            if not _lock(file.fileno(), wait=False):
                return False
            os.unlink(partial)
    except FileNotFoundError:
        pass
    return True
