"""Allocations and collectives of code that runs on the meta device, written down as they happen."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_ovenc.parallel.gradients import local


class Trace(TorchDispatchMode):
    """While entered, counts the bytes of all storages that are alive, and of all messages that are sent.

    Attributes:
        live: bytes alive now, by what they are for.
        peak: `live` when its sum was largest.
        sent: message bytes by (collective, name of the group, what for); an all-gather's message is what it makes, a
            reduce-scatter's what it is made from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.sent: Counter[tuple[str, str, str]] = Counter()
        self._total = self._largest = 0
        self._purpose = "other"
        self._known: dict[int, tuple[int, str]] = {}

    @contextmanager
    def purpose(self, name: str) -> Iterator[None]:
        """What is allocated inside is for `name`."""
        before, self._purpose = self._purpose, name
        yield
        self._purpose = before

    def keep(self, purpose: str, tensors: Iterable[torch.Tensor]) -> None:
        """These tensors, known or not, are for `purpose`."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) in self._known:
                size, before = self._known[id(storage)]
                self.live[before] -= size
                self.live[purpose] += size
                self._known[id(storage)] = (size, purpose)
            else:
                self._born(storage, storage.nbytes(), purpose)

    def overlook(self, tensors: Iterable[torch.Tensor]) -> None:
        """These tensors stand for others that are counted, and take nothing."""
        for tensor in tensors:
            self._born(tensor.untyped_storage(), 0, "nothing")

    def restart(self) -> None:
        """Look for the largest sum from here on."""
        self._largest, self.peak = self._total, self.live.copy()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self._send(func.__name__.split(".")[0], args)
        result = func(*args, **(kwargs or {}))
        for leaf in (result,) if isinstance(result, torch.Tensor) else tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta:
                storage = local(leaf).untyped_storage()
                if id(storage) not in self._known:
                    self._born(storage, storage.nbytes(), self._purpose)
        return result

    def _born(self, storage: torch.UntypedStorage, size: int, purpose: str) -> None:
        self._known[id(storage)] = (size, purpose)
        weakref.finalize(storage, self._gone, id(storage))
        self.live[purpose] += size
        self._total += size
        if self._total > self._largest:
            self.restart()

    def _gone(self, key: int) -> None:
        size, purpose = self._known.pop(key)
        self.live[purpose] -= size
        self._total -= size

    def _send(self, operation: str, args: tuple[Any, ...]) -> None:
        # The longest list is the whole message: of an all-gather what it makes, of a reduce-scatter what it is made from.
        size = max(sum(t.nbytes for t in tree_leaves(arg) if isinstance(t, torch.Tensor)) for arg in args[:2])
        group = next(arg for arg in args if isinstance(arg, torch.ScriptObject))
        self.sent[_OPERATIONS[operation], dist.ProcessGroup.unbox(group).group_name, self._purpose] += size


_OPERATIONS = {
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "reduce_scatter_": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "allreduce_": "all-reduce",
}
"""c10d's names of collectives."""
