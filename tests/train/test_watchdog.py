"""Who is to blame when a job stops moving, and that it ends: verdicts on made-up reports, and two real ranks with a real fault."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_ovenc.train.checkpoint import checkpoint_steps
from megatron_ovenc.train.hang_report import HangReport, explain
from megatron_ovenc.train.watchdog import Heartbeat
from tests.data.samples import image_bytes, write_shard
from tests.rank_pool import fork_server
from tests.train import faulty_pretrain


def report(rank: int, phase: str = "backward", number: int = 50, waits: bool = True) -> HangReport:
    return HangReport(rank, phase, 119, number, 61.0, "file.py:7 in function", waits)


@pytest.mark.parametrize(
    ("reports", "expected", "culprit"),
    [
        (
            [report(0), report(1), report(2), report(3, "data", 47)],
            "rank 3 (host b) has been in 'data' of step 120 for 61 s (file.py:7 in function); the others wait: "
            "3 in 'backward' of step 120",
            3,
        ),
        (
            [report(0), report(1, waits=False), report(2), report(3)],
            "rank 1 (host a) has been in 'backward' of step 120 for 61 s (file.py:7 in function); the others wait: "
            "3 in 'backward' of step 120",
            1,
        ),
        (
            [report(0), report(1)],
            "ranks 2, 3 (host b) are silent: stopped or dead, or the host or its way to the shared files is gone; "
            "the others wait: 2 in 'backward' of step 120",
            2,
        ),
        (
            [report(rank) for rank in range(4)],
            "no rank stands out: all wait: 4 in 'backward' of step 120; is the network between their hosts (a, b) up?",
            0,
        ),
    ],
)
def test_the_verdict_names_who_holds_up_the_rest(reports: list[HangReport], expected: str, culprit: int) -> None:
    assert explain({r.rank: r for r in reports}, ["a", "a", "b", "b"]) == (expected, culprit)


def test_a_job_of_one_rank_blames_it() -> None:
    sentence, culprit = explain({0: report(0, "forward", waits=False)}, ["a"])
    assert sentence.startswith("rank 0 (host a) has been in 'forward' of step 120 for 61 s")
    assert culprit == 0


def test_patience_for_the_first_step_saves_and_looks() -> None:
    heartbeat = Heartbeat()
    patient = [heartbeat.last.patient]
    for phase, step in (("data", 7), ("backward", 7), ("data", 8), ("bank look", 8), ("checkpoint", 9), ("forward", 9)):
        heartbeat.note(phase, step)
        patient.append(heartbeat.last.patient)
    assert patient == [True, True, True, False, True, True, False]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    pictures = [{"png": image_bytes(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8))} for _ in range(16)]
    write_shard(tmp_path / "images-0.tar", pictures, rng.integers(0, 12, (16, 2)))
    path = tmp_path / "run.yaml"
    path.write_text(f"""\
run_dir: {tmp_path}/run
model: {{hidden_size: 64, ffn_size: 64, num_layers: 1, num_heads: 2}}
heads:
  - name: image
    global_batch_size: 4
    bank: {{num_classes: 12, positives: 2}}
    source: {{kind: image, shards: ["{tmp_path}/images-*.tar"], size: 28}}
train: {{steps: 1000, hang_timeout_s: 4}}
parallel: {{device: cpu}}
data: {{workers: 0}}
checkpoint: {{every: 1}}
log: {{tensorboard: false, bank_every: 0}}
""")
    return path


def rank_main(rank: int, port: int, fault: str, config: Path) -> None:
    """A rank as a launcher would start it."""
    os.dup2(os.open(config.with_name(f"stderr_{rank}"), os.O_WRONLY | os.O_CREAT), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OVENC_JOB": "j"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(faulty_pretrain.main(fault, ["--config", str(config)]))


def two_ranks(config: Path, fault: str) -> tuple[list[int | None], list[str]]:
    """Exit codes and standard errors of two ranks that no launcher looks after, forked off a process that has imported all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = fork_server()
    ranks = [context.Process(target=rank_main, args=(rank, port, fault, config)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(90)
        rank.kill()
    return [rank.exitcode for rank in ranks], [config.with_name(f"stderr_{rank}").read_text() for rank in range(2)]


def test_a_rank_that_hangs_ends_the_job_and_is_named(config: Path) -> None:
    codes, errors = two_ranks(config, "hang")
    assert codes == [1, 1], errors
    run_dir, here = config.parent / "run", socket.gethostname()
    status = json.loads((run_dir / "exit_status.json").read_text())
    assert (status["status"], status["rank"], status["host"], status["job"]) == ("hung", 1, here, "j")
    assert f"rank 1 (host {here}) has been in 'data' of step 2" in status["detail"]
    assert "in never_ending_read" in status["detail"]
    assert status["detail"] in errors[0]
    stacks = (run_dir / "hangs" / status["attempt"] / "rank_00001.txt").read_text()
    assert "in never_ending_read" in stacks
    assert "in faulty_next" in stacks


def test_a_hang_ends_the_job_where_reports_cannot_be_written(config: Path) -> None:
    (config.parent / "run").mkdir()
    (config.parent / "run" / "hangs").write_text("a file where a directory is wanted")
    codes, errors = two_ranks(config, "hang")
    assert codes == [1, 1], errors
    assert "HANG, and the ranks cannot compare what they do" in errors[1]
    assert "in never_ending_read" in errors[1]


def test_the_first_failure_is_what_the_exit_status_tells(config: Path) -> None:
    """Rank 0 fails too, since its peer is gone; that is not what went wrong. A checkpoint under way is not lost by it."""
    codes, errors = two_ranks(config, "raise")
    assert codes == [1, 1], errors
    status = json.loads((config.parent / "run" / "exit_status.json").read_text())
    assert (status["status"], status["rank"], status["step"]) == ("failed", 1, 1)
    assert status["detail"] == "ValueError: the disk of rank 1 is gone"
    assert checkpoint_steps(config.parent / "run" / "checkpoints") == [1]


def test_a_slow_profile_of_one_rank_is_no_hang(config: Path) -> None:
    shorten(config, 4)
    config.write_text(config.read_text().replace("log: {", "log: {profile: {steps: [2, 2], ranks: [1]}, "))
    codes, errors = two_ranks(config, "slow profile")
    assert codes == [0, 0], errors
    assert (config.parent / "run" / "profile" / "rank0001.table.txt").exists()


def test_what_goes_wrong_after_the_end_does_not_undo_it(config: Path) -> None:
    shorten(config, 2)
    codes, errors = two_ranks(config, "end")
    assert codes[0] == 1, errors
    assert "the files of rank 0 are gone" in errors[0]
    status = json.loads((config.parent / "run" / "exit_status.json").read_text())
    assert (status["status"], status["step"]) == ("finished", 2)


def shorten(config: Path, steps: int) -> None:
    config.write_text(config.read_text().replace("steps: 1000", f"steps: {steps}"))
