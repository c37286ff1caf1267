"""What remains to be done to the encoder's gradients once backward is over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from megatron_ovenc.parallel.topology import Topology


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a DTensor, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_partial_gradients(parameters: Iterable[torch.nn.Parameter], topology: Topology) -> None:
    """Sum over the TENSOR group: under sequence parallelism each tensor rank saw only its share of the tokens."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if not gradients or topology.tensor == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=topology.tensor_group)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def global_norm(
    parameters: Mapping[str, torch.nn.Parameter],
    tensor_parallel: set[str],
    replicated_over_data: bool,
    topology: Topology,
) -> torch.Tensor:
    """L2 norm of the whole gradient, as if one rank held it.

    Args:
        parameters: by name, with gradients where they have any.
        tensor_parallel: names whose tensor ranks hold different parts; others count on tensor rank 0 only.
        replicated_over_data: every data rank holds the same gradients (zero 0), so data rank 0 speaks for them.

    Returns:
        fp32 scalar, equal on all ranks.
    """
    counted = [
        local(p.grad)
        for name, p in parameters.items()
        if p.grad is not None
        and (name in tensor_parallel or topology.tensor_rank == 0)
        and not (replicated_over_data and topology.data_rank)
    ]
    zero = torch.zeros((), device=topology.device)
    squares = torch.stack([g.float().square().sum() for g in counted]).sum() if counted else zero
    # Sum over WORLD: each part of the gradient is counted on exactly one rank.
    dist.all_reduce(squares, group=topology.world_group)
    return squares.sqrt()


def scale_gradients(parameters: Iterable[torch.nn.Parameter], norm: torch.Tensor, max_norm: float) -> None:
    """Clip in place to `max_norm` by the given global norm, without a host synchronisation; 0 leaves gradients alone."""
    if max_norm > 0:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for parameter in parameters:
            if parameter.grad is not None:
                local(parameter.grad).mul_(factor)
