"""One job at a time in a run directory: two would write each other's checkpoints.

`<run_dir>/lock` is locked by rank 0 for as long as it lives, and says who that is. The lock is the operating system's (POSIX record
lock; NFS passes it on to its server), so it ends with the process however that ends, and nothing has to be cleaned up. Only a file
server that has not noticed that a host is dead keeps its lock for a while: restarts wait for that (`launch.submit --patience`).
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from pathlib import Path

from megatron_ovenc.config import ConfigError

WAIT_S = 15.0
"""Seconds for which a predecessor may still be ending."""

_HELD = (errno.EACCES, errno.EAGAIN)


class RunInUse(ConfigError):
    """Another process keeps the run directory. Not for ever, unlike what else is wrong with a configuration."""


class RunLock:
    """Held from `take` to the end of the process. Never opens its file a second time: closing that would release the lock."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "lock"
        self._descriptor: int | None = None

    def take(self, wait_s: float) -> None:
        """Take the lock, waiting for a while for one who has it.

        Raises:
            RunInUse: another process keeps it.
        """
        self._descriptor = self._open_when_free(os.F_TLOCK, wait_s)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}\n".encode())

    def check(self, wait_s: float) -> None:
        """Wait and raise as `take` does, but leave the lock alone: for those who start others."""
        os.close(self._open_when_free(os.F_TEST, wait_s))

    def release(self) -> None:
        """Let the next one in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open_when_free(self, command: int, wait_s: float) -> int:
        """A descriptor of the file, from whose start on nobody else has locked it when `command` of lockf(3) has been done."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait_s
        while not self._done(descriptor, command):
            if time.monotonic() > deadline:
                holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise RunInUse(
                    f"run_dir={self._path.parent} is in use by {holder}; give another run_dir, or end that job. If its host is "
                    f"gone and its file server does not know yet, wait, or remove {self._path}"
                )
            time.sleep(0.2)
        return descriptor

    def _done(self, descriptor: int, command: int) -> bool:
        try:
            os.lockf(descriptor, command, 0)
        except OSError as error:
            if error.errno in _HELD:
                return False
            print(
                f"{self._path} cannot be locked ({error}): nothing keeps a second job out of this run", file=sys.stderr
            )
        return True
