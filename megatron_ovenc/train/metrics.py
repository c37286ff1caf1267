"""What a step reports: one readable console line, one JSON line, TensorBoard points.

<run_dir>/metrics.jsonl      every step
<run_dir>/attempts.jsonl     every start of the run: when, from which step, on how many ranks
<run_dir>/tensorboard/       every log.every steps, and so what else `boards.py` knows
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from megatron_ovenc.config import LogConfig
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.boards import Board, open_boards
from megatron_ovenc.train.json_lines import JsonLines
from megatron_ovenc.train.stragglers import WORTH_TELLING, slowest

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0, "B200": 2250.0, "L40S": 362.0}
"""Dense bf16 peaks in TFLOP/s, by what the device's name contains (vendor data sheets)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """One optimizer step, summed over ranks where that makes sense."""

    step: int
    """Steps taken, this one included."""
    losses: dict[str, float]
    """Mean loss of each head."""
    grad_norms: dict[str, float]
    """Global gradient norm before clipping: `encoder`, and each head's bank."""
    lr: float
    """Learning rate of this step."""
    skipped: bool
    """Whether a non-finite value kept the step from being taken."""
    samples: int
    """Samples of all heads and data ranks."""
    tokens: int
    """Patches of all heads and data ranks."""
    flops: float
    """Operations of the encoder, all data ranks."""
    data_wait_s: float
    """Seconds that loading ranks waited for samples, mean over data ranks."""
    seconds: float
    """Duration of the step."""
    memory_bytes: int
    """Peak memory of rank 0."""
    bad_samples: int
    """Samples replaced so far in this session, all ranks."""
    phases: dict[str, float]
    """Device seconds of this rank by phase (forward, bank, backward, optimizer) since the last step."""
    data_max_s: float
    """Seconds that the rank with the longest wait for data waited."""
    own_s: list[float]
    """Seconds that each rank took by itself (see stragglers.py)."""
    checkpoint: dict[str, float]
    """Numbers of a save that has ended since the last step (see Checkpointer.take_facts); empty in most."""
    banks: dict[str, float]
    """What a look at the banks found, by `<head>/<name>`; empty in steps without one."""
    examined: Mapping[str, float]
    """What an evaluation of the encoder after this step found, by name; empty in steps without one."""


