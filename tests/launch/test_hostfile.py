"""Hostfiles, filters and environment files: what is read, and what is refused with its place and reason."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from launch.envfile import read_environment, shell_exports
from launch.hostfile import Host, check_layout, read_hostfile, select_hosts, slurm_hosts, world_size

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"
THREE = [Host("a", (0, 1)), Host("b", (0, 1, 2, 3)), Host("c", (0, 1))]


@pytest.mark.parametrize(
    ("name", "first", "ranks"),
    [("one_node", "localhost", 8), ("two_nodes", "node001", 16), ("sixteen_nodes", "node001", 128)],
)
def test_the_examples_are_read(name: str, first: str, ranks: int) -> None:
    hosts = read_hostfile(ROOT / "hostfiles" / name)
    assert world_size(hosts) == ranks
    assert hosts[0] == Host(first, tuple(range(8)))


def test_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# all\n\n  b-1.local \t slots=2   # fast\n10.0.0.2 slots=1\n")
    assert read_hostfile(path) == [Host("b-1.local", (0, 1)), Host("10.0.0.2", (0,))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=2\nb slot=2\n", ":2: `b slot=2` is not `<host> slots=<number of ranks>`"),
        ("a slots=2 max_slots=4\n", ":1: `a slots=2 max_slots=4` is not"),
        ("a\n", ":1: `a` is not"),
        ("a slots=0\n", ":1: a has slots=0"),
        ("a slots=2\n\na slots=2\n", ":3: host a is already on line 1"),
        ("node[1-4] slots=2\n", ":1: `node[1-4]` is not a host name"),
        ("-oProxyCommand=x slots=2\n", "is not a host name"),
        ("me@a slots=2\n", "a user name or a port belongs into"),
        ("# nothing\n", "names no host"),
    ],
)
def test_a_bad_hostfile_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        read_hostfile(path)


def test_a_missing_hostfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read: .*No such file"):
        read_hostfile(tmp_path / "hostz")


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("", "", THREE),
        ("c@a", "", [Host("a", (0, 1)), Host("c", (0, 1))]),
        ("b:2,0@b:3", "", [Host("b", (0, 2, 3))]),
        ("", "b", [Host("a", (0, 1)), Host("c", (0, 1))]),
        ("", "b:1,2@a:0,1", [Host("b", (0, 3)), Host("c", (0, 1))]),
    ],
)
def test_filters_keep_the_order_of_the_hostfile(include: str, exclude: str, expected: list[Host]) -> None:
    assert select_hosts(THREE, include, exclude) == expected


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("a", "b", "exclude each other"),
        ("d", "", "--include d: the hostfile has no host `d`; it has a, b, c"),
        ("a:2", "", "a has the slots 0 to 1, not 2"),
        ("a:", "", "`a:` is not <host> or"),
        ("a:x", "", "`a:x` is not <host> or"),
        ("", "a@b@c", "--exclude a@b@c leaves no slot"),
    ],
)
def test_filters_that_do_not_fit_are_refused(include: str, exclude: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        select_hosts(THREE, include, exclude)


def test_a_tensor_group_stays_inside_a_host() -> None:
    check_layout(THREE, 2)
    with pytest.raises(ValueError, match=r"parallel.tensor=4 does not divide .* \(a has 2, c has 2\)"):
        check_layout(THREE, 4)  # though it divides the world of 8


def test_hosts_of_a_slurm_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(STAND_INS), prepend=":")
    hosts = slurm_hosts({"SLURM_JOB_NODELIST": "a,b,c", "SLURM_TASKS_PER_NODE": "8(x2),4"})
    assert [(host.name, len(host.slots)) for host in hosts] == [("a", 8), ("b", 8), ("c", 4)]
    with pytest.raises(ValueError, match="needs a Slurm allocation"):
        slurm_hosts({})


def test_any_declared_value_survives_a_shell(tmp_path: Path) -> None:
    """What DeepSpeed's own forwarding breaks: blanks, dollars, quotes, per cents, semicolons."""
    path = tmp_path / "env"
    hard = "a  b $HOME \"q\" 'x' `date` %h \\ ; && # ! *"
    path.write_text(f"# comment\n\nHARD={hard.replace(' #', '#')}\nEMPTY=\n  NCCL_SOCKET_IFNAME=^lo,docker0\nHF_HOME\n")
    declared = read_environment(path, {"HF_HOME": "/data/hf", "OTHER": "1"})
    assert declared == {
        "HARD": hard.replace(" #", "#"),
        "EMPTY": "",
        "NCCL_SOCKET_IFNAME": "^lo,docker0",
        "HF_HOME": "/data/hf",
    }
    script = shell_exports(declared) + "env -0"
    output = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    told = dict(entry.split("=", 1) for entry in output.split("\0") if entry)
    assert told.items() >= declared.items()


@pytest.mark.parametrize("name", ["infiniband.env", "ethernet.env"])
def test_the_environment_files_are_read(name: str) -> None:
    declared = read_environment(ROOT / "launch" / "env" / name, {})
    assert declared["GLOO_SOCKET_IFNAME"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("export A=1", "no `export`"),
        ("A = 1", "is not NAME=value"),
        ("A= 1", "no blank after `=`"),
        ("A='1 2'", "has quotes around its value"),
        ("A=1 # one", "comments on lines of their own"),
        ("A", "stands alone, but is not set here"),
        ("RANK=0", "RANK is set by the launcher"),
        ("B=2", "B is declared twice"),
    ],
)
def test_a_bad_environment_file_is_refused_with_its_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text(f"B=1\n{line}\n")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}:2: .*{re.escape(message)}"):
        read_environment(path, {})
