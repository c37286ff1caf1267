"""launch.submit: what it refuses, the commands that it makes, and real runs through the deepspeed launcher and an sbatch file.

Hosts other than this one are played by stand-ins of ssh, srun and scontrol; tests/multinode crosses a real network.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from launch import submit
from launch.facts import addresses
from launch.guard import JobProcesses
from launch.hostfile import Host
from launch.job import Job
from megatron_ovenc.train.run_lock import RunInUse
from tests.data.samples import image_bytes, write_shard
from tests.launch.locks import holder

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    pictures = [{"png": image_bytes(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))} for _ in range(40)]
    write_shard(folder / "images-0.tar", pictures, rng.integers(0, 12, (40, 3)))
    return folder


@pytest.fixture
def config(shards: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(f"""\
run_dir: {tmp_path}/run
model: {{hidden_size: 64, ffn_size: 128, num_layers: 1, num_heads: 2}}
heads:
  - name: image
    global_batch_size: 12
    bank: {{num_classes: 12, positives: 2}}
    source: {{kind: image, shards: ["{shards}/images-*.tar"], size: 28}}
train: {{steps: 100000}}
parallel: {{device: cpu}}
data: {{workers: 1}}
checkpoint: {{every: 10}}
log: {{every: 10, tensorboard: false}}
""")
    return path


@pytest.fixture
def hostfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test writes its hosts, which a stand-in of ssh plays."""
    monkeypatch.setenv("PATH", str(STAND_INS), prepend=":")
    monkeypatch.chdir(ROOT)
    return tmp_path / "hosts"


@pytest.fixture
def address() -> str:
    """An address on which hosts that are played by this machine can meet."""
    mine = next(iter(addresses().values()), None)
    if mine is None:
        pytest.skip("this machine has no network interface but the loopback")
    return mine.partition("/")[0]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert submit.main(words) == 2
    return capsys.readouterr().err


