"""Access to local files and remote ones (any fsspec URL), these by ranges or from a cached copy."""

from __future__ import annotations

import errno
import glob
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from megatron_ovenc.data.storage.base import FileRef
from megatron_ovenc.data.storage.cache import FileCache
from megatron_ovenc.data.storage.local import LocalFile, Readable

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""Pauses between tries of a remote call double from the first to the longest."""
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, ValueError)
"""Errors that waiting does not mend."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger(__name__)


class RemoteError(OSError):
    """A remote file could not be read in the time that it had."""


class RemoteFile:
    """A remote file: from its copy in the cache as soon as there is one, by ranges until then."""

    def __init__(self, ref: FileRef, storage: Storage) -> None:
        self._ref = ref
        self._storage = storage
        self._copy: LocalFile | None = None

    def read_at(self, offset: int, size: int) -> bytes:
        return self.read_parts([(offset, size)])[0]

    def read_parts(self, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        # Asked every time: that notes that the copy is in use.
        path = self._storage.cached(self._ref)
        if self._copy is None and path is not None:
            self._copy = LocalFile(path)
        if self._copy is not None:
            return self._copy.read_parts(parts)
        # A request costs more than the few bytes between neighbours.
        start = min(offset for offset, _ in parts)
        end = min(max(offset + size for offset, size in parts), self._ref.size)
        content = self._storage.read_range(self._ref.path, start, end) if start < end else b""
        return [content[offset - start : offset - start + size] for offset, size in parts]


class Storage:
    """Access to files by local path or URL. Pickles as its settings; processes of a host share what it caches."""

    def __init__(self, cache_dir: str | None = None, cache_gb: float = 0.0, retry_s: float = 60.0) -> None:
        """
        Args:
            cache_dir: where whole remote shards are kept; None reads them by ranges.
            cache_gb: most that the cache may take, in 10^9 bytes.
            retry_s: seconds for which a remote call that fails is tried again.
        """
        self._settings = (cache_dir, cache_gb, retry_s)
        self._keeps_shards = cache_dir is not None
        self._retry_s = retry_s
        self._cache = FileCache(cache_dir or _private_folder(), int(cache_gb * 1e9), private=cache_dir is None)
        self._failed_at: dict[str, float] = {}
        self._filling: threading.Thread | None = None
        self._full = False

    def __reduce__(self) -> tuple[type[Storage], tuple[str | None, float, float]]:
        return Storage, self._settings

    def expand(self, pattern: str) -> list[str]:
        """Paths or URLs that a pattern matches, sorted; a URL without a wildcard is taken as it is.

        Raises:
            OSError, ImportError, ValueError: the remote cannot be asked, needs a package, or is unknown to fsspec.
        """
        if not is_remote(pattern):
            return sorted(glob.glob(pattern, recursive=True))
        if "::" in pattern:
            raise ValueError(f"{pattern!r} chains file systems; give the plain URL: data.cache_dir keeps copies of it")
        if not any(sign in pattern for sign in ("*[" if is_http(pattern) else "*?[")):
            return [pattern]

        def matches() -> list[str]:
            system, path = _file_system(pattern)
            return sorted(system.unstrip_protocol(found) for found in system.glob(path))

        return self._patiently(pattern, matches)

    def stat(self, path: str) -> FileRef:
        """Size and version of a file.

        Raises:
            OSError: it is missing or cannot be reached.
        """
        if not is_remote(path):
            return FileRef(path, os.stat(path).st_size)

        def ask() -> FileRef:
            system, inner = _file_system(path)
            info = system.info(inner)
            size = info.get("size")
            if size is None:
                raise PermissionError(
                    f"{path}: the server does not tell its size, without which it cannot be read by ranges"
                )
            return FileRef(path, size, info.get("version") or system.ukey(inner))

        return self._patiently(path, ask)

    def open(self, ref: FileRef) -> Readable:
        """A shard's content."""
        return RemoteFile(ref, self) if is_remote(ref.path) else LocalFile(ref.path)

    def local(self, ref: FileRef) -> str:
        """Path of an index, list or label array on a local disk, fetched once a host.

        Raises:
            OSError: it cannot be fetched or kept.
        """
        if not is_remote(ref.path):
            return ref.path
        found = self._cache.find(ref) or self._cache.fetch(ref, lambda path: self._download(ref, path), optional=False)
        assert found is not None, "what is not optional is waited for"
        return found

    def read_whole(self, path: str) -> bytes:
        """A file's content, which is not cached.

        Raises:
            OSError: it is missing or cannot be read.
        """
        if not is_remote(path):
            with open(path, "rb") as file:
                return file.read()
        return self.read_range(path, None, None)

    def read_range(self, path: str, start: int | None, end: int | None) -> bytes:
        """Bytes [start, end) of a remote file."""

        def read() -> bytes:
            system, inner = _file_system(path)
            content: bytes = system.cat_file(inner, start=start, end=end)
            if start is not None and end is not None and len(content) != end - start:
                raise OSError(f"{len(content)} bytes came of the {end - start} asked for")
            return content

        return self._patiently(path, read)

    def cached(self, ref: FileRef) -> str | None:
        """Path of a shard's copy. If there is none, one begins to be made in the background, one at a time."""
        if not self._keeps_shards:
            return None
        found = self._cache.find(ref)
        if found is None and not self._full and (self._filling is None or not self._filling.is_alive()):
            self._filling = threading.Thread(target=self._fill, args=(ref,), daemon=True)
            self._filling.start()
        return found

    def settle(self) -> None:
        """Wait for the copy that is being made."""
        if self._filling is not None:
            self._filling.join()

    def _fill(self, ref: FileRef) -> None:
        try:
            self._cache.fetch(ref, lambda path: self._download(ref, path), optional=True)
        except OSError as error:
            if error.errno in _DISK_FULL:
                self._full = True
                logger.warning(
                    "no room for copies of remote shards (%s); the others are read by ranges; lower data.cache_gb or move "
                    "data.cache_dir",
                    error,
                )
            else:
                logger.warning("no copy of %s was made: %s", ref.path, error)

    def _download(self, ref: FileRef, target: str) -> None:
        def download() -> None:
            system, inner = _file_system(ref.path)
            system.get_file(inner, target)

        self._patiently(ref.path, download)

    def _patiently(self, path: str, call: Callable[[], T]) -> T:
        """Call until it works. A server that has just failed for all its time gets one try, so that a run ends in time."""
        server = path.split("://")[0] + "://" + path.split("://")[1].split("/")[0]
        begin = time.monotonic()
        limit = 0.0 if begin - self._failed_at.get(server, -1e9) < self._retry_s else self._retry_s
        for pause in _pauses():
            try:
                result = call()
            except _FINAL:
                raise
            except Exception as error:
                # Every client library has exceptions of its own.
                if isinstance(error, OSError) and error.errno in _DISK_FULL:
                    raise
                if time.monotonic() + pause - begin > limit:
                    self._failed_at[server] = time.monotonic()
                    tried = f"for {limit:g} s (data.remote_retry_s)" if limit else "once more"
                    what = f"{type(error).__name__}: {error}"
                    raise RemoteError(f"{path} could not be read, though tried {tried}: {what}") from error
                time.sleep(pause)
            else:
                self._failed_at.pop(server, None)
                return result
        raise AssertionError("pauses never end")


def is_remote(path: str) -> bool:
    """Whether fsspec is asked for a path: URLs are, `file://` ones too (which lets a network disk be cached)."""
    return "://" in path


def is_http(url: str) -> bool:
    """Whether a URL is of a web server."""
    return url.startswith(("http://", "https://"))


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path within. It keeps one for each thread and each fork by itself."""
    # Imported late: most runs are local, and every decoding process would wait for it.
    if is_http(url):
        try:
            from megatron_ovenc.data.storage import http
        except ImportError as error:
            raise ImportError(f"{url} needs a package that is not installed: pip install aiohttp ({error})") from error
        return http.file_system(), url
    import fsspec

    return fsspec.core.url_to_fs(url)


def _private_folder() -> str:
    """Where indexes and labels of remote shards are kept for runs without `data.cache_dir`."""
    return os.path.join(tempfile.gettempdir(), f"megatron_ovenc-{os.getuid()}")
