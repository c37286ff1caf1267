"""Every rank sees the global batch: gathering over the data group, with gradients that come home by reduce-scatter.

Tensor ranks of one data rank hold the same samples, so the global batch is gathered over the data group alone, in the
order of data ranks. The bank's rows, however, are split over the world: each rank's gradient with respect to the global
batch is a partial sum, and the way back adds the parts of all ranks, data and tensor.

Shapes: B samples of a rank, N = sum of the data ranks' B, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ovenc.parallel.topology import Topology


def exchange_batch_sizes(batch: int, topology: Topology) -> list[int]:
    """The batch size of every data rank. Collective; for callers who do not know the sizes."""
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(topology.world)]
    # Over the HOST group: sizes shape the collectives to come, and the device must not be waited for.
    dist.all_gather(sizes, torch.tensor([batch]), group=topology.host_group)
    return torch.cat(sizes)[:: topology.tensor].tolist()


def gather_batch(local: Tensor, sizes: Sequence[int], topology: Topology) -> Tensor:
    """Concatenate the data ranks' batches, without gradients.

    Args:
        local: [B, ...] of this rank.
        sizes: the B of every data rank.

    Returns:
        [N, ...], in the order of data ranks.
    """
    largest = max(sizes)
    padded = local.new_zeros(largest, *local.shape[1:])
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    # Over the DATA group: its ranks hold different samples, tensor ranks the same.
    dist.all_gather(parts, padded, group=topology.data_group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _GatherEmbeddings(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: Sequence[int], topology: Topology) -> Tensor:
        ctx.sizes, ctx.topology = sizes, topology
        return gather_batch(local, sizes, topology)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        sizes, topology = ctx.sizes, ctx.topology
        largest = max(sizes)
        parts = [F.pad(part, (0, 0, 0, largest - len(part))).contiguous() for part in grad.split(sizes)]
        own = torch.empty_like(parts[0])
        # Over the DATA group: adds what its ranks' rows say about each batch, and hands every rank its own batch.
        dist.reduce_scatter(own, parts, group=topology.data_group)
        # Over the TENSOR group: the same samples met other rows on each of its ranks.
        dist.all_reduce(own, group=topology.tensor_group)
        return own[: sizes[topology.data_rank]], None, None


def gather_embeddings(local: Tensor, sizes: Sequence[int], topology: Topology) -> Tensor:
    """Concatenate the data ranks' embeddings, differentiably.

    The gradient that reaches `local` is the sum over all ranks of their partial gradients: exactly that of a loss which
    every rank computes from the global batch and its own rows. It is not divided, or multiplied, by a number of ranks.

    Args:
        local: float [B, D].
        sizes: the B of every data rank.

    Returns:
        [N, D].
    """
    return _GatherEmbeddings.apply(local, list(sizes), topology)