def test_a_wrong_configuration_costs_no_ssh(
    config: Path, hostfile: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.job.ask", None)
    hostfile.write_text("dead1 slots=2\ndead2 slots=3\n")
    run = ["--launcher", "torchrun", "--config", str(config)]
    assert "--hostfile is missing" in refused(capsys, *run)
    assert "hostz cannot be read" in refused(capsys, *run, "--hostfile", "hostz")
    run += ["--hostfile", str(hostfile)]
    assert "did you mean `train`" in refused(capsys, *run, "--set", "trian.steps=3")
    assert "parallel.tensor=2 does not divide the slots of every host (dead2 has 3)" in refused(
        capsys, *run, "--set", "parallel.tensor=2"
    )
    assert "no host `dead3`" in refused(capsys, *run, "--include", "dead3")
    assert "--launcher torchrun cannot leave out single slots (dead2)" in refused(capsys, *run, "--exclude", "dead2:0")
    assert "takes its hosts from the allocation" in refused(capsys, *run, "--launcher", "srun")
    assert "--restarts 2 with checkpoint.resume=false: every restart would throw away" in refused(
        capsys, *run, "--restarts", "2", "--set", "checkpoint.resume=false"
    )
    assert "--min-hosts 1 is about restarts" in refused(capsys, *run, "--min-hosts", "1")
    assert "--min-hosts 3 is not between 1 and the 2 hosts" in refused(
        capsys, *run, "--restarts", "1", "--min-hosts", "3"
    )
    assert "--ssh-args -i 'key: No closing quotation" in refused(capsys, *run, "--ssh-args", "-i 'key")


def test_every_host_that_is_not_ready_is_named(
    config: Path, hostfile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostfile.write_text("".join(f"{name} slots=2\n" for name in ("a", "dead1", "older", "alone", "broken", "dead2")))
    options = ["--hostfile", str(hostfile), "--config", str(config), "--launcher", "torchrun"]
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        error = refused(capsys, *options, "--master-port", str(port))
    problems = error.splitlines()[1:]
    assert error.startswith("error: the hosts are not ready:\n")
    for name in ("dead1", "dead2"):
        assert f"  - {name} is unreachable: ssh: connect to host {name} port 22: No route to host" in problems
    assert "  - broken cannot run the project: sh: 1: exec: python: not found" in problems
    assert any(line.startswith("  - torch differs: ") and "2.8.0 on older" in line for line in problems)
    assert (
        "  - the code on older is not that on a, alone: megatron_ovenc/config/loader.py; bring all hosts to one version"
        in problems
    )
    assert any("is not one directory on all hosts (alone: FileNotFoundError" in line for line in problems)
    assert f"  - port {port} of a is taken, perhaps by another run; give another --master-port" in problems
    assert len(problems) == 7


def test_a_dry_run_checks_and_prints_commands_that_a_shell_can_run(
    config: Path, hostfile: Path, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostfile.write_text("a slots=2\nb slots=4\n")
    options = ["--hostfile", str(hostfile), "--config", str(config), "--launcher", "torchrun", "--dry-run"]
    options += ["--set", "run_dir=" + str(tmp_path / "a run"), "--set", "train.steps=7"]
    options += ["--master-addr", address, "--master-port", str(free_port())]
    assert submit.main(options) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("ssh ")]
    assert [line[-2] for line in lines] == ["a", "b"]
    (directory,) = (tmp_path / "a run" / "launch").iterdir()
    remote = shlex.split(lines[1][-1])
    assert remote[remote.index("--node_rank") + 1] == "1"
    assert remote[remote.index("--nproc_per_node") + 1] == "4"
    assert remote[remote.index("--config") + 1] == str(directory / "config.yaml")
    assert "steps: 7" in (directory / "config.yaml").read_text()
    assert not (directory / "environment.sh").exists(), "it may hold secrets"


def test_a_restart_goes_on_without_lost_hosts_if_it_may(
    config: Path, hostfile: Path, address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without the first one, at which the ranks met; and hosts that are back take part again."""
    hostfile.write_text("a slots=2\nb slots=2\n")
    words = ["--hostfile", str(hostfile), "--config", str(config), "--launcher", "torchrun", "--restarts", "1"]
    words += ["--master-addr", address, "--master-port", str(free_port())]

    def job(least: str) -> Job:
        return Job(submit.arguments([*words, "--min-hosts", least]))

    monkeypatch.setenv("DEAD", "a")
    one = job("1")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"not ready:\n  - a is unreachable"):
            one.plan(1)  # a first attempt misses no host
    monkeypatch.delenv("DEAD")
    assert one.plan(1).address == address
    monkeypatch.setenv("DEAD", "a")
    with pytest.raises(ValueError, match=r"not ready:\n  - a is unreachable"):
        one.plan(2)  # once may be a moment's failure
    without = one.plan(2)
    assert without.hosts == [Host("b", (0, 1))]
    assert without.address == address, "this machine plays both hosts"
    output = capsys.readouterr().out
    assert "going on without a (ssh: connect to host a port 22: No route to host)" in output
    assert f"b is the first host instead of a; the ranks meet at {address}" in output
    monkeypatch.delenv("DEAD")
    assert one.plan(3).hosts == [Host("a", (0, 1)), Host("b", (0, 1))]
    monkeypatch.setenv("DEAD", "a")
    two = job("2")
    with pytest.raises(ValueError, match="not ready"):
        two.plan(2)
    with pytest.raises(ValueError, match="--min-hosts wants 2, reachable are 1: a "):
        two.plan(2)
    launched = [path.name.rpartition(".")[2] for path in (config.parent / "run" / "launch").iterdir()]
    assert sorted(launched) == ["1", "2", "3"], "a refused attempt leaves nothing"


def clean_environment() -> dict[str, str]:
    hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {key: value for key, value in os.environ.items() if key not in hidden} | {"OMP_NUM_THREADS": "1"}


def wait_for_steps(run_dir: Path, process: subprocess.Popen[str], steps: int) -> None:
    deadline = time.monotonic() + 900
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert process.poll() is None and time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_killed_rank_is_a_failure_and_nothing_is_left(config: Path, tmp_path: Path) -> None:
    """Through the real deepspeed launcher, which by itself may call this success."""
    run_dir = tmp_path / "run"
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    words = [sys.executable, "-m", "launch.submit", "--hostfile", str(tmp_path / "hosts"), "--config", str(config)]
    words += ["--master-port", str(free_port())]
    with subprocess.Popen(words, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_steps(run_dir, process, 2)
            (directory,) = (run_dir / "launch").iterdir()
            job = JobProcesses(directory.name)
            everything, ranks = job.all(), job.ranks()
            assert len(ranks) == 2
            ranks[-1].kill()
            _, error = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGKILL
    assert "exit code 137" in error.splitlines()[-1]
    _, alive = psutil.wait_procs(everything, timeout=0)
    assert not alive
    assert json.loads((run_dir / "exit_status.json").read_text())["job"] == directory.name
    assert not (directory / "environment.sh").exists(), "it may hold secrets"


def test_a_restart_and_a_requeued_job_do_not_sit_on_a_lock(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They look, and look again later. Only the first attempt waits, for a predecessor that is just ending."""
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    words = ["--hostfile", str(tmp_path / "hosts"), "--config", str(config), "--master-port", str(free_port())]
    one = Job(submit.arguments(words))
    assert not one.requeued
    with holder(one.run_dir, wait_s=0) as keeper:
        monkeypatch.setattr("launch.job.WAIT_S", 1e9)
        with pytest.raises(RunInUse, match=f"in use by process {keeper.pid} on "):
            one.plan(2)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        again = Job(submit.arguments(words))
        assert again.requeued
        with pytest.raises(RunInUse, match=f"in use by process {keeper.pid} on "):
            again.plan(1)
        assert not list((one.run_dir / "launch").iterdir()), "a refused attempt leaves nothing"
        keeper.kill()
        keeper.wait()
    assert again.plan(1).hosts == [Host("localhost", (0,))]


def test_a_restart_waits_for_a_lock_that_a_dead_host_left(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has the lock from the rank's death on, as a file server may keep it, and loses it later."""
    run_dir, output = tmp_path / "run", tmp_path / "output"
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    words = ["--hostfile", str(tmp_path / "hosts"), "--config", str(config), "--master-port", str(free_port())]
    command = [sys.executable, "-m", "launch.submit", *words, "--restarts", "1"]
    with (
        output.open("w") as file,
        subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=file, text=True) as process,
    ):
        try:
            wait_for_steps(run_dir, process, 12)
            (directory,) = (run_dir / "launch").iterdir()
            (rank,) = JobProcesses(directory.name).ranks()
            with holder(run_dir, wait_s=60) as keeper:
                rank.kill()
                in_use = f"run_dir={run_dir} is in use by process {keeper.pid} on "
                deadline = time.monotonic() + 300
                while f"submit: not yet: {in_use}" not in output.read_text():
                    assert process.poll() is None and time.monotonic() < deadline, output.read_text()
                    time.sleep(0.1)
                # A person who starts it a second time is told.
                monkeypatch.setattr("launch.job.WAIT_S", 0.1)
                assert submit.main(words) == 69
                assert in_use in capsys.readouterr().err
            steps = (run_dir / "metrics.jsonl").read_text().count("\n")
            wait_for_steps(run_dir, process, steps + 1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(600) == 75
        finally:
            process.kill()
    assert "submit: restart 1 of 1 from step" in output.read_text()
    assert "resumed from" in output.read_text()


def test_the_sbatch_file_is_requeued_when_slurm_stops_it(config: Path, address: str, tmp_path: Path) -> None:
    """With stand-ins of srun and scontrol, and two real ranks that get SIGUSR1, as from `--signal=USR1@300`."""
    environment = clean_environment() | {
        "PATH": f"{STAND_INS}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "a,b",
        "SLURM_TASKS_PER_NODE": "1(x2)",
        "SLURM_JOB_ID": "4711",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_REQUEUED": str(tmp_path / "requeued"),
        "MASTER_ADDR": address,
        "ENV_FILE": str(tmp_path / "env"),
    }
    (tmp_path / "env").write_text("SPACED=a b\n")
    run_dir = tmp_path / "run"
    words = ["bash", "launch/slurm/pretrain.sbatch", "--config", str(config), "--master-port", str(free_port())]
    with subprocess.Popen(words, cwd=ROOT, env=environment, text=True) as process:
        try:
            wait_for_steps(run_dir, process, 2)
            (directory,) = (run_dir / "launch").iterdir()
            everything = JobProcesses(directory.name).all()
            ranks = [one for one in everything if "launch.pretrain" in one.cmdline() and "srun" not in one.cmdline()[1]]
            ranks[0].send_signal(signal.SIGUSR1)
            assert process.wait(600) == 75
        finally:
            process.kill()
    assert (tmp_path / "requeued").read_text() == "4711\n"
    stopped = json.loads((run_dir / "exit_status.json").read_text())
    assert stopped["status"] == "stopped"
    assert (run_dir / "checkpoints" / f"step_{stopped['step']:08d}" / "manifest.json").is_file()
    assert not psutil.wait_procs(everything, timeout=5)[1]
