"""The doctor: judged on made-up facts of odd hosts; probing and measuring for real, over MPI, on hosts that are namespaces."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from launch.doctor.exchange import rounds
from launch.doctor.facts import Clock, Examination, Gpu, HostFacts, Link, Port, SharedView, Torch
from launch.doctor.judge import Problem, judge
from launch.doctor.probe import probe_gpus, probe_ports, probe_torch
from launch.doctor.table import show

ROOT = Path(__file__).parents[2]
NAMES = ("a", "b", "c", "d")


def host(name: str) -> HostFacts:
    """A healthy one."""
    return HostFacts(
        host=name,
        addresses={"eth0": f"10.0.0.{ord(name)}/24"},
        cpus=96,
        memory_gib=1000.0,
        kernel="6.1",
        driver="550.54",
        gpus=(Gpu(name="H100", memory_gib=80.0, used_gib=0.4, ecc_errors=0),) * 8,
        ports=tuple(Port(name=f"mlx5_{i}/1", state="ACTIVE", gbit_per_s=400.0, layer="InfiniBand") for i in range(8)),
        verbs=True,
        memlock_bytes=None,
        shm_bytes=64 * 2**30,
        torch=Torch(cuda="12.9", nccl="2.27.3", gpus=8),
        versions={"python": "3.12.3", "torch": "2.10"},
        code="abc",
    )


def found(count: int = 4, **changes: object) -> list[Problem]:
    """What the judge says where the last of `count` hosts is odd."""
    hosts = [host(name) for name in NAMES[:count]]
    hosts[-1] = replace(hosts[-1], **changes)  # type: ignore[arg-type]
    return judge(Examination(hosts=tuple(hosts)))


def links(slow: dict[frozenset[str], float], transport: str = "MPI") -> tuple[Link, ...]:
    return tuple(
        Link(hosts=(a, b), transport=transport, gigabytes_per_s=slow.get(frozenset((a, b)), 20.0), latency_us=5.0)
        for a, b in itertools.combinations(NAMES, 2)
    )


def test_healthy_hosts_have_no_problem() -> None:
    assert found() == []
    assert found(1) == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"driver": "535.1"}, "driver: 535.1, but 550.54 on 3 of 4 hosts"),
        ({"gpus": host("d").gpus[:7]}, "GPUs: 7 x H100, 80 GiB, but 8 x H100, 80 GiB on 3 of 4 hosts"),
        ({"versions": {"python": "3.12.3", "torch": "2.9"}}, "torch: 2.9, but 2.10 on 3 of 4 hosts"),
        ({"versions": {"python": "3.12.3"}}, "torch: missing, but 2.10 on 3 of 4 hosts"),
        ({"code": "abd"}, "code: abd, but abc on 3 of 4 hosts"),
        ({"torch": Torch(cuda="12.9", nccl="2.26.0", gpus=8)}, "NCCL: 2.26.0, but 2.27.3 on 3 of 4 hosts"),
        ({"torch": Torch(cuda="12.9", nccl="2.27.3", gpus=6)}, "torch sees 6 of 8 GPUs"),
        (
            {"ports": (*host("d").ports[:7], replace(host("d").ports[7], state="DOWN"))},
            "adapters: 7 x InfiniBand 400 Gb/s + 1 x port DOWN, but 8 x InfiniBand 400 Gb/s on 3 of 4 hosts",
        ),
        ({"verbs": False}, "there are adapters, but no /dev/infiniband"),
        ({"memlock_bytes": 65536}, "a process may lock 64 KiB only"),
        ({"shm_bytes": 64 * 2**20}, "/dev/shm has 64 MiB"),
        ({"gpus": (*host("d").gpus[:7], replace(host("d").gpus[7], used_gib=71.5))}, "in use on GPU 7 (71.5 GiB)"),
        ({"gpus": (replace(host("d").gpus[0], ecc_errors=2), *host("d").gpus[1:])}, "memory errors on GPU 0"),
        ({"addresses": {}}, "no interface has an address"),
    ],
)
def test_the_odd_host_is_named_with_a_remedy(changes: dict[str, object], what: str) -> None:
    problems = [problem for problem in found(**changes) if problem.severity == "problem"]
    assert [problem.host for problem in problems] == ["d"]
    assert what in problems[0].what
    assert problems[0].remedy


def test_what_only_explains_is_a_note() -> None:
    assert [(p.severity, p.host) for p in found(kernel="5.4")] == [("note", "d")]
    assert [(p.severity, p.host) for p in found(memory_gib=900.0)] == [("note", "d")]


def test_of_two_hosts_neither_is_the_odd_one() -> None:
    (problem,) = found(2, driver="535.1")
    assert (problem.host, problem.what) == ("all", "driver differ: a: 550.54; b: 535.1")


def test_a_broken_torch_is_told_and_all_ports_down_too() -> None:
    problems = found(
        torch=Torch(error="ImportError: libcudnn.so.9"), ports=(replace(host("d").ports[0], state="INIT"),)
    )
    whats = [problem.what for problem in problems]
    assert "torch does not work: ImportError: libcudnn.so.9" in whats
    assert "no adapter port is active: mlx5_0/1 INIT" in whats


def test_slow_hosts_and_slow_links() -> None:
    hosts = tuple(map(host, NAMES))
    slow_host = {frozenset((name, "c")): 3.0 for name in "abd"}
    (problem,) = judge(Examination(hosts=hosts, links=links(slow_host)))
    assert (problem.host, problem.what) == ("c", "3.00 GB/s to any other host over MPI, 20.00 between others")
    (problem,) = judge(Examination(hosts=hosts, links=links({frozenset("bd"): 4.0})))
    assert (problem.host, problem.what) == ("b - d", "4.00 GB/s between them over MPI, 20.00 between others")
    everywhere = {frozenset(pair): 1.2 for pair in itertools.combinations(NAMES, 2)}
    (problem,) = judge(Examination(hosts=hosts, links=links(everywhere, "nccl")))
    assert problem.what == "NCCL moves 1.2 GB/s between hosts whose adapters have 400 Gb/s ports"


def test_clocks_are_compared_with_the_middle_one() -> None:
    """The first host, against which all are measured, is the one that is wrong."""
    hosts = tuple(map(host, NAMES))
    clocks = tuple(Clock(host=name, offset_s=30.0 + i / 1000, uncertainty_s=1e-5) for i, name in enumerate("bcd"))
    (problem,) = judge(Examination(hosts=hosts, clocks=clocks))
    assert (problem.host, problem.what) == ("a", "its clock is 30.0 s behind")


def test_storage_that_is_not_shared() -> None:
    def told(missing: dict[str, tuple[str, ...]], error: str | None = None) -> list[tuple[str, str]]:
        views = [
            SharedView(host=name, error=error if name == "d" else None, missing=missing.get(name, ())) for name in NAMES
        ]
        examined = Examination(hosts=tuple(map(host, NAMES)), shared_dir="/runs", shared=tuple(views))
        return [(problem.host, problem.what) for problem in judge(examined)]

    assert told({}) == []
    assert told({}, "Read-only file system") == [("d", "cannot write in /runs: Read-only file system")]
    another = {"a": ("d",), "b": ("d",), "c": ("d",), "d": ("a", "b", "c")}
    assert told(another) == [("d", "/runs is not the directory that the other hosts have there")]
    assert told({"b": ("c",)}) == [("b", "does not see in /runs what c wrote")]


def test_the_table_points_at_the_odd_one() -> None:
    hosts = [host(name) for name in NAMES]
    hosts[2] = replace(hosts[2], driver="535.1 [old]")
    examination = Examination(hosts=tuple(hosts), links=links({}))
    text = io.StringIO()
    show(Console(file=text, width=160), examination, judge(examination))
    lines = text.getvalue().splitlines()
    (row,) = (line for line in lines if line.strip().startswith("driver "))
    assert row.split() == ["driver", "550.54", "c:", "535.1", "[old]"]
    assert lines[-1] == "1 problem on 4 hosts"


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_every_pair_meets_once_and_nobody_twice_a_round(count: int) -> None:
    played = rounds(count)
    assert sorted(itertools.chain.from_iterable(played)) == list(itertools.combinations(range(count), 2))
    for pairs in played:
        players = list(itertools.chain.from_iterable(pairs))
        assert len(players) == len(set(players))


def test_ports_and_gpus_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up sysfs, and a stand-in for nvidia-smi: the real ones need adapters and GPUs."""
    for number, state in ((0, "4: ACTIVE"), (1, "1: DOWN")):
        port = tmp_path / f"class/infiniband/mlx5_{number}/ports/1"
        port.mkdir(parents=True)
        for name, text in (("state", state), ("rate", "400 Gb/sec (4X NDR)"), ("link_layer", "InfiniBand")):
            (port / name).write_text(text + "\n")
    ports = probe_ports(tmp_path)
    assert [(p.name, p.state, p.gbit_per_s, p.layer) for p in ports] == [
        ("mlx5_0/1", "ACTIVE", 400.0, "InfiniBand"),
        ("mlx5_1/1", "DOWN", 400.0, "InfiniBand"),
    ]
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text("#!/bin/sh\necho '550.54.15, NVIDIA H100 80GB HBM3, 81559, 512, [N/A]'\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert probe_gpus() == (
        "550.54.15",
        (Gpu(name="NVIDIA H100 80GB HBM3", memory_gib=79.6, used_gib=0.5, ecc_errors=0),),
    )
    stand_in.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    assert probe_gpus() == (None, ())


