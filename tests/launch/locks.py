"""A process that holds a run directory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from megatron_ovenc.train.run_lock import RunLock

print("started", flush=True)
RunLock(Path(sys.argv[1])).take(float(sys.argv[2]))
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def holder(run_dir: Path, wait_s: float) -> Iterator[subprocess.Popen[str]]:
    """It holds the lock on entry; or, if it may wait for it, is about to take it as soon as it is free."""
    words = [sys.executable, "-c", HOLD, str(run_dir), str(wait_s)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            if not wait_s:
                assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()
