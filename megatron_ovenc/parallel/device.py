"""The one file that names torch.cuda: which device a rank uses, and what megatron-core needs to run on a CPU."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_ovenc.config import ConfigError
from megatron_ovenc.parallel.requirements import Environment, installed_transformer_engine


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """The device of a rank.

    Args:
        wanted: `auto`, `cpu` or `cuda` (parallel.device).
        local_rank: index of the rank on its host.

    Raises:
        ConfigError: CUDA is asked for and not there, or the host has fewer GPUs than ranks.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("parallel.device=cuda, but torch sees no CUDA device; set parallel.device to auto or cpu")
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 1 and "SLURM_STEP_ID" in os.environ:
        return torch.device("cuda", 0)  # srun --gpus-per-task shows each rank its own GPU only
    if local_rank >= count:
        raise ConfigError(
            f"local rank {local_rank} has no GPU: this host shows {count}; lower the slots in the hostfile"
        )
    return torch.device("cuda", local_rank)


def prepare_device(device: torch.device) -> None:
    """Make `device` current, and let megatron-core's layers find their feet on a host without CUDA.

    Two of megatron-core's habits assume CUDA even where nothing else does: its collectives ask
    `torch.cuda.current_device()` where to put their buffers, and its sequence-parallel block forks a CUDA random
    state (for dropout, which we do not use). The first gets the CPU for an answer, the second a tracker that does
    nothing, which megatron-core itself ships for inference. The buffer that its sequence-parallel linears gather
    activations into is its one global that we need, since we pass groups instead of calling initialize_model_parallel.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import initialize_rng_tracker

    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.cuda.current_device = lambda: device  # type: ignore[assignment,return-value]
    initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
    parallel_state.destroy_global_memory_buffer()
    parallel_state._set_global_memory_buffer()


@contextmanager
def shapes_only() -> Iterator[torch.device]:
    """The meta device, whose tensors have shapes and no data, prepared like any other while inside. For plans."""
    from megatron.core import parallel_state

    device, before = torch.device("meta"), torch.cuda.current_device
    prepare_device(device)
    try:
        yield device
    finally:
        torch.cuda.current_device = before
        parallel_state.destroy_global_memory_buffer()
        parallel_state._set_global_memory_buffer()


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """(major, minor) of a GPU; None for a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def environment(wanted: str) -> Environment:
    """This machine's facts for `requirement_problems`, of its first GPU.

    Args:
        wanted: `auto`, `cpu` or `cuda` (parallel.device).
    """
    usable = wanted != "cpu" and torch.cuda.is_available()
    return Environment(
        capability=torch.cuda.get_device_capability(0) if usable else None,
        cuda=torch.version.cuda,
        transformer_engine=installed_transformer_engine(),
    )


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on `device`. The host does not wait: to a GPU the copy is made from page-locked memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def current_stream(device: torch.device) -> torch.cuda.Stream | None:
    """The stream on which torch queues work for a GPU; a CPU has none."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


class PhaseTimer:
    """Time of the phases of a step: on a GPU by CUDA events, for which the host never waits, on a CPU by the clock.

    with timer.phase("forward"):
        ...
    seconds = timer.take()
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is queued on the device inside belongs to phase `name`; a phase may come several times."""
        if self._device.type != "cuda":
            begun = time.monotonic()
            yield
            self._add(name, time.monotonic() - begun)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._spans.append((name, begin, end))

    def take(self) -> dict[str, float]:
        """Seconds by phase of what the device has finished since the last call; the rest is told by a later one."""
        finished = [span for span in self._spans if span[2].query()]
        self._spans = [span for span in self._spans if span not in finished]
        for name, begin, end in finished:
            self._add(name, begin.elapsed_time(end) / 1000)
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


@contextmanager
def refuse_synchronisation(device: torch.device) -> Iterator[None]:
    """On a GPU, raise where the host waits for the device inside (torch.cuda.set_sync_debug_mode). For tests and checks."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told. For benchmarks."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_memory(device: torch.device) -> None:
    """Give back what this process holds on the device without using it. For benchmarks, between cases."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_peak_bytes(device: torch.device) -> int:
    """Largest memory held since the last call: allocated on the GPU, or resident in the process on a CPU."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def memory_history(device: torch.device, path: Path) -> Iterator[None]:
    """Record allocations on a GPU with their call stacks; on leaving, write them as a snapshot for pytorch.org/memory_viz."""
    torch.cuda.memory._record_memory_history(device=device)
    try:
        yield
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None, device=device)


def device_name(device: torch.device) -> str:
    """Marketing name of the GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
