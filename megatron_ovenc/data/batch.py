"""The one thing that the data path produces and the model consumes: samples as bags of positioned patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from megatron_ovenc.parallel.device import to_device


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image or clip, ready to be packed."""

    patches: np.ndarray | torch.Tensor
    """uint8 [n, 3 * patch * patch], channel-major as a Conv2d weight flattens; a tensor is on the batch's device already."""
    positions: np.ndarray
    """int32 [n, 3]: t, row, col of each patch."""
    labels: np.ndarray
    """int64 [K]: positive concept ids, -1 = none."""
    sample_id: str
    """Names the sample to a person: shard path, `#`, key."""

    @property
    def tokens(self) -> int:
        return len(self.patches)


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchBatch:
    """One head's micro-batch on one data-parallel rank.

    `cu_seqlens` stays on the host wherever the patches go: it is the batch's shape, and shapes are not synchronised for.
    """

    patches: torch.Tensor
    """uint8 [N, 3 * patch * patch] raw pixels; float32 is taken as already normalised."""
    positions: torch.Tensor
    """int32 [N, 3]: t, row, col; t lives on the virtual time axis."""
    cu_seqlens: torch.Tensor
    """int32 [B + 1] on the host: sample b owns rows cu_seqlens[b]:cu_seqlens[b + 1]."""
    labels: torch.Tensor
    """int64 [B, K]: positive concept ids, -1 = none."""
    sample_ids: tuple[str, ...]
    """B names."""

    @property
    def size(self) -> int:
        """Number of samples B."""
        return len(self.cu_seqlens) - 1

    @property
    def tokens(self) -> int:
        """Number of patches N."""
        return self.patches.shape[0]

    def to(self, device: torch.device) -> PatchBatch:
        """A copy whose tensors (all but cu_seqlens) are on `device`; the host does not wait for the copy."""
        return replace(
            self,
            patches=to_device(self.patches, device),
            positions=to_device(self.positions, device),
            labels=to_device(self.labels, device),
        )


def pack(samples: Sequence[Sample], *, pin_memory: bool = False) -> PatchBatch:
    """Concatenate samples into a batch. All must have the same number of label columns.

    Args:
        samples: at least one. If the patches of one are a tensor, the batch's are on its device.
        pin_memory: write them to page-locked memory, from which a GPU copies by itself while the host goes on. Its pages return
            to torch's caching allocator with the batch, which gives them out again only when the copies from them are done.
    """
    lengths = [sample.tokens for sample in samples]
    return PatchBatch(
        patches=_joined([sample.patches for sample in samples], pin_memory),
        positions=_concatenated([sample.positions for sample in samples], pin_memory),
        cu_seqlens=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        labels=_concatenated([sample.labels[None] for sample in samples], pin_memory),
        sample_ids=tuple(sample.sample_id for sample in samples),
    )


def _joined(parts: Sequence[np.ndarray | torch.Tensor], pin_memory: bool) -> torch.Tensor:
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return _concatenated(arrays, pin_memory)
    device = next(part.device for part in parts if isinstance(part, torch.Tensor))
    return torch.cat([p if isinstance(p, torch.Tensor) else to_device(torch.from_numpy(p), device) for p in parts])


def _concatenated(arrays: Sequence[np.ndarray], pin_memory: bool) -> torch.Tensor:
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    packed = torch.empty(shape, dtype=getattr(torch, arrays[0].dtype.name), pin_memory=pin_memory)
    np.concatenate(arrays, out=packed.numpy())
    return packed
