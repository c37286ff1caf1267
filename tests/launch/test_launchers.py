"""The command lines of the launchers, and how the environment and the arguments of ssh get through them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launch.hostfile import Host
from launch.hosts import Reach
from launch.launchers import Plan, commands, forwarding_notes, ssh_words, write_files

ROOT = Path(__file__).parents[2]


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
