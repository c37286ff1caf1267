"""One job at a time in a run directory: two would write each other's checkpoints.

`<run_dir>/lock` is locked by rank 0 for as long as it lives, and says who that is. The lock is the operating system's (POSIX record
lock; NFS passes it on to its server), so it ends with the process however that ends, and nothing has to be cleaned up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from pathlib import Path

from megatron_ovenc.config import ConfigError

WAIT_S = 15.0
"""Seconds for which a predecessor may still be ending."""

_HELD = (errno.EACCES, errno.EAGAIN)


class RunLock:
    """Held from `take` to the end of the process. Never opens its file a second time: closing that would release the lock."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "lock"
        self._descriptor: int | None = None

    def take(self, wait_s: float = WAIT_S) -> None:
        """Take the lock, waiting for a while for one who has it.

        Raises:
            ConfigError: another process keeps it.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait_s
        while not self._try(descriptor):
            if time.monotonic() > deadline:
                holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                raise ConfigError(
                    f"run_dir={self._path.parent} is in use by {holder}; give another run_dir, or end that job. If its host is "
                    f"gone and its file server does not know yet, remove {self._path}"
                )
            time.sleep(0.2)
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}\n".encode())

    def release(self) -> None:
        """Let the next one in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self, descriptor: int) -> bool:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                return False
            print(
                f"{self._path} cannot be locked ({error}): nothing keeps a second job out of this run", file=sys.stderr
            )
        return True
