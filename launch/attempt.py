"""One attempt at a job: a guard on every host, the launcher, and an end in bounded time that leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from launch.hostfile import Host
from launch.hosts import ANSWER_S
from launch.launchers import Command, Plan
from launch.outcome import Outcome, judge, read_status

SETTLE_S = 300.0
"""Seconds that the others may go on after some ranks have ended. Long enough for a last file; the run's watchdog is faster."""
_LOOK_S = 0.5
_BEAT_S = 5.0
_CLOSE_S = 45.0
"""Seconds for guards to clean (at most 20) and tell, and for launchers to notice that their ranks are gone."""


class Stop:
    """Notes SIGINT, SIGTERM and SIGUSR1 of the submitting process while entered. The second one does not wait for a checkpoint."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    def pause(self, seconds: float) -> bool:
        """Wait; False, at once, when told to stop."""
        deadline = time.monotonic() + seconds
        while not self.count and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_S))
        return not self.count


@dataclass
class HostGuard:
    """The connection to the guard on one host."""

    host: str
    process: subprocess.Popen[str]
    most_ranks: int = 0
    """Largest number of ranks seen at once."""
    ranks: int = 0
    """Ranks that run there now."""
    reports: list[str] = field(default_factory=list)
    """Command lines of what was left and had to be ended."""
    ready: bool = False
    """Whether the guard has said its first word."""
    done: bool = False

    def say(self, word: str) -> None:
        """Send a word. A guard that is gone cannot hear it: `lost` tells."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except OSError:
            pass

    @property
    def lost(self) -> bool:
        """Whether the connection broke before the guard had done its work."""
        return not self.done and self.process.poll() is not None

    def listen(self) -> None:
        """Take in what the guard tells until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                facts = json.loads(line)
            except ValueError:
                facts = None
            if not isinstance(facts, dict):
                continue  # a login script's greeting
            self.ready = True
            self.ranks = facts.get("ranks", self.ranks)
            self.most_ranks = max(self.most_ranks, self.ranks)
            for command in facts.get("earlier", []):
                print(f"submit: {self.host}: ended what an earlier attempt had left: {command}", flush=True)
            if "left" in facts:
                self.reports, self.done = facts["left"], True


class Guards:
    """Guards on all hosts of an attempt. None under Slurm, which ends the processes of a job step itself."""

    def __init__(self, plan: Plan, hosts: Sequence[Host], grace_s: float) -> None:
        words = ("-m", "launch.guard", "--job", plan.attempt, "--grace", f"{grace_s:g}", "--remove", str(plan.script))
        self.each = [HostGuard(host.name, _open(plan.reach.python(host.name, *words))) for host in hosts]
        self._listeners = [threading.Thread(target=guard.listen, daemon=True) for guard in self.each]
        for thread in self._listeners:
            thread.start()
        self._beaten = 0.0

    def missing(self) -> list[str]:
        """Hosts whose guards have not started, after waiting for them in bounded time."""
        deadline = time.monotonic() + ANSWER_S
        while any(not guard.ready and not guard.lost for guard in self.each) and time.monotonic() < deadline:
            self.beat()
            time.sleep(0.1)
        return [guard.host for guard in self.each if not guard.ready]

    def beat(self) -> None:
        """Tell all guards, every few seconds, that this host is alive."""
        if time.monotonic() - self._beaten > _BEAT_S:
            self.say("beat")
            self._beaten = time.monotonic()

    def say(self, word: str) -> None:
        """Tell all guards."""
        for guard in self.each:
            guard.say(word)

    def some_ended(self) -> list[str]:
        """Hosts on which fewer ranks run than before, while others run on."""
        ended = [guard.host for guard in self.each if guard.ranks < guard.most_ranks]
        return ended if any(guard.ranks for guard in self.each) else []

    def clean(self) -> None:
        """Have all guards end what is left, and tell what that was."""
        self.say("clean")
        deadline = time.monotonic() + _CLOSE_S
        for guard, thread in zip(self.each, self._listeners, strict=True):
            thread.join(max(0.1, deadline - time.monotonic()))
            guard.process.kill()
            guard.process.wait()
            for command in guard.reports:
                print(f"submit: {guard.host}: ended what was left: {command}", flush=True)
            if not guard.done:
                print(
                    f"submit: {guard.host} could not be cleaned, the connection is gone; if it lives, its guard ends the ranks",
                    flush=True,
                )


def run(plan: Plan, commands: Sequence[Command], run_dir: Path, stop: Stop, grace_s: float) -> Outcome:
    """Run one attempt to its end, whatever that is.

    Args:
        plan: where.
        commands: what to start here; the attempt ends when all of it has ended.
        run_dir: where the ranks leave exit_status.json.
        stop: asked for a request to stop.
        grace_s: seconds from that request until the attempt is ended without a checkpoint.
    """
    hosts = [] if plan.launcher == "srun" else plan.hosts
    guards = Guards(plan, hosts, grace_s)
    launchers: list[subprocess.Popen[bytes]] = []
    aborted = None
    try:
        if missing := guards.missing():
            aborted = f"the guard on {', '.join(missing)} did not start"
        else:
            launchers = [_start(command) for command in commands]
            aborted = _watch(launchers, guards, stop, grace_s)
    finally:
        if aborted:
            print(f"submit: {aborted}; ending the attempt", flush=True)
        guards.clean()
        for launcher in launchers:
            _end(launcher)
    codes = [launcher.returncode for launcher in launchers]
    return judge(next((code for code in codes if code), 0), read_status(run_dir, plan.attempt), aborted)


def _open(words: list[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, errors="replace", start_new_session=True)


def _start(command: Command) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches this process alone, which has the ranks write a checkpoint first.
    return subprocess.Popen(command.words, env=command.environment, stdin=subprocess.DEVNULL, start_new_session=True)


def _end(launcher: subprocess.Popen[bytes]) -> None:
    """Its ranks are gone; give a launcher a moment to notice, then end all that it started here."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None and launcher.poll() is None:
            os.killpg(launcher.pid, number)
        try:
            launcher.wait(10)
            return
        except subprocess.TimeoutExpired:
            continue


