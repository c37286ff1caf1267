"""PyTorch owns the encoder's state: fully_shard over the data group, at three levels.

    zero 0   parameters, gradients and moments whole on every data rank; gradients all-reduced
    zero 2   gradients and moments sharded; parameters gathered once a step and kept until its last backward
    zero 3   parameters, too, are gathered only while a block runs

All three are the same code path: zero 0 is sharding over a group of one, replicated over the data group.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from megatron_ovenc.parallel.topology import Topology


class ShardedEncoder:
    """Communication control of an encoder under fully_shard."""

    def __init__(
        self,
        encoder: torch.nn.Module,
        layers: torch.nn.ModuleList,
        topology: Topology,
        zero: Literal[0, 2, 3],
        precision: Literal["fp32", "bf16"],
    ) -> None:
        """Shard `encoder` in place, block by block. Parameters must be fp32, filled, and on the topology's device.

        Gradients are summed, not averaged, over data ranks: the bank's loss is already the mean over the global batch.
        """
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if precision == "bf16" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # rotary angles must stay fp32
        )
        mesh = topology.replicated_mesh() if zero == 0 else topology.data_mesh()
        for module in (*layers, encoder):
            fully_shard(module, mesh=mesh, reshard_after_forward=zero == 3, mp_policy=policy)
        self._modules = [module for module in encoder.modules() if isinstance(module, FSDPModule)]
        for module in self._modules:
            module.set_gradient_divide_factor(1.0)
            if hasattr(module, "set_force_sum_reduction_for_comms"):  # torch >= 2.9; gloo has no other reduction
                module.set_force_sum_reduction_for_comms(True)
        self._keep_gathered = zero != 3

    def release(self) -> None:
        """Give up gathered parameters after a forward that no backward follows: what reads parameters next expects shards."""
        for module in self._modules:
            module.reshard()

    def set_last_backward(self, last: bool) -> None:
        """Say whether the coming backward is the last before the optimizer step: only then are gradients communicated."""
        for module in self._modules:
            module.set_requires_gradient_sync(last, recurse=False)
            module.set_is_last_backward(last)
            if self._keep_gathered:
                module.set_reshard_after_backward(last, recurse=False)
