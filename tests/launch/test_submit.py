"""launch.submit: what it refuses, the commands that it makes, and real runs through the deepspeed launcher and an sbatch file.

Hosts other than this one are played by stand-ins of ssh, srun and scontrol; tests/multinode crosses a real network.
"""

from __future__ import annotations

import ast
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
from launch.facts import CODE, OPTIONAL_PACKAGES, PACKAGES, Facts, addresses
from launch.guard import JobProcesses
from launch.hostfile import Host
from launch.hosts import Reach, disagreements
from launch.job import Job
from launch.launchers import Plan, commands, forwarding_notes, ssh_words, write_files
from launch.meeting import master_address, next_address
from tests.data.samples import image_bytes, write_shard

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


def plan(launcher: str, directory: Path, **changes: object) -> Plan:
    settings = {
        "attempt": "job.1",
        "hosts": [Host("a", (0, 1)), Host("b", (1, 3))],
        "launcher": launcher,
        "reach": Reach(ssh_args=("-p", "2222")),
        "directory": directory,
        "declared": {"NCCL_SOCKET_IFNAME": "^lo,docker0"},
        "address": "10.0.0.1",
        "network": "10.0.0.1/24",
        "port": 29500,
    }
    return Plan(**(settings | changes))  # type: ignore[arg-type]


def test_the_pdsh_command_leaves_nothing_to_deepspeeds_guesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.chdir(ROOT)
    (command,) = commands(plan("pdsh", tmp_path))
    words = command.words
    for flag, value in [
        ("--master_addr", "10.0.0.1"),
        ("--include", "a:0,1@b:1,3"),
        ("--venv_script", str(tmp_path / "environment.sh")),
    ]:
        assert words[words.index(flag) + 1] == value
    assert {"--force_multi", "--no_ssh_check"} <= set(words)
    assert not any(name.startswith("NCCL") for name in command.environment), "carried by environment.sh alone"
    assert "-p 2222" in command.environment["PDSH_SSH_ARGS_APPEND"]
    assert not Path(command.environment["DS_ENV_FILE"]).is_file()
    with pytest.raises(ValueError, match="a run has characters that the remote shell would change"):
        commands(plan("pdsh", tmp_path / "a run"))


