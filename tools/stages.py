"""Commands of a longer procedure, one after the other or side by side, with titles that say when each began."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


def shown(words: Sequence[str]) -> str:
    """A command as one would type it."""
    return " ".join("python" if word == sys.executable else word for word in words)


class Stages:
    """Runs commands, shows what they are, and stops at the first that fails."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.started = time.monotonic()

    def title(self, text: str) -> None:
        console.print(f"\n[bold]{time.monotonic() - self.started:4.0f} s  {text}[/]")

    def run(self, *command: str | Path, ok: Sequence[int] = (0,)) -> None:
        """Run a command to its end."""
        with self.start(*command) as process:
            self.finish(process, ok)

    def run_together(self, *commands: Sequence[str | Path]) -> None:
        """Run commands of one core each side by side; what they print follows when all have ended."""
        with ExitStack() as stack:
            outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands]
            processes = [
                stack.enter_context(self.start(*command, output=output))
                for command, output in zip(commands, outputs, strict=True)
            ]
            try:
                for process in processes:
                    self.finish(process, ok=(0,))
            finally:
                for process, output in zip(processes, outputs, strict=True):
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
                    output.seek(0)
                    console.print(output.read().decode(errors="replace"), end="", markup=False)

    def start(self, *command: str | Path, output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own, so that its whole tree can be ended. `output` takes what it prints."""
        words = [str(word) for word in command]
        console.print("$ " + shown(words), style="dim", markup=False)
        return subprocess.Popen(words, env=self.environment, start_new_session=True, stdout=output, stderr=output)

    def finish(self, process: subprocess.Popen[bytes], ok: Sequence[int]) -> None:
        """Wait; anything but an expected exit code ends the demo, and nothing of the command survives."""
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if code not in ok:
            raise SystemExit(f"stopped: {shown(cast(list[str], process.args))} ended with exit code {code}")
