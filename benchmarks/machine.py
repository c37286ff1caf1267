"""What a table was measured on, and how much memory a process takes."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from megatron_ovenc.parallel.device import device_name


def machine() -> str:
    """One line: processor, cores, memory, versions."""
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    names = {key.strip(): value.strip() for key, value in facts.items()}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{names.get('model name', platform.machine())}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def versions(device: torch.device) -> dict[str, str]:
    """What a GPU's table is worth nothing without: its name, driver, CUDA, and the packages that compute."""
    driver = "none"
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    facts = {
        "device": device_name(device) if device.type == "cuda" else machine(),
        "driver": driver,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
    }
    for package in ("megatron-core", "transformer-engine", "flash-attn", "triton"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


class PeakMemory:
    """Most resident memory that a block adds to what is resident before it, in bytes (Linux).

    with PeakMemory() as peak:
        step()
    peak.bytes
    """

    bytes: int

    def __enter__(self) -> PeakMemory:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = _status("VmHWM") - self._before


def resident_peak() -> int:
    """Most bytes of this process that were resident since it began, or since the last PeakMemory began."""
    return _status("VmHWM")


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024