def test_under_openmpi_ranks_learn_their_place_from_mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    one = plan("openmpi", tmp_path, hosts=[Host("a", (0, 1))])
    (command,) = commands(one)
    (launcher_args,) = (word for word in command.words if word.startswith("--launcher_args="))
    assert "btl_tcp_if_include 10.0.0.1/24" in launcher_args
    write_files(one)
    script = (tmp_path / "rank.sh").read_text().replace("exec ", "env -0; : ")
    place = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    output = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=os.environ | place)
    told = dict(entry.split("=", 1) for entry in output.stdout.split("\0") if entry)
    assert told.items() >= {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1"}.items()
    assert told["NCCL_SOCKET_IFNAME"] == "^lo,docker0"


def test_the_environment_is_for_its_owner_alone(tmp_path: Path) -> None:
    write_files(plan("torchrun", tmp_path, declared={"WANDB_API_KEY": "secret"}))
    assert "secret" in (tmp_path / "environment.sh").read_text()
    assert (tmp_path / "environment.sh").stat().st_mode & 0o777 == 0o600


def test_what_a_launcher_cannot_pass_to_ssh_is_refused() -> None:
    blank, percent = "-o 'ProxyCommand=nc %h %p'", "-S ~/.ssh/%h"
    assert ssh_words("torchrun", blank) == ("-o", "ProxyCommand=nc %h %p")
    assert ssh_words("openmpi", percent) == ("-S", "~/.ssh/%h")
    assert ssh_words("pdsh", "-p 2222 -i key") == ("-p", "2222", "-i", "key")
    for launcher, text, word in [
        ("pdsh", blank, "ProxyCommand=nc %h %p"),
        ("openmpi", "-i ''", ""),
        ("pdsh", percent, "~/.ssh/%h"),
    ]:
        with pytest.raises(ValueError, match=f"--launcher {launcher} cannot pass the word `{word}` on to ssh"):
            ssh_words(launcher, text)
    with pytest.raises(ValueError, match="--launcher srun uses no ssh"):
        ssh_words("srun", "-p 2222")


def test_what_deepspeed_would_have_sent_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").touch()
    notes = forwarding_notes({"NCCL_DEBUG": "INFO"}, {"NCCL_DEBUG": "INFO", "UCX_TLS": "rc", "HOME": "/"})
    assert notes == [
        "UCX_TLS are set here, but reach the ranks only when a line of --env-file names them",
        ".deepspeed_env is not read; its lines work in a file given by --env-file",
    ]


def test_the_master_address_is_not_guessed() -> None:
    one, two = {"ib0": "10.0.0.1/24"}, {"eth0": "192.168.0.1/16", "ib0": "10.0.0.1/24"}
    assert master_address(None, "a", one) == ("10.0.0.1", "10.0.0.1/24")
    assert master_address("10.0.0.1", "a", two) == ("10.0.0.1", "10.0.0.1/24")
    for wanted, found, message in [
        (None, two, r"a has 192.168.0.1 \(eth0\), 10.0.0.1 \(ib0\); say with --master-addr"),
        (None, {}, "no address but the loopback"),
        ("10.0.0.9", two, "is not an address of the first host a"),
        ("no-such-name.invalid", two, "does not resolve"),
    ]:
        with pytest.raises(ValueError, match=message):
            master_address(wanted, "a", found)


def test_another_first_host_is_met_on_the_same_network() -> None:
    found = {"eth0": "192.168.0.2/16", "ib0": "10.0.0.2/24"}
    assert next_address("b", found, "10.0.0.1/24") == ("10.0.0.2", "10.0.0.2/24")
    for network, others in [("10.0.1.1/24", {}), ("10.0.0.1/24", {"ib1": "10.0.0.3/24"})]:
        with pytest.raises(ValueError, match=r"b cannot take the first host's place: .*10\.0\.0\.2/24"):
            next_address("b", found | others, network)


def test_hosts_that_agree_have_no_problem(tmp_path: Path) -> None:
    facts = Facts(addresses={}, versions={"torch": "2.8.0"}, code={"a.py": "1"}, nonce="n", port_free=True)
    assert disagreements({"a": facts, "b": facts}, "n", tmp_path, 1) == []


def test_a_package_that_is_not_everywhere_is_a_problem_even_if_a_run_may_do_without(tmp_path: Path) -> None:
    def facts(version: str) -> Facts:
        return Facts(addresses={}, versions={"flash-attn": version}, code={}, nonce="n", port_free=True)

    found = disagreements({"a": facts("2.7"), "b": facts("missing")}, "n", tmp_path, 1)
    assert found == ["flash-attn differs: 2.7 on a; missing on b; install the same version everywhere"]
    assert disagreements({"a": facts("missing"), "b": facts("missing")}, "n", tmp_path, 1) == []


def test_all_that_ranks_import_is_compared() -> None:
    """This project's packages by their digests, others by their versions."""
    imported: set[str] = set()
    for path in (path for package in CODE for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    ours = {name for name in imported if (ROOT / name).is_dir()}
    assert ours == set(CODE)
    by_package = {"megatron": "megatron-core", "PIL": "pillow", "nvidia": "nvidia-dali-cuda130"}
    without_influence = {"mpi4py", "psutil", "rich", "packaging", "wandb", "yaml"}
    without_influence |= {"codec_video_prep", "mvextractor"}  # codec.bench measures beside them
    others = imported - ours - set(sys.stdlib_module_names) - without_influence
    compared = {by_package.get(name, name.replace("_", "-")) for name in others}
    assert compared <= {*PACKAGES, *OPTIONAL_PACKAGES}


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
    assert json.loads((run_dir / "exit_status.json").read_text())["status"] == "stopped"
    assert not psutil.wait_procs(everything, timeout=5)[1]


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"), [(0, 0, False), (2, 0, False), (75, 0, True), (1, 4, True), (137, 5, False)]
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


def test_the_commands_of_the_cluster_page_are_understood() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text() + (ROOT / "README.md").read_text()
    lines = [line for line in page.replace("\\\n", " ").splitlines() if line.startswith("python -m launch.submit ")]
    assert len(lines) >= 2
    for line in lines:
        options = submit.arguments(shlex.split(line)[3:])
        assert all((ROOT / path).is_file() for path in (options.config, options.hostfile, options.env_file)), line