def _watch(launchers: list[subprocess.Popen[bytes]], guards: Guards, stop: Stop, grace_s: float) -> str | None:
    """Wait for the end; returns why the attempt must be ended from outside, or None when it ended by itself."""
    stopping = _Since()
    partly = _Since()
    while any(launcher.poll() is None for launcher in launchers):
        guards.beat()
        if lost := [guard.host for guard in guards.each if guard.lost]:
            return f"the connection to {', '.join(lost)} broke, or its guard was killed"
        if stop.count and not stopping:
            print(
                f"submit: asking the ranks to write a checkpoint and stop, at most {grace_s:g} s; a second signal does not wait",
                flush=True,
            )
            guards.say("stop")
            if not guards.each:
                launchers[0].send_signal(signal.SIGUSR1)  # srun passes it on; on SIGTERM it kills its tasks
        if stop.count > 1:
            return "told twice to stop"
        if stopping.seconds(bool(stop.count)) > grace_s:
            return f"told to stop, but not ended within {grace_s:g} s"
        failed = any(launcher.poll() for launcher in launchers)
        ended = guards.some_ended()
        if partly.seconds(failed or bool(ended)) > SETTLE_S:
            return f"ranks on {', '.join(ended) or 'a host'} ended {SETTLE_S:g} s ago, and the others wait for them"
        time.sleep(_LOOK_S)
    return None


class _Since:
    """For how long something has been true."""

    def __init__(self) -> None:
        self._start: float | None = None

    def __bool__(self) -> bool:
        return self._start is not None

    def seconds(self, true: bool) -> float:
        self._start = (self._start or time.monotonic()) if true else None
        return time.monotonic() - self._start if self._start else 0.0
