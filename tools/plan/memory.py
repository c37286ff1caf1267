"""A traced step against a GPU's memory."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ovenc.config import RunConfig
from tools.plan.hardware import Assumptions, Gpu
from tools.plan.step import TracedStep


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on one GPU."""

    tensors: int
    """Most that tensors take at a time."""
    allowance: dict[str, float]
    """What is not traced but assumed: context, NCCL, fragmentation."""
    capacity: float

    @property
    def total(self) -> float:
        return self.tensors + sum(self.allowance.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity


def memory(config: RunConfig, step: TracedStep, world: int, gpu: Gpu, assumed: Assumptions) -> Memory:
    """What a GPU needs for a traced step, and what it has."""
    tensor = config.parallel.tensor
    communicators = (world > 1) + (world // tensor > 1) + (tensor > 1)
    return Memory(
        tensors=step.peak,
        allowance={
            "context and workspaces": assumed.context_gib * 2**30,
            f"NCCL, {communicators} communicators": communicators * assumed.communicator_gib * 2**30,
            "fragmentation": assumed.fragmentation * step.peak,
        },
        capacity=gpu.memory_gib * 2**30,
    )
