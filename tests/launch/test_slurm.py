"""When the sbatch file has Slurm requeue the job. (With real ranks: test_submit.)"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launch import submit

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (69, 0, False), (75, 0, True), (1, 4, True), (137, 5, False)],
)
def test_the_sbatch_file_requeues_a_bounded_number_of_times(
    code: int, restarts: int, requeued: bool, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\nexit {code}\n')
    python.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{STAND_INS}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "a,b",
        "SLURM_JOB_ID": "4711",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_REQUEUED": str(tmp_path / "requeued"),
        "MAX_REQUEUES": "5",
    }
    words = ["bash", "launch/slurm/pretrain.sbatch", "--config", "c.yaml", "--restarts", "7"]
    assert subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode == code
    assert (tmp_path / "requeued").exists() == requeued
    options = submit.arguments((tmp_path / "words").read_text().split()[2:])
    assert (options.launcher, options.master_addr, options.restarts) == ("srun", "a", 7)
