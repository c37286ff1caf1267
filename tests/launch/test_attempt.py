"""One attempt, with real processes in place of training: how its end is told, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from launch import attempt, guard
from launch.envfile import JOB_VARIABLE
from launch.hostfile import Host
from launch.hosts import Reach
from launch.launchers import Command, Plan
from launch.outcome import Outcome, judge, read_status
from launch.restarts import repeat
from megatron_ovenc.config import ConfigError
from megatron_ovenc.train.exit_status import ExitStatus
from megatron_ovenc.train.run_lock import RunInUse

SRUN = Path(__file__).parent / "stand_ins" / "srun"
ATTEMPT = f"20260101-000000-test{os.getpid()}.1"
RANK = """
import json, os, signal, subprocess, sys, time
end, run_dir = sys.argv[1:]

def status(text):
    with open(run_dir + "/exit_status.json", "w") as file:
        json.dump({"status": text, "step": 7, "job": os.environ["OVENC_JOB"]}, file)

def stop(*_):
    status("stopped")
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
status("running")
worker = subprocess.Popen(["sleep", "300"])
print("ready", flush=True)
if end == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "finishes":
    status("finished")
    sys.exit(0)
time.sleep(300)
"""


@pytest.fixture
def rank(tmp_path: Path) -> Path:
    path = tmp_path / "rank.py"
    path.write_text(RANK)
    return path


def marked() -> list[int]:
    return [process.pid for process in guard.JobProcesses(ATTEMPT).all()]


def run(rank: Path, end: str, stop: attempt.Stop, launcher: str = "torchrun") -> Outcome:
    plan = Plan(
        attempt=ATTEMPT,
        hosts=[Host("localhost", (0,))],
        launcher=launcher,
        reach=Reach("local"),
        directory=rank.parent,
        declared={},
        address="127.0.0.1",
        network="",
        port=0,
    )
    environment = os.environ | plan.environment | {"RANK": "0"}
    words = [sys.executable, str(rank), end, str(rank.parent)]
    if launcher == "srun":
        words = [str(SRUN), "--ntasks=2", "--ntasks-per-node=2", "--nodelist=localhost", *words]
    command = Command(words, environment)
    return attempt.run(plan, [command], rank.parent, stop, grace_s=30)


@pytest.mark.parametrize(("end", "code"), [("dies", 128 + signal.SIGKILL), ("finishes", 0)])
def test_an_end_is_told_and_what_is_left_is_ended(
    rank: Path, end: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with attempt.Stop() as stop:
        outcome = run(rank, end, stop)
    assert outcome.code == code, outcome
    assert not marked()
    assert "sleep 300" in capfd.readouterr().out, "the worker that outlived its rank is named"


@pytest.mark.parametrize(("launcher", "processes"), [("torchrun", 2), ("srun", 5)])
def test_a_signal_has_the_ranks_stop_with_a_checkpoint(rank: Path, launcher: str, processes: int) -> None:
    def send_when_running() -> None:
        while not (rank.parent / "exit_status.json").exists() or len(marked()) < processes:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    with attempt.Stop() as stop:
        sender = threading.Thread(target=send_when_running)
        sender.start()
        outcome = run(rank, "lasts", stop, launcher)
        sender.join()
    assert outcome == Outcome(75, "stopped at step 7 with a checkpoint; the same command continues")
    if launcher == "srun":  # Slurm ends what is left in a job step; its stand-in does not
        guard.end(guard.JobProcesses(ATTEMPT).all, patience_s=10)
    assert not marked()


def test_ranks_do_not_outlive_the_host_that_submitted_them(rank: Path) -> None:
    """Its end closes the guard's input; the ranks are asked for a checkpoint, then nothing is left."""
    environment = os.environ | {JOB_VARIABLE: ATTEMPT, "RANK": "0"}
    words = [sys.executable, str(rank), "lasts", str(rank.parent)]
    with (
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as process,
        subprocess.Popen(
            [sys.executable, "-m", "launch.guard", "--job", ATTEMPT, "--grace", "30", "--remove", str(rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        ) as watcher,
    ):
        assert process.stdout is not None and watcher.stdin is not None
        process.stdout.readline()
        watcher.stdin.close()
        assert process.wait(60) == 75
        assert watcher.wait(60) == 0
    assert read_status(rank.parent, ATTEMPT)["status"] == "stopped"
    assert not marked()
    assert not rank.exists(), "what may hold secrets is removed, although the submitting host is gone"


def test_a_line_that_comes_in_pieces_is_one_line() -> None:
    reader, writer = os.pipe()
    heard = guard.lines(reader, lease_s=30, look_s=0.01)
    os.write(writer, b"be")
    assert next(heard) == ""
    os.write(writer, b"at\ncle\xc3")
    assert next(heard) == "beat"
    assert next(heard) == ""
    os.write(writer, b"\xa4n\nclean\nst")
    os.close(writer)
    assert list(heard) == ["cle\u00e4n", "clean"]
    os.close(reader)


def test_what_ignores_sigterm_is_killed() -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        left = guard.end(lambda: [psutil.Process(process.pid)] if process.poll() is None else [], patience_s=0.3)
        assert process.wait(10) == -signal.SIGKILL
    assert len(left) == 1
    assert left[0].startswith(f"{process.pid} {sys.executable}")


STOPPED = {"status": "stopped", "step": 9}
FAILED = {"status": "failed", "step": 9, "rank": 3, "detail": "RuntimeError: x"}


@pytest.mark.parametrize(
    ("returncode", "status", "aborted", "code", "reason"),
    [
        (0, {"status": "finished", "step": 9}, None, 0, "finished at step 9"),
        (0, {"status": "running", "step": 0}, None, 1, "neither finished nor been told to stop"),
        (0, {}, None, 1, "the ranks never started training"),
        (-9, {"status": "running"}, None, 137, "SIGKILL"),
        (247, {"status": "running"}, None, 137, "SIGKILL"),  # DeepSpeed: sys.exit(-9)
        (0, FAILED, None, 1, "rank 3 failed at step 9: RuntimeError: x"),
        (
            247,
            FAILED,
            None,
            137,
            "a rank died of SIGKILL; rank 3 failed at step 9: RuntimeError: x",
        ),  # it missed the dead one
        (241, FAILED, None, 143, "rank 3 failed at step 9: RuntimeError: x"),  # launchers end the others by SIGTERM
        (1, {**FAILED, "status": "hung"}, None, 1, "rank 3 hung at step 9"),
        (255, {"status": "finished", "step": 9}, None, 0, "finished at step 9 (the launcher then ended with code 255)"),
        (-15, {"status": "finished", "step": 9}, "b is lost", 0, "finished at step 9"),
        (1, STOPPED, None, 75, "stopped at step 9"),  # torchrun turns every code into 1
        (75, {"status": "running"}, None, 75, "stopped"),
        (75, FAILED, None, 1, "rank 3 failed"),  # pdsh tells the largest code of all hosts
        (2, {}, None, 2, "refused the configuration"),
        (69, {}, None, 69, "another job has the run directory"),
        (69, FAILED, None, 1, "rank 3 failed"),
        (1, {**FAILED, "status": "refused"}, None, 2, "RuntimeError: x"),
        (255, {"status": "running", "step": 0}, None, 255, "ended with code 255"),  # ssh's own failure, no signal
        (241, {"status": "running", "step": 0}, "b is lost", 1, "b is lost"),
        (241, FAILED, "b is lost", 1, "b is lost; rank 3 failed: RuntimeError: x"),
        (-15, STOPPED, "told to stop, but not ended", 75, "stopped at step 9"),
    ],
)
def test_every_abnormal_end_is_an_exit_code(
    returncode: int, status: dict[str, object], aborted: str | None, code: int, reason: str
) -> None:
    outcome = judge(returncode, status, aborted)
    assert outcome.code == code
    assert reason in outcome.reason
    assert outcome.worth_another == (code not in {0, 2, 75})


def test_a_refusal_by_the_ranks_is_told_as_such(tmp_path: Path) -> None:
    """What only all ranks together can find, whatever their launcher makes of the exit code."""
    with pytest.raises(ConfigError), ExitStatus(tmp_path, rank=0).failures():
        raise ConfigError("no checkpoint can be resumed")
    outcome = judge(1, json.loads((tmp_path / "exit_status.json").read_text()))
    assert outcome == Outcome(2, "ConfigError: no checkpoint can be resumed")


def test_the_status_of_another_attempt_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "exit_status.json"
    assert read_status(tmp_path, ATTEMPT) == {}
    for text in (json.dumps({"status": "finished", "job": "other.1"}), '{"status": "finished"}', "[1]", "torn"):
        path.write_text(text)
        assert read_status(tmp_path, ATTEMPT) == {}
    path.write_text(json.dumps({"status": "finished", "job": ATTEMPT}))
    assert read_status(tmp_path, ATTEMPT)["status"] == "finished"


NOT_READY = ValueError("b is unreachable")
IN_USE = RunInUse("run_dir=run is in use by process 5 on a")


@pytest.mark.parametrize(
    ("codes", "steps", "restarts", "attempts", "code", "reason"),
    [
        ([1, 137, 0], [100, 200], 5, 3, 0, ""),
        ([1, 1], [100], 1, 2, 1, "end 2"),
        ([1, 75], [100], 5, 2, 75, "end 2"),
        ([2], [], 5, 1, 2, "end 1"),
        ([1, 1, 1], [100, 100, 100], 5, 3, 1, "given up: 2 restarts from step 100 reached no further checkpoint"),
        ([1, 1, 1, 1], [100, 100, 200], 3, 4, 1, "end 4"),
        ([1, 1, NOT_READY, NOT_READY, 0], [100, 200], 2, 3, 0, "end 5"),
        ([1, *[NOT_READY] * 20], [100], 5, 2, 1, "after 995 s of waiting (--patience 900), b is unreachable"),
        ([137, *[IN_USE] * 7, 0], [100], 1, 2, 0, "end 9"),  # the file server forgets the dead host in time
        ([137, *[IN_USE] * 20], [100], 1, 2, 137, "(--patience 900), run_dir=run is in use by process 5 on a"),
    ],
)
def test_a_failed_run_restarts_but_not_in_vain(
    codes: list[int | ValueError], steps: list[int], restarts: int, attempts: int, code: int, reason: str
) -> None:
    tried: list[int] = []

    def one(number: int) -> Outcome:
        tried.append(number)
        end = codes[len(tried) - 1]
        if isinstance(end, ValueError):
            raise end
        return Outcome(end, f"end {len(tried)}")

    found = iter(steps)
    outcome = repeat(one, lambda: next(found), restarts, pause=lambda seconds: True)
    assert sorted(set(tried)) == list(range(1, attempts + 1))
    assert outcome.code == code
    assert outcome.reason.endswith(reason)


@pytest.mark.parametrize("error", [NOT_READY, IN_USE])
def test_a_person_is_told_at_once_and_a_requeued_job_is_patient(error: ValueError) -> None:
    tries, pauses = 0, 0.0

    def one(number: int) -> Outcome:
        nonlocal tries
        tries += 1
        assert number == 1
        if tries < 4:
            raise error
        return Outcome(0, "finished")

    def pause(seconds: float) -> bool:
        nonlocal pauses
        pauses += seconds
        return True

    with pytest.raises(type(error)):
        repeat(one, lambda: 0, 0, pause)
    assert (tries, pauses) == (1, 0)
    assert repeat(one, lambda: 0, 0, pause, requeued=True) == Outcome(0, "finished")
    assert (tries, pauses) == (4, 5 + 10 + 20)
    tries = -100
    with pytest.raises(type(error), match=r"^after 75 s of waiting \(--patience 60\), .*(unreachable|in use)"):
        repeat(one, lambda: 0, 0, pause, patience_s=60, requeued=True)
    assert repeat(one, lambda: 0, 0, lambda seconds: False, requeued=True).code == 130


def test_a_job_that_was_told_to_stop_is_not_restarted() -> None:
    outcome = repeat(lambda number: Outcome(1, "failed"), lambda: 0, restarts=3, pause=lambda seconds: False)
    assert outcome.reason == "failed; told to stop, so not started again"
