"""torch.profiler over the steps that `log.profile` names.

    <run_dir>/profile/rank0000.trace.json.gz    for https://ui.perfetto.dev or chrome://tracing
    <run_dir>/profile/rank0000.table.txt        operators by the time they take themselves
    <run_dir>/profile/rank0000.memory.pickle    for https://pytorch.org/memory_viz; on a GPU, if asked for

A restart that repeats these steps replaces the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from megatron_ovenc.config import ProfileConfig
from megatron_ovenc.parallel.device import memory_history

_TABLE_ROWS = 60


class StepProfiler:
    """Records whole steps of this rank. Closing it in between writes what there is.

    Args:
        config: which steps and ranks; None records nothing.
        run_dir: where `profile/` goes.
        rank: this process.
        device: where it computes.
    """

    def __init__(self, config: ProfileConfig | None, run_dir: Path, rank: int, device: torch.device) -> None:
        self._config = config if config is not None and rank in config.ranks else None
        self._path = run_dir / "profile" / f"rank{rank:04d}"
        self._device = device
        self._recording = ExitStack()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number`, counted from 1."""
        if self._config is not None and number == self._config.steps[0]:
            try:
                self._recording.enter_context(self._record(self._config))
            except (OSError, RuntimeError) as error:
                self._tell(error)
        yield
        if self._config is not None and number == self._config.steps[1]:
            self.close()

    def close(self) -> None:
        """End a recording, if one is under way. What cannot be written is told; it is not worth a run."""
        try:
            self._recording.close()
        except (OSError, RuntimeError) as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        print(f"PROFILE FAILED {self._path}.*: {error}; training goes on", flush=True)

    @contextmanager
    def _record(self, config: ProfileConfig) -> Iterator[None]:
        self._path.parent.mkdir(exist_ok=True)
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with ExitStack() as stack:
            if config.memory:
                stack.enter_context(memory_history(self._device, self._path.with_suffix(".memory.pickle")))
            recorded = stack.enter_context(profile(activities=activities, record_shapes=True))
            yield
        recorded.export_chrome_trace(str(self._path.with_suffix(".trace.json.gz")))
        averages = recorded.key_averages(group_by_input_shape=True)
        table = averages.table(sort_by=f"self_{self._device.type}_time_total", row_limit=_TABLE_ROWS)
        self._path.with_suffix(".table.txt").write_text(table + "\n")
        print(f"profile of steps {config.steps[0]} to {config.steps[1]} -> {self._path}.*", flush=True)
