"""What only a GPU can say about batches on their way to it. Never run yet: see docs/gpu.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_ovenc.data.batch import PatchBatch, Sample, pack
from megatron_ovenc.parallel.device import refuse_synchronisation
from megatron_ovenc.parallel.topology import Topology

pytestmark = pytest.mark.gpu


def packed(value: int) -> PatchBatch:
    sample = Sample(
        patches=np.full((2048, 588), value, np.uint8),
        positions=np.full((2048, 3), value, np.int32),
        labels=np.array([value, -1]),
        sample_id=str(value),
    )
    return pack([sample] * 16, pin_memory=True)


def test_pages_are_not_used_again_before_they_are_copied(topology: Topology) -> None:
    """The host packs one batch after the other while the GPU is busy with something else."""
    device = topology.device
    busy = torch.randn(8192, 8192, device=device)
    packed(0).to(device)
    torch.mm(busy, busy)
    batches = []
    with refuse_synchronisation(device):
        for value in range(1, 9):
            torch.mm(busy, busy)
            batch = packed(value)
            assert all(part.is_pinned() for part in (batch.patches, batch.positions, batch.labels))
            batches.append(batch.to(device))
            del batch
    for value, copied in enumerate(batches, start=1):
        assert (copied.patches == value).all()
        assert (copied.positions == value).all()
        assert (copied.labels == torch.tensor([value, -1], device=device)).all()
