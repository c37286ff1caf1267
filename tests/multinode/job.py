"""A training job on the two hosts, started as a user starts it, watched and disturbed from outside."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.multinode.hosts import ADDRESSES, NODES, TwoHosts

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 24, 6
"""Length of the runs, and steps between checkpoints."""
DEADLINE_S = 150.0
"""Nothing here takes longer, not even on a busy machine."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a job left behind."""

    code: int
    """Exit code of the command."""
    at: float
    """time.time() when it ended."""
    left: tuple[str, ...]
    """Command lines of processes that outlived it, `host: words`."""


class Job:
    """One start of a run.

    Args:
        hosts: where; they are up.
        config: YAML run configuration.
        run_dir: overrides the configuration's.
        nodes: hosts to use, in order.
        sets: further overrides, `key=value`.
        fault: what tests/multinode/inject makes go wrong in one rank.
        submit: further options of launch.submit.
    """

    def __init__(
        self,
        hosts: TwoHosts,
        config: Path,
        run_dir: Path,
        *sets: str,
        nodes: tuple[str, ...] = NODES,
        fault: str = "",
        submit: tuple[str, ...] = (),
    ) -> None:
        self.hosts, self.run_dir = hosts, run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        hostfile, variables = run_dir / "hostfile", run_dir / "variables.env"
        hostfile.write_text("".join(f"{node} slots=2\n" for node in nodes))
        lines = ["GLOO_SOCKET_IFNAME=eth0", "DS_ACCELERATOR=cpu", "OMP_NUM_THREADS=1"]
        self.fault_log = run_dir / "fault.json"
        self.fault_log.unlink(missing_ok=True)
        if fault:
            lines.append(f"TEST_FAULT={fault},log={self.fault_log}")
        variables.write_text("\n".join(lines) + "\n")
        overrides = [word for override in (f"run_dir={run_dir}", *sets) for word in ("--set", override)]
        self.words = [
            str(Path(sys.executable).with_name("deepspeed")),
            "--hostfile", str(hostfile), "--master_addr", ADDRESSES[nodes[0]], "--no_local_rank", "--force_multi",
            "--module", "launch.pretrain", "--config", str(config), *overrides,
        ]  # fmt: skip
        self.environment = os.environ | {
            "DS_ACCELERATOR": "cpu",
            "DS_ENV_FILE": str(variables),
            "PYTHONPATH": str(ROOT / "tests" / "multinode" / "inject"),
        }
        self.lines: list[tuple[float, str]] = []
        """What was printed so far, and when."""

    @contextmanager
    def running(self) -> Iterator[Job]:
        """Start it; what is left of it when the block ends is removed."""
        self.process = subprocess.Popen(
            self.hosts.command("node1", *self.words),
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        try:
            yield self
        finally:
            for node in NODES:
                for pid in self.hosts.pids(node):
                    _signal(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            reader.join(5)
            (self.run_dir / "output.txt").write_text("".join(f"{at:.2f} {line}\n" for at, line in self.lines))

    def run(self) -> Ended:
        """Start it and wait for its end."""
        with self.running():
            return self.ended()

    def ended(self, seconds: float = DEADLINE_S) -> Ended:
        """Wait for its end."""
        code = self.process.wait(seconds)
        at = time.time()
        time.sleep(1.0)  # what has been killed a moment ago may still be in the table of processes
        left = [f"{node}: {line}" for node in NODES for pid in self.hosts.pids(node) if (line := _command(pid))]
        return Ended(code=code, at=at, left=tuple(left))

    def said(self, pattern: str) -> tuple[float, str] | None:
        """The first printed line that a regular expression is found in, and when."""
        return next(((at, line) for at, line in self.lines if re.search(pattern, line)), None)

    @property
    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    # ---- to watch and to disturb

    def wait_for_step(self, step: int) -> None:
        """Until that many steps have been taken."""
        self.wait_until(lambda: any(number >= step for number, _ in records(self.run_dir)), f"step {step}")

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = DEADLINE_S) -> None:
        """Poll; a job that ends meanwhile is an error that shows its output."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no {what} before the job's end:\n{self.output}")
            time.sleep(0.02)

    def ranks(self, node: str) -> list[psutil.Process]:
        """The training processes on a host, by local rank."""
        found = [p for pid in self.hosts.pids(node) if (p := _rank(pid))]
        return sorted(found, key=lambda p: int(p.environ()["LOCAL_RANK"]))

    def launchers(self, node: str) -> list[psutil.Process]:
        """DeepSpeed's process that started the ranks of a host."""
        return [
            psutil.Process(pid)
            for pid in self.hosts.pids(node)
            if "python" in _command(pid).split(" ")[0] and "deepspeed.launcher.launch" in _command(pid)
        ]

    def fault_time(self) -> float:
        """When the planned fault happened, as time.time()."""
        self.wait_until(self.fault_log.exists, "planned fault")
        time.sleep(0.05)
        return float(json.loads(self.fault_log.read_text())["time"])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip("\n")))


def records(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, losses) of metrics.jsonl in the order of writing; a step that was taken again is there again."""
    path = run_dir / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    parsed = [json.loads(line) for line in whole]
    return [(r["step"], {key: v for key, v in r.items() if key.startswith("loss")}) for r in parsed]


def losses(run_dir: Path) -> dict[int, dict[str, float]]:
    """Losses by step; of a step that was taken again, the later ones."""
    return dict(records(run_dir))


def steps_lost(run_dir: Path) -> int:
    """How many steps had to be taken again."""
    steps = [step for step, _ in records(run_dir)]
    return sum(1 for step in range(1, max(steps) + 1) for _ in range(steps.count(step) - 1))


def largest_difference(ours: dict[int, dict[str, float]], expected: dict[int, dict[str, float]]) -> float:
    """Largest relative difference of any loss of any step; infinite when the steps are not the same."""
    if ours.keys() != expected.keys():
        return math.inf
    return max(
        abs(ours[step][head] - value) / abs(value) for step, heads in expected.items() for head, value in heads.items()
    )


def checkpoints(run_dir: Path) -> list[int]:
    """Steps of complete checkpoints."""
    return sorted(int(p.parent.name.removeprefix("step_")) for p in run_dir.glob("checkpoints/step_*/manifest.json"))


def _rank(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        return process if ("-m", "launch.pretrain") in zip(words, words[1:], strict=False) else None
    except psutil.Error:
        return None


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
