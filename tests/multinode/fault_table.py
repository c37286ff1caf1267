"""What the cases measure, and the page that shows it: benchmarks/faults.md."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import machine

_HEAD = """\
# What a run on two hosts survives

Two hosts on one machine (network namespaces with own process ids, host names and sshd; `tests/multinode/hosts.py`),
two ranks on each, tensor size 2, started by `python -m launch.submit` over pdsh and ssh, a checkpoint every {every}
of {steps} steps. Each row disturbs one run. `make test-multinode` checks the most telling rows, `make
test-multinode-all` checks all of them and writes this page.

- **noticed**: seconds from the fault to the first line about it. **ended**: seconds from the fault until
  `launch.submit` has returned, `-` where the run goes on to its last step.
- **code**: exit code of `launch.submit`. 0: finished; 75: stopped with a checkpoint; anything else but 2 is a failure
  that can be resumed.
- **lost**: steps that had to be computed again, at most the {every} between checkpoints.
- **loss**: largest relative difference of any head's loss in any of the {steps} steps to a run that nothing
  disturbed, after resuming where the run had ended: alone in one process of tensor size 1, or as the row says.
- **left**: processes of the job on either host after `launch.submit` has returned (after the cable is back and the
  guard has noticed, where it was cut).

These runs set `train.hang_timeout_s` to {soon} (300 by default), and have ssh give up a dead connection after 12 s
(60 by default); `noticed` and `ended` of hangs follow these settings.

| fault | noticed, s | ended, s | code | lost | loss | left |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One row of the table."""

    case: str
    """What was done to the run."""
    noticed_s: float | None
    """Seconds from the fault to the first line about it; none where nothing is to be said."""
    ended_s: float | None
    """Seconds from the fault to the end of the command; none where the run goes on."""
    code: int
    """Exit code of the command."""
    said: str
    """The line that was printed."""
    lost: int
    """Steps that had to be taken again."""
    difference: float
    """Largest relative difference of any loss of any step to the undisturbed run, after resuming."""
    left: int
    """Processes that outlived the command, on both hosts."""

    def line(self) -> str:
        """Its line of the table."""
        cells = (self.case, _seconds(self.noticed_s), _seconds(self.ended_s), str(self.code), str(self.lost))
        return f"| {' | '.join((*cells, f'{self.difference:.0e}', str(self.left)))} |\n"


@dataclass(slots=True)
class FaultTable:
    """The rows of a session."""

    steps: int
    every: int
    soon_s: int
    """Steps of the runs, steps between checkpoints, and train.hang_timeout_s where a hang is to be found."""
    rows: list[Fault] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the page."""
        rows = "".join(row.line() for row in self.rows)
        lines = "".join(f"- {row.case}\n  `{_plain(row.said)}`\n" for row in self.rows if row.said)
        packages = ("deepspeed", "megatron-core")
        versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
        for command in (["ssh", "-V"], ["pdsh", "-V"]):
            shown = subprocess.run(command, capture_output=True, text=True, check=False)
            versions.append((shown.stdout + shown.stderr).splitlines()[0].split(",")[0])
        load = f"load average of the last 15 minutes {os.getloadavg()[2]:.0f}"
        where = f"{time.strftime('%Y-%m-%d')}; {machine()}, {', '.join(versions)}; {load}"
        head = _HEAD.format(steps=self.steps, every=self.every, soon=self.soon_s)
        path.write_text(f"{head}{rows}\nMeasured {where}.\n\n## What was printed first\n\n{lines}")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _plain(line: str) -> str:
    """Without the host that pdsh puts before it, and without the directories above the run and the shards."""
    line = re.sub(r"^node\d: ", "", line)
    return re.sub(r"(?:/[\w.-]+)+/(?=run/|images-|clips-)", "", line).strip().replace("`", "'")
