"""A local tensor that knows which rectangle of a global tensor it is: what distributed checkpoints are made of.

torch.distributed.checkpoint stores such tensors by global coordinates, so that a checkpoint written by one layout (FSDP shards
of tensor-parallel slices, rows of a bank) is read by any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class Rectangle(torch.Tensor):
    """View of `local` placed at `offset` of a tensor of `global_shape`. Implements the protocol of DCP's planners.

    Loading writes into `local` itself. A subclass of Tensor because the planners look for nothing else.
    """

    global_shape: torch.Size
    offset: torch.Size

    @staticmethod
    def of(local: torch.Tensor, global_shape: Sequence[int], offset: Sequence[int]) -> Rectangle:
        assert local.dim() == len(global_shape) == len(offset)
        assert all(o + n <= g for o, n, g in zip(offset, local.shape, global_shape, strict=True) if n)
        rectangle = local.detach().as_subclass(Rectangle)
        rectangle.global_shape, rectangle.offset = torch.Size(global_shape), torch.Size(offset)
        return rectangle

    @property
    def local(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    def size(self, dim: int | None = None) -> Any:
        """Global size: like DTensor, this is what the planners compare with a checkpoint."""
        return self.global_shape if dim is None else self.global_shape[dim]

    def staged(self) -> Rectangle:
        """A copy in host memory, isolated from later updates."""
        copy = self.local.to("cpu", copy=True)
        return Rectangle.of(copy, self.global_shape, self.offset)

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(offsets=self.offset, sizes=self.local.size())

    def __create_write_items__(self, fqn: str, tensor: Rectangle) -> list[WriteItem]:
        if self.local.numel() == 0:
            return []
        data = TensorWriteData(
            chunk=self._chunk(), properties=TensorProperties.create_from_tensor(self.local), size=self.global_shape
        )
        return [WriteItem(index=MetadataIndex(fqn, self.offset), type=WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()] if self.local.numel() else []

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        assert index.offset == self.offset
        return self.local
