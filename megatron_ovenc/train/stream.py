"""One head's batches on every rank: tensor rank 0 of each data rank decodes, its tensor group receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_ovenc.data.batch import PatchBatch
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.state import BatchSource


@dataclass(frozen=True, kw_only=True)
class BatchStream:
    """Hands a source's micro-batches to all tensor ranks of a data rank.

    Host tensors go over the tensor group's gloo: the ranks share a node, and a clip is about a megabyte. Patches that were
    decoded on the GPU go from there, over its NCCL.
    """

    source: BatchSource
    """Read on tensor rank 0 only."""
    topology: Topology

    def next(self) -> PatchBatch:
        """The next micro-batch on the rank's device. Collective over the tensor group.

        Raises:
            RuntimeError: the loading rank failed; every rank of the group raises.
        """
        if self.topology.tensor == 1:
            return self.source.next().to(self.topology.device)
        batch, failure = None, None
        if self.topology.tensor_rank == 0:
            try:
                batch = self.source.next()
            except Exception as error:  # whatever it is, the ranks that wait must hear of it
                failure = error
        return self._broadcast(batch, failure).to(self.topology.device)

    def _broadcast(self, batch: PatchBatch | None, failure: Exception | None) -> PatchBatch:
        group = self.topology.tensor_group
        header: list[Any] = [None]
        if batch is not None:
            tensors = (batch.patches, batch.positions, batch.cu_seqlens, batch.labels)
            header = [([(t.shape, t.dtype, t.device.type) for t in tensors], batch.sample_ids)]
        elif failure is not None:
            header = [f"{type(failure).__name__}: {failure}"]
        # Within the TENSOR group: its ranks compute the same samples.
        dist.broadcast_object_list(header, group=group, group_src=0, device=torch.device("cpu"))
        if failure is not None:
            raise failure
        if isinstance(header[0], str):
            raise RuntimeError(f"data rank {self.topology.data_rank} cannot load: {header[0]}")
        kinds, sample_ids = header[0]
        received = tensors if batch is not None else tuple(self._empty(*kind) for kind in kinds)
        for tensor in received:
            dist.broadcast(tensor, group=group, group_src=0)
        patches, positions, cu_seqlens, labels = received
        return PatchBatch(
            patches=patches, positions=positions, cu_seqlens=cu_seqlens, labels=labels, sample_ids=sample_ids
        )

    def _empty(self, shape: torch.Size, dtype: torch.dtype, where: str) -> torch.Tensor:
        """A tensor on this rank's device, or on the host, ready to go there."""
        device = self.topology.device
        if where != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
