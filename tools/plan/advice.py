"""Settings with which a configuration that does not fit would, the least costly first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from megatron_ovenc.config import ConfigError, RunConfig, check, dump, parse
from tools.plan.hardware import Assumptions, Gpu
from tools.plan.memory import memory
from tools.plan.speed import estimate
from tools.plan.step import trace_step

MOST_TRIED, MOST_FOUND = 24, 3
"""Sets of settings that are traced at most, and that are told at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedy:
    """Settings that make a run fit."""

    settings: tuple[str, ...]
    """`key=value` each, as `--set` takes them."""
    memory: float
    """Bytes on a GPU."""
    step_s: float


def remedies(config: RunConfig, world: int, gpu: Gpu, assumed: Assumptions) -> Iterator[Remedy]:
    """The first settings that fit: single changes, then two and three at once, each kind in the order of what it costs."""
    found = tried = 0
    kinds = [kind for kind in _changes(config) if kind]
    for size in (1, 2, 3):
        for chosen in combinations(kinds, size):
            for settings in _products(chosen):
                if found == MOST_FOUND or tried == MOST_TRIED:
                    return
                changed = _changed(config, settings, world)
                if changed is None:
                    continue
                tried += 1
                step = trace_step(changed, world)
                needed = memory(changed, step, world, gpu, assumed)
                if needed.fits:
                    found += 1
                    step_s = estimate(changed, step, world, gpu, assumed).step_s
                    yield Remedy(settings=settings, memory=needed.total, step_s=step_s)
                    break  # more of the same change only costs more
        if found:
            return


def _changes(config: RunConfig) -> Iterator[list[tuple[str, ...]]]:
    """Kinds of changes, each with its degrees, the least first; of a kind at most one is made."""
    parallel, accumulation = config.parallel, config.train.grad_accumulation
    yield [] if parallel.recompute else [("parallel.recompute=true",)]
    yield [(f"train.grad_accumulation={accumulation * factor}",) for factor in (2, 4, 8)]
    yield [] if parallel.zero == 3 else [("parallel.zero=3",)]
    compact = tuple(f"heads.{h.name}.bank.moments=bf16" for h in config.heads if h.bank.moments == "fp32")
    yield [compact] if compact else []
    sizes = [size for size in (2, 4, 8) if size > parallel.tensor]
    yield [(f"parallel.tensor={size}", "parallel.sequence_parallel=true") for size in sizes]


def _products(kinds: tuple[list[tuple[str, ...]], ...]) -> Iterator[tuple[str, ...]]:
    """One degree of each kind, all at the same place in their lists or at their last."""
    for degree in range(max(len(kind) for kind in kinds)):
        yield tuple(setting for kind in kinds for setting in kind[min(degree, len(kind) - 1)])


def _changed(config: RunConfig, settings: tuple[str, ...], world: int) -> RunConfig | None:
    try:
        changed = parse(dump(config), settings)
        check(changed, world)
    except ConfigError:
        return None
    return changed
