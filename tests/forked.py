"""Commands as processes forked off one that has imported torch and megatron-core, which takes seconds of a core.

For tests of what a command does; how it starts is tested by starting it.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.rank_pool import fork_server


def _command(module: str, words: Sequence[str], folder: Path, environment: dict[str, str], output: Path) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def forked(
    module: str, *words: str, cwd: Path | None = None, environment: dict[str, str] | None = None, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """What `python -m module *words` would do."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory)
        arguments = (module, words, cwd or Path.cwd(), environment or dict(os.environ), output)
        process = fork_server().Process(target=_command, args=arguments)
        process.start()
        process.join(timeout_s)
        process.kill()
        process.join()
        assert process.exitcode is not None
        stdout, stderr = ((output / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess([module, *words], process.exitcode, stdout, stderr)
