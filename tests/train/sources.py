"""Batch sources that need no files: recorded images, and seeded random patches keyed by global position."""

from __future__ import annotations

import torch

from benchmarks.synthetic import MemorySource
from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.parallel.topology import Topology


def image_patches(pixels: torch.Tensor, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, 3, H, W] float -> patches [B * n, 3 * patch^2] and positions [B * n, 3] of still pictures (t = 0)."""
    batch, channels, height, width = pixels.shape
    rows, cols = height // patch, width // patch
    cut = pixels[:, :, : rows * patch, : cols * patch].reshape(batch, channels, rows, patch, cols, patch)
    patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(batch * rows * cols, -1)
    grid = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(rows), torch.arange(cols))
    return patches, grid.repeat(batch, 1).int()


class RecordedSource(MemorySource):
    """Plays back global batches of images: [steps, B, 3, H, W] with labels [steps, B, K], split evenly over data ranks."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor, patch: int, topology: Topology) -> None:
        self.pixels, self.labels, self.patch, self.topology = pixels, labels, patch, topology

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        total, ranks = self.pixels.shape[1], self.topology.data
        return tuple(total // ranks + (rank < total % ranks) for rank in range(ranks))

    def next(self) -> PatchBatch:
        start = sum(self.batch_sizes[: self.topology.data_rank])
        mine = slice(start, start + self.batch_sizes[self.topology.data_rank])
        pixels, labels = self.pixels[self.position, mine], self.labels[self.position, mine]
        self.position += 1
        patches, positions = image_patches(pixels, self.patch)
        return PatchBatch(
            patches=patches.float(),
            positions=positions,
            cu_seqlens=torch.arange(len(pixels) + 1, dtype=torch.int32) * (len(patches) // len(pixels)),
            labels=labels,
            sample_ids=tuple(f"{self.position}/{i}" for i in range(len(pixels))),
        )