def broken_torch(folder: Path) -> Path:
    """A directory whose `torch` fails as one without its CUDA libraries does."""
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('libcudnn.so.9: cannot open shared object file')\n")
    return folder


def environment(**variables: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "PMI", "PRTE_"))}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | variables


def test_a_torch_that_cannot_be_imported_is_a_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(broken_torch(tmp_path / "broken")))
    assert probe_torch().error == "ImportError: libcudnn.so.9: cannot open shared object file"


def test_without_mpi_the_host_alone_is_examined_and_told_what_to_install(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.doctor", "--json", str(tmp_path / "facts.json")]
    lost = environment(MPI4PY_LIBMPI="/nowhere/libmpi.so", PYTHONPATH=f"{broken_torch(tmp_path / 'x')}:{ROOT}")
    alone = subprocess.run(command, cwd=ROOT, env=lost, capture_output=True, text=True, timeout=120, check=False)
    assert alone.returncode == 1, alone.stderr  # torch is broken
    assert "This host alone" in alone.stderr and "pip install mpi4py" in alone.stderr
    assert "torch does not work" in json.loads((tmp_path / "facts.json").read_text())["problems"][0]["what"]
    started = lost | {"OMPI_COMM_WORLD_SIZE": "2"}
    one = subprocess.run(command, cwd=ROOT, env=started, capture_output=True, text=True, timeout=120, check=False)
    assert one.returncode == 2
    assert "cannot use MPI" in one.stderr


def mpirun(*parts: list[str]) -> list[str]:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    here = Path(sys.executable).with_name("mpirun")
    program = str(here) if here.exists() else shutil.which("mpirun")
    if program is None:
        pytest.skip("there is no mpirun")
    joined = list(itertools.chain.from_iterable([":", "-np", "1", *part] for part in parts))[1:]
    return [program, *(["--allow-run-as-root"] if os.geteuid() == 0 else []), "--oversubscribe", *joined]


def test_collectives_over_two_ranks(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "launch.doctor", "--collectives", "--megabytes", "1", "--json", str(tmp_path / "f")]
    result = subprocess.run(
        mpirun(words, words), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    facts = json.loads((tmp_path / "f").read_text())
    assert len(facts["hosts"]) == 1
    assert [(c["name"], c["backend"], c["ranks"]) for c in facts["collectives"]] == [
        ("all-reduce", "gloo", 2),
        ("all-gather", "gloo", 2),
    ]
    assert all(c["bus_gigabytes_per_s"] > 0 for c in facts["collectives"])


def test_three_hosts_one_of_them_odd(tmp_path: Path) -> None:
    """Hosts are namespaces with a name of their own; gamma's torch is broken, and another file system lies over the shared one."""
    unshare = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--uts", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us make namespaces")
    shared = tmp_path / "shared"
    shared.mkdir()
    flags = f"--collectives --megabytes 1 --shared {shared} --json {tmp_path / 'facts.json'}"
    doctor = f"exec {sys.executable} -m launch.doctor {flags}"
    odd = f"mount -t tmpfs none {shared}; export PYTHONPATH={broken_torch(tmp_path / 'broken')}:{ROOT}; "
    parts = [
        [*unshare, "sh", "-c", f"hostname {name}; {odd if name == 'gamma' else ''}{doctor}"]
        for name in ("alpha", "beta", "gamma")
    ]
    result = subprocess.run(
        mpirun(*parts), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 1, result.stdout + result.stderr
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert [h["host"] for h in facts["hosts"]] == ["alpha", "beta", "gamma"]
    assert {tuple(sorted(link["hosts"])) for link in facts["links"]} == set(
        itertools.combinations(("alpha", "beta", "gamma"), 2)
    )
    assert all(abs(clock["offset_s"]) < 0.5 for clock in facts["clocks"])
    # On a machine that does other work, too, any link may be slow for once.
    told = [(p["host"], p["what"]) for p in facts["problems"] if p["severity"] == "problem"]
    problems = [(who, what) for who, what in told if "GB/s" not in what]
    cannot = "ImportError: libcudnn.so.9: cannot open shared object file"
    assert ("gamma", f"torch does not work: {cannot}") in problems
    assert ("gamma", f"torch.distributed failed: {cannot}") in problems
    assert ("gamma", f"{shared} is not the directory that the other hosts have there") in problems
    assert {who for who, _ in problems} == {"gamma"}
    assert not list(shared.iterdir())
