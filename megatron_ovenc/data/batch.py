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

    patches: np.ndarray
    """uint8 [n, 3 * patch * patch], channel-major as a Conv2d weight flattens."""
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


def pack(samples: Sequence[Sample]) -> PatchBatch:
    """Concatenate samples into a batch. All must have the same number of label columns."""
    lengths = [sample.tokens for sample in samples]
    return PatchBatch(
        patches=torch.from_numpy(np.concatenate([sample.patches for sample in samples])),
        positions=torch.from_numpy(np.concatenate([sample.positions for sample in samples])),
        cu_seqlens=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        labels=torch.from_numpy(np.stack([sample.labels for sample in samples])),
        sample_ids=tuple(sample.sample_id for sample in samples),
    )
