"""Every rank sees the global batch: gathered over the data group, with gradients that come home by reduce-scatter.

Tensor ranks of one data rank hold the same samples, so the global batch is gathered over the data group alone, in the
order of data ranks. The bank's rows, however, are split over the world: each rank's gradient with respect to the global
batch is a partial sum, and the way back adds the parts of all ranks, data and tensor.

Shapes: B samples of a rank, N = sum of the data ranks' B, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_ovenc.parallel.topology import Topology


def exchange_batch_sizes(batch: int, topology: Topology) -> list[int]:
    """The batch size of every data rank. Collective; for callers who do not know the sizes."""
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(topology.world)]
    # Over the HOST group: sizes shape the collectives to come, and the device must not be waited for.
    dist.all_gather(sizes, torch.tensor([batch]), group=topology.host_group)
    return torch.cat(sizes)[:: topology.tensor].tolist()


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalBatch:
    """The data ranks' batches, one after another."""

    sizes: Sequence[int]
    """B of every data rank."""
    topology: Topology

    def gather(self, local: Tensor) -> Tensor:
        """[B, ...] of this rank to [N, ...] of all data ranks, in their order. Collective, without gradients."""
        padded = local.new_zeros(max(self.sizes), *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in self.sizes]
        # Over the DATA group: its ranks hold different samples, tensor ranks the same.
        dist.all_gather(parts, padded, group=self.topology.data_group)
        return torch.cat([part[:size] for part, size in zip(parts, self.sizes, strict=True)])

    def send_home(self, partial: Tensor) -> Callable[[], Tensor]:
        """Begin to add up the ranks' partial gradients [N, D] with respect to the global batch. Collective.

        Returns:
            A function that waits for the result, [B, D] of this rank's samples: exactly the gradient of a loss that every rank
            computes from the global batch and its own rows. It is not divided, or multiplied, by a number of ranks.
        """
        largest, topology = max(self.sizes), self.topology
        parts = [F.pad(part, (0, 0, 0, largest - len(part))).contiguous() for part in partial.split(list(self.sizes))]
        own = torch.empty_like(parts[0])
        # Over the DATA group: adds what its ranks' rows say about each batch, and hands every rank its own batch.
        work = dist.reduce_scatter(own, parts, group=topology.data_group, async_op=True)

        def finish() -> Tensor:
            work.wait()
            if topology.tensor > 1:
                # Over the TENSOR group: the same samples met other rows on each of its ranks.
                dist.all_reduce(own, group=topology.tensor_group)
            return own[: self.sizes[topology.data_rank]]

        return finish
