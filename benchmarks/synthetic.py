"""Batches that need no files: pictures of a few classes under noise, drawn by step number."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from megatron_ovenc.data.batch import PatchBatch

CLASSES = 24


class MemorySource:
    """What a batch source without files, workers or bad samples has to say of itself."""

    bad_samples = 0
    position = 0
    """Batches taken."""

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.position = state["position"]

    def take_wait(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


class NoisyClasses(MemorySource):
    """Batches for one rank: every class has a pattern, a sample is its pattern under noise, ragged in tokens on request."""

    def __init__(self, samples: int, grid: tuple[int, int], patch: int, *, ragged: bool = False) -> None:
        """
        Args:
            samples: of a batch.
            grid: rows and columns of patches.
            patch: side of a patch in pixels.
            ragged: samples lose up to half of their patches.
        """
        self.samples, self.grid, self.ragged = samples, grid, ragged
        generator = torch.Generator().manual_seed(0)
        self.patterns = torch.randn(CLASSES, grid[0] * grid[1], 3 * patch**2, generator=generator)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return (self.samples,)

    def next(self) -> PatchBatch:
        generator = torch.Generator().manual_seed(1 + self.position)
        self.position += 1
        labels = torch.randint(0, CLASSES, (self.samples, 1), generator=generator)
        patches = 0.3 * self.patterns[labels[:, 0]]
        patches = patches + torch.randn(patches.shape, generator=generator)
        positions = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), *(torch.arange(n) for n in self.grid)).int()
        whole = len(positions)
        lengths = torch.randint(whole // 2, whole + 1, (self.samples,), generator=generator)
        if not self.ragged:
            lengths[:] = whole
        kept = [int(n) for n in lengths]
        return PatchBatch(
            patches=torch.cat([patches[i, :n] for i, n in enumerate(kept)]),
            positions=torch.cat([positions[:n] for n in kept]),
            cu_seqlens=torch.tensor([0, *kept], dtype=torch.int32).cumsum(0, dtype=torch.int32),
            labels=labels,
            sample_ids=tuple(f"{self.position}/{i}" for i in range(self.samples)),
        )
