"""What fully_shard holds beside the shards, allocated when it would allocate it.

FSDP refuses to run on the meta device, so its habits are followed here (torch 2.8 - 2.13, `_fsdp_param_group.py` and
`_fsdp_collectives.py`); `tests/tools/test_plan.py` compares with what it really takes. A unit is a block, or all that is in none.

    forward    a unit's weights are gathered into one flat buffer, which lives until the next unit's are, and copied out of it;
               in backward the same, but the buffer of the unit that comes next is there ahead
    backward   a unit's gradients are added up in fp32 (in all backward passes but the last), or copied into one flat fp32 buffer,
               which lives until the next unit's, and reduced into shards
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from megatron_ovenc.config import ParallelConfig
from megatron_ovenc.model.encoder import Encoder
from tools.plan.trace import Trace

WEIGHTS, GRADIENTS, BUFFERS = "gathered weights", "gradients", "sharding buffers"
"""Purposes of what is allocated here."""


class ShardingOnShapes:
    """Hooks on an encoder whose parameters have the type and the shapes of gathered ones.

    Args:
        encoder: on the meta device, not sharded.
        parallel: `zero` and `precision`.
        data: ranks that the shards are dealt out to; with zero 0 all of them hold everything.
        trace: where allocations are counted.
        earlier: whether the traced micro-batch comes after others of the same step.
    """

    def __init__(self, encoder: Encoder, parallel: ParallelConfig, data: int, trace: Trace, earlier: bool) -> None:
        self.last_backward = False
        self._zero, self._trace = parallel.zero, trace
        self._shards = 1 if parallel.zero == 0 else data
        self._gathered: dict[int, torch.Tensor] = {}
        self._fetched: dict[int, torch.Tensor] = {}
        self._sums: dict[int, torch.Tensor] = {}
        self._shard_gradients: list[torch.Tensor] = []
        self._flat_weights: torch.Tensor | None = None
        self._flat_gradients: torch.Tensor | None = None
        blocks = list(encoder.block.layers)
        within = {p for block in blocks for p in block.parameters()}
        self._units = [[p for p in encoder.parameters() if p not in within], *(list(b.parameters()) for b in blocks)]
        self._waiting = [len(unit) for unit in self._units]
        for index, module in enumerate([encoder, *blocks]):
            module.register_forward_pre_hook(lambda *_, index=index: self._gather(index))
            module.register_forward_hook(partial(self._after_forward, index))
            for parameter in self._units[index]:
                parameter.register_post_accumulate_grad_hook(partial(self._after_gradient, index))
        if earlier:
            for index, unit in enumerate(self._units):
                with trace.purpose(GRADIENTS):
                    self._sums[index] = _flat(unit, torch.float32)
                if self._zero != 3:
                    self._gather(index)

    def release(self) -> None:
        """After the last backward: what only served it is gone."""
        self._flat_weights = self._flat_gradients = None
        self._gathered.clear()

    def _gather(self, index: int) -> None:
        """In forward: what was gathered is copied, and kept until the next unit's is."""
        if index not in self._gathered:
            flat = self._fetch(index)
            self._gathered[index] = self._copy(index)
            self._flat_weights = flat

    def _fetch(self, index: int) -> torch.Tensor:
        with self._trace.purpose(BUFFERS):
            return _flat(self._units[index], self._units[index][0].dtype)

    def _copy(self, index: int) -> torch.Tensor:
        with self._trace.purpose(WEIGHTS):
            return _flat(self._units[index], self._units[index][0].dtype)

    def _after_forward(self, index: int, module: Any, inputs: Any, output: Any) -> None:
        if self._zero == 3:
            del self._gathered[index]
        hidden = output.pooled if index == 0 else output[0]
        hidden.register_hook(lambda gradient: self._before_backward(index))

    def _before_backward(self, index: int) -> None:
        """In backward: a copy frees what was gathered, and the unit before is fetched ahead, to be copied later."""
        if index not in self._gathered:
            fetched = self._fetched.pop(index, None)
            if fetched is None:
                fetched = self._fetch(index)
            self._gathered[index] = self._copy(index)
            del fetched
        self._flat_weights = None
        if index > 1 and index - 1 not in self._gathered:
            self._fetched[index - 1] = self._fetch(index - 1)

    def _after_gradient(self, index: int, parameter: torch.Tensor) -> None:
        self._waiting[index] -= 1
        if self._waiting[index]:
            return
        unit = self._units[index]
        self._waiting[index] = len(unit)
        if self.last_backward:
            self._reduce(index)
        elif index not in self._sums:
            with self._trace.purpose(GRADIENTS):
                self._sums[index] = _flat(unit, torch.float32)
        for member in unit:
            member.grad = None
        if self._zero == 3 or self.last_backward:
            self._gathered.pop(index, None)

    def _reduce(self, index: int) -> None:
        with self._trace.purpose(BUFFERS):
            flat = _flat(self._units[index], torch.float32)
        self._sums.pop(index, None)
        for member in self._units[index]:
            member.grad = None
        with self._trace.purpose(GRADIENTS):
            self._shard_gradients.append(torch.empty(-(-flat.numel() // self._shards), device="meta"))
        self._flat_gradients = flat


def _flat(unit: Iterable[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(sum(p.numel() for p in unit), dtype=dtype, device="meta")