class MetricsWriter:
    """Writes step metrics on the main rank; does nothing elsewhere."""

    def __init__(
        self, run_dir: Path, config: LogConfig, *, total_steps: int, world: int, device: str, enabled: bool
    ) -> None:
        self.config = config
        self.total_steps = total_steps
        self.enabled = enabled
        known = next((peak for name, peak in PEAK_TFLOPS.items() if name in device), None)
        self._peak_flops = 1e12 * world * (config.peak_tflops or known or 0.0)
        self._window: list[StepMetrics] = []
        self._run_dir = run_dir
        if not enabled:
            return
        self.console = Console(soft_wrap=True, highlight=False)
        self._steps = JsonLines(run_dir / "metrics.jsonl", self.say)
        self._boards: list[Board] = open_boards(run_dir, config)

    def begin(self, step: int, topology: Topology) -> None:
        """Note that the run starts, or starts again, from `step`. metrics.jsonl alone cannot tell a restart at its last step."""
        if not self.enabled:
            return
        attempt = {
            "time": round(time.time(), 3),
            "step": step,
            "data": topology.data,
            "tensor": topology.tensor,
            "host": socket.gethostname(),
        }
        JsonLines(self._run_dir / "attempts.jsonl", self.say).append(attempt)

    def say(self, message: str, alarm: str = "") -> None:
        """A line for a person, on the main rank's console; `alarm` says loudly, before it, what has gone wrong."""
        if self.enabled:
            # Text, not markup: a path or an error may have brackets in it.
            loudly = [Text(alarm, style="bold red")] if alarm else []
            with suppress(OSError):  # the output may be a file on a full disk, which costs the line and not the run
                self.console.print(time.strftime("%H:%M:%S"), *loudly, Text(message))

    def step(self, metrics: StepMetrics) -> None:
        """Record one step."""
        if not self.enabled:
            return
        self._window.append(metrics)
        self._steps.append(self._record([metrics]))
        if metrics.step % self.config.every == 0 or metrics.step == self.total_steps or metrics.skipped:
            record = self._record(self._window)
            self.say(self._line(record))
            numbers = {k: v for k, v in record.items() if v is not None and k not in ("step", "time")}
            self._each_board(lambda board: board.add(metrics.step, numbers))
            self._window.clear()

    def close(self) -> None:
        """Flush and close the files."""
        if self.enabled:
            self._each_board(lambda board: board.close())

    def _each_board(self, use: Callable[[Board], None]) -> None:
        """Others' code, which raises what it likes: on a full disk, without a network. A board that fails is told and given up."""
        for board in tuple(self._boards):
            try:
                use(board)
            except Exception as error:
                self._boards.remove(board)
                name = type(board).__name__
                self.say(
                    f"{name}: {error}; it draws nothing more until the next start; training goes on", "BOARD FAILED"
                )

    def _record(self, window: Sequence[StepMetrics]) -> dict[str, Any]:
        """Averages over a window of steps (its last step's values for what is not an average)."""
        last, seconds = window[-1], sum(m.seconds for m in window)
        record: dict[str, Any] = {"step": last.step, "time": round(time.time(), 3)}
        for head in last.losses:
            record[f"loss/{head}"] = sum(m.losses[head] for m in window) / len(window)
        record.update({f"grad_norm/{name}": value for name, value in last.grad_norms.items()})
        record.update({f"bank/{name}": value for metrics in window for name, value in metrics.banks.items()})
        record.update({f"eval/{name}": value for metrics in window for name, value in metrics.examined.items()})
        record |= {
            "lr": last.lr,
            "samples_per_s": sum(m.samples for m in window) / seconds,
            "tokens_per_s": sum(m.tokens for m in window) / seconds,
            "tflops": sum(m.flops for m in window) / seconds / 1e12,
            "data_wait": sum(m.data_wait_s for m in window) / seconds,
            "step_s": seconds / len(window),
            "memory_gib": last.memory_bytes / 2**30,
            "bad_samples": last.bad_samples,
            "skipped": sum(m.skipped for m in window),
            "wait/data_max_s": sum(m.data_max_s for m in window) / len(window),
        }
        if len(last.own_s) > 1:
            record["straggler/rank"], record["straggler/ratio"] = slowest(
                [sum(s) for s in zip(*(m.own_s for m in window), strict=True)]
            )
        record |= {f"checkpoint/{name}": value for metrics in window for name, value in metrics.checkpoint.items()}
        for name in sorted({name for metrics in window for name in metrics.phases}):
            record[f"time/{name}_s"] = sum(m.phases.get(name, 0.0) for m in window) / len(window)
        if self._peak_flops:
            record["mfu"] = record["tflops"] * 1e12 / self._peak_flops
        # JSON has no NaN: a non-finite loss is written as null, and `skipped` says why.
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}

    def _line(self, record: dict[str, Any]) -> str:
        def show(value: float | None, form: str = ".4f") -> str:
            return "non-finite" if value is None else format(value, form)

        losses = "  ".join(f"{k.removeprefix('loss/')} {show(v)}" for k, v in record.items() if k.startswith("loss/"))
        norms = " ".join(show(v, ".3g") for k, v in record.items() if k.startswith("grad_norm/"))
        parts = [
            f"step {record['step']}/{self.total_steps}",
            f"loss {losses}",
            f"norm {norms}",
            f"lr {record['lr']:.3g}",
            f"{record['samples_per_s']:.1f} samples/s",
            f"{record['tokens_per_s']:,.0f} tokens/s",
            f"wait {record['data_wait']:.0%}",
            f"mem {record['memory_gib']:.2f} GiB",
        ]
        if "mfu" in record:
            parts.insert(6, f"MFU {record['mfu']:.1%}")
        if record.get("straggler/ratio", 0) >= WORTH_TELLING:
            parts.append(f"SLOWEST rank {record['straggler/rank']}, {record['straggler/ratio']:.1f} x the median")
        if record["bad_samples"]:
            parts.append(f"bad {record['bad_samples']}")
        if record["skipped"]:
            parts.append(f"SKIPPED {record['skipped']}")
        return " | ".join(parts)
