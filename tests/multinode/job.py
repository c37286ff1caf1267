"""A training job on the two hosts, started as a user starts it, watched and disturbed from outside."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.multinode.hosts import NODES, TwoHosts

ROOT = Path(__file__).parents[2]
INJECT = Path(__file__).parent / "inject"
STEPS, EVERY = 30, 6
"""Length of the runs, and steps between checkpoints."""
DEADLINE_S = 240.0
"""Nothing here takes longer, not even on a busy machine."""
Losses = dict[int, dict[str, float]]
"""Loss by head, by step."""


class Job:
    """One start of a run, by launch.submit on node1.

    Args:
        hosts: where; they are up.
        config: YAML run configuration.
        run_dir: overrides the configuration's.
        sets: further overrides, `key=value`.
        nodes: hosts to use, in order; two ranks on each.
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
        papers = run_dir.with_name(run_dir.name + ".job")
        papers.mkdir(parents=True, exist_ok=True)
        (papers / "hostfile").write_text("".join(f"{node} slots=2\n" for node in nodes))
        self.fault_log, self.output_file = papers / "fault.json", papers / "output.txt"
        self.fault_log.unlink(missing_ok=True)
        variables = ["GLOO_SOCKET_IFNAME=eth0", "DS_ACCELERATOR=cpu", "OMP_NUM_THREADS=1"]
        if fault:
            variables.append(f"TEST_FAULT={fault},log={self.fault_log}")
        (papers / "ranks.env").write_text("\n".join(variables) + "\n")
        overrides = [word for override in (f"run_dir={run_dir}", *sets) for word in ("--set", override)]
        self.words = [sys.executable, "-m", "launch.submit", "--config", str(config), *overrides, *submit]
        self.words += ["--hostfile", f"{papers}/hostfile", "--env-file", f"{papers}/ranks.env"]
        # A dead connection is noticed after 6 times this.
        self.words += ["--ssh-args", "-o ServerAliveInterval=2"]
        self.environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(INJECT)}
        self.lines: list[tuple[float, str]] = []
        """What was printed so far, and when."""
        self.ended_at: float | None = None
        """time.time() of its end."""
        self.left: tuple[str, ...] = ()
        """Command lines of processes that outlived it, `host: words`."""

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

    def wait(self, seconds: float = DEADLINE_S) -> int:
        """Wait for its end, and look for what it leaves; returns its exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {seconds:g} s:\n{self.output}") from None
        self.ended_at = time.time()
        time.sleep(1.0)  # what has been killed a moment ago may still be in the table of processes
        self.look_for_leftovers()
        return code

    def look_for_leftovers(self) -> None:
        """Note what runs on the hosts although the job has ended."""
        found = ((node, _command(pid)) for node in NODES for pid in self.hosts.pids(node))
        self.left = tuple(f"{node}: {line}" for node, line in found if line)

    def said(self, pattern: str, since: float = 0.0) -> tuple[float, str] | None:
        """The first line printed since then that a regular expression is found in, and when."""
        return next(((at, line) for at, line in self.lines if at >= since and re.search(pattern, line)), None)

    @property
    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    # ---- to watch and to disturb

    def wait_for_step(self, step: int) -> None:
        """Until that many steps have been taken, and the checkpoint before is complete."""
        due = step // EVERY * EVERY
        self.wait_until(lambda: any(number >= step for number, _ in records(self.run_dir)), f"step {step}")
        self.wait_until(lambda: max(checkpoints(self.run_dir), default=0) >= due, f"checkpoint of step {due}")

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

    def submit_process(self) -> psutil.Process:
        """launch.submit itself, which what enters the host waits for."""
        (process,) = (p for p in psutil.Process(self.process.pid).children() if "launch.submit" in p.cmdline())
        return process

    def fault_time(self) -> float:
        """When the planned fault happened, as time.time()."""
        self.wait_until(self.fault_log.exists, "planned fault")
        time.sleep(0.05)
        return float(json.loads(self.fault_log.read_text())["time"])

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.output_file.open("a", buffering=1) as file:
            for line in self.process.stdout:
                self.lines.append((time.time(), line.rstrip("\n")))
                file.write(f"{self.lines[-1][0]:.2f} {line}")


def run_alone(config: Path, run_dir: Path, environment: Mapping[str, str] | None = None) -> None:
    """Take a run to its end in one process, on this machine, without a launcher."""
    words = [sys.executable, "-m", "launch.pretrain", "--config", str(config)]
    words += ["--set", f"run_dir={run_dir}", "--set", "parallel.tensor=1"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr


def records(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, losses) of metrics.jsonl in the order of writing; a step that was taken again is there again."""
    path = run_dir / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    parsed = [json.loads(line) for line in whole]
    return [
        (r["step"], {key: math.nan if v is None else v for key, v in r.items() if key.startswith("loss/")})
        for r in parsed
    ]


def losses(run_dir: Path) -> Losses:
    """Losses by step; of a step that was taken again, the later ones."""
    return dict(records(run_dir))


def steps_lost(run_dir: Path) -> int:
    """How many steps had to be taken again."""
    steps = [step for step, _ in records(run_dir)]
    return sum(1 for step in range(1, max(steps) + 1) for _ in range(steps.count(step) - 1))


def largest_difference(ours: Losses, expected: Losses) -> float:
    """Largest relative difference of any loss of any step; infinite when steps are missing or one alone is not finite."""
    if ours.keys() != expected.keys():
        return math.inf
    pairs = [(ours[step][head], value) for step, heads in expected.items() for head, value in heads.items()]
    return max(0.0 if not math.isfinite(a) and not math.isfinite(b) else abs(a - b) / abs(b) for a, b in pairs)


def checkpoints(run_dir: Path) -> list[int]:
    """Steps of complete checkpoints."""
    return sorted(int(p.parent.name.removeprefix("step_")) for p in run_dir.glob("checkpoints/step_*/manifest.json"))


def _rank(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        return process if ("-m", "launch.pretrain") in itertools.pairwise(words) else None
    except psutil.Error:
        return None


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
