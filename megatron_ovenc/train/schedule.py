"""Learning rate as a pure function of the optimizer step."""

from __future__ import annotations

import itertools
import math

from megatron_ovenc.config import ScheduleConfig


class Schedule:
    """`schedule(step)` is the learning rate of update `step`, counted from 0."""

    def __init__(self, config: ScheduleConfig, peak_lr: float, total_steps: int) -> None:
        self.config = config
        self.peak_lr = peak_lr
        self.total_steps = total_steps
        self._reference_decay = _reference_decay(total_steps, config.warmup_steps) if config.kind == "reference" else []

    def __call__(self, step: int) -> float:
        if self.config.kind == "reference":
            return self._reference(step)
        warmup, total = self.config.warmup_steps, self.total_steps
        if step < warmup:
            return self.peak_lr * step / warmup
        progress = min((step - warmup) / max(total - warmup, 1), 1.0)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        decay = cosine if self.config.kind == "cosine" else (1 - progress) ** self.config.power
        floor = self.config.final_lr_share
        return self.peak_lr * (floor + (1 - floor) * decay)

    def _reference(self, step: int) -> float:
        """The first update at full rate, warm-up from the second on, then a recursion that is nearly linear."""
        warmup = self.config.warmup_steps
        if step == 0:
            return self.peak_lr
        if step <= warmup:
            return self.peak_lr * step / warmup
        return self.peak_lr * self._reference_decay[min(step, self.total_steps) - warmup]


def _reference_decay(total: int, warmup: int) -> list[float]:
    """Products of (1 + r_k) / 2 with r_k = ((t - k) / (t - k + 1))^2 for k = warmup + 1 .. t, as the reference multiplies them
    up; it calls this polynomial of power 2, but the halved mixture with 1 makes it nearly linear.
    """
    factors = ((1 + ((total - k) / (total - k + 1)) ** 2) / 2 for k in range(warmup + 1, total + 1))
    return list(itertools.accumulate(factors, lambda product, factor: product * factor, initial=1.0))
