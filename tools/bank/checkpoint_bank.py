"""A head's bank in a training checkpoint of ours, read by rows."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_ovenc.concept_bank.files import BankFileError
from megatron_ovenc.parallel.rectangle import Rectangle
from megatron_ovenc.train.checkpoint import damage
from megatron_ovenc.train.checkpoint_reader import SafeReader
from megatron_ovenc.train.weights import find_checkpoint

_PREFIX, _SUFFIX = "banks.", ".weight"


class CheckpointBank:
    """The rows of one bank. The rows that one rank wrote are read at once, so these must fit into memory; no more are held."""

    def __init__(self, path: Path, head: str | None) -> None:
        """
        Args:
            path: a checkpoint, or a run directory, whose newest checkpoint is taken.
            head: whose bank; None takes the only one.

        Raises:
            BankFileError: there is no such checkpoint or head, or a file is damaged.
        """
        checkpoint = find_checkpoint(path)
        if checkpoint is None:
            raise BankFileError("it is neither a bank nor holds a checkpoint")
        if problems := damage(checkpoint):
            raise BankFileError("; ".join(problems))
        self.path = checkpoint
        contents = SafeReader(checkpoint).read_metadata().state_dict_metadata
        heads = sorted(
            key.removeprefix(_PREFIX).removesuffix(_SUFFIX)
            for key in contents
            if key.startswith(_PREFIX) and key.endswith(_SUFFIX)
        )
        if head is None and len(heads) != 1:
            raise BankFileError(f"{checkpoint} holds the banks of {heads}; add --head with one of them")
        self.head = heads[0] if head is None else head
        if self.head not in heads:
            raise BankFileError(f"{checkpoint} holds the banks of {heads}, none of --head {head}; give one of them")
        stored = contents[self._key]
        assert isinstance(stored, TensorStorageMetadata)
        self.num_classes, self.width = stored.size
        self.dtype = str(stored.properties.dtype).removeprefix("torch.")
        self._torch_dtype = stored.properties.dtype
        self._chunks = sorted((chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]) for chunk in stored.chunks)
        self._chunk = lru_cache(1)(self._load)

    def read(self, lo: int, hi: int) -> Tensor:
        """Rows [lo, hi), as stored: [hi - lo, D]."""
        rows = [
            self._chunk(first, end)[max(lo, first) - first : min(hi, end) - first]
            for first, end in self._chunks
            if max(lo, first) < min(hi, end)
        ]
        return torch.cat(rows) if rows else torch.empty(0, self.width, dtype=self._torch_dtype)

    @property
    def _key(self) -> str:
        return f"{_PREFIX}{self.head}{_SUFFIX}"

    def _load(self, lo: int, hi: int) -> Tensor:
        rows = torch.empty(hi - lo, self.width, dtype=self._torch_dtype)
        wanted: dict[str, Any] = {self._key: Rectangle.of(rows, (self.num_classes, self.width), (lo, 0))}
        dcp.load(wanted, storage_reader=SafeReader(self.path), no_dist=True)
        return rows
