"""Facts of the host that this runs on. Nothing here imports torch: it is asked in a process of its own, which may fail."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from launch.doctor.facts import Gpu, HostFacts, Port, Torch
from launch.facts import addresses, code, versions

ASK_TORCH = """
import json, torch
cuda = torch.version.cuda
nccl = ".".join(map(str, torch.cuda.nccl.version())) if cuda and torch.distributed.is_nccl_available() else None
print("\\n" + json.dumps({"cuda": cuda, "nccl": nccl, "gpus": torch.cuda.device_count()}))
"""
TIMEOUT_S = 120.0
"""For a command that should answer at once; a first import of torch from a cold network disk takes a minute."""
_ROOT = Path(__file__).parents[2]
_GPU_FIELDS = "driver_version,name,memory.total,memory.used,ecc.errors.uncorrected.volatile.total"


def probe(host: str, system: Path = Path("/sys")) -> HostFacts:
    """Everything that one host knows of itself.

    Args:
        host: what to call it.
        system: where sysfs is mounted.
    """
    driver, gpus = probe_gpus()
    memlock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    digests = json.dumps(code(_ROOT), sort_keys=True)
    return HostFacts(
        host=host,
        addresses=addresses(),
        cpus=os.cpu_count() or 0,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        kernel=os.uname().release,
        driver=driver,
        gpus=gpus,
        ports=probe_ports(system),
        verbs=Path("/dev/infiniband").is_dir(),
        memlock_bytes=None if memlock == resource.RLIM_INFINITY else memlock,
        shm_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        torch=probe_torch(),
        versions=versions(),
        code=hashlib.sha256(digests.encode()).hexdigest()[:12],
    )


def probe_gpus() -> tuple[str | None, tuple[Gpu, ...]]:
    """Driver and GPUs, from nvidia-smi; neither where there is none or it fails."""
    answer = _ask(["nvidia-smi", f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits"])
    if answer is None or answer.returncode != 0:
        return None, ()
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
    gpus = tuple(
        Gpu(
            name=name,
            memory_gib=round(_number(total) / 1024, 1),
            used_gib=round(_number(used) / 1024, 1),
            ecc_errors=int(_number(errors)),
        )
        for _, name, total, used, errors in rows
    )
    return (rows[0][0] if rows else None), gpus


def probe_ports(system: Path) -> tuple[Port, ...]:
    """Ports of all adapters, in order of their names."""
    return tuple(
        Port(
            name=f"{port.parents[1].name}/{port.name}",
            state=_line(port / "state").partition(":")[2].strip() or "unknown",  # the file reads "4: ACTIVE"
            gbit_per_s=_number(_line(port / "rate").partition(" ")[0]),  # "400 Gb/sec (4X NDR)"
            layer=_line(port / "link_layer") or "unknown",
        )
        for port in sorted(system.glob("class/infiniband/*/ports/*"))
    )


def probe_torch(python: str = sys.executable) -> Torch:
    """What torch says of itself, or why it says nothing: a missing library, a crash, a driver that hangs."""
    answer = _ask([python, "-c", ASK_TORCH])
    if answer is None:
        return Torch(error=f"no answer within {TIMEOUT_S:.0f} s")
    lines = answer.stdout.strip().splitlines()
    if answer.returncode == 0 and lines:
        return Torch(**json.loads(lines[-1]))
    complaint = answer.stderr.strip().splitlines()
    return Torch(error=complaint[-1] if complaint else f"python ended with code {answer.returncode}")


def _ask(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(text: str) -> float:
    """The number in a cell; 0 for `[N/A]` and the like."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0
