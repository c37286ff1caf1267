"""Global shapes and values of the encoder's parameters, independent of the layout.

Every parameter is a rectangle of a global tensor: tensor parallelism cuts along one axis, or not at all. Values come as global
tensors (random ones keyed by seed and name, or a Hugging Face state dict) and each rank copies its rectangle, so that neither
initialisation nor loading depends on the number of ranks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.parallel.topology import Topology


@dataclass(frozen=True, slots=True)
class ParameterLayout:
    """Where a tensor rank's copy of a parameter lies in the global tensor."""

    global_shape: tuple[int, ...]
    split_axis: int | None
    """Axis cut over the tensor group; None: every tensor rank has the whole."""
    partial_gradient: bool
    """Under sequence parallelism each tensor rank has seen only its tokens: gradients must be summed over the group."""


_SPLIT_AXIS = {
    "linear_qkv.weight": 0,
    "linear_qkv.bias": 0,
    "linear_proj.weight": 1,
    "mlp.linear_fc1.weight": 0,
    "mlp.linear_fc1.bias": 0,
    "mlp.linear_fc2.weight": 1,
}
"""Tensor-parallel parameters of a block: column-parallel layers are cut by output, row-parallel ones by input."""


_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""Transformer Engine's names of norms that live in the linear layer behind them -> the names of all other layers."""


def named_parameters(encoder: Encoder) -> dict[str, torch.nn.Parameter]:
    """Parameters by the name that they have in checkpoints, whatever `model.layers` calls them.

    Buffers and Transformer Engine's `_extra_state` are no parameters: nothing of FP8 is saved.
    """
    named = {}
    for name, parameter in encoder.named_parameters():
        for fused, apart in _FUSED_NORMS.items():
            name = name.replace(fused, apart)
        named[name] = parameter
    return named


def parameter_layouts(encoder: Encoder, topology: Topology) -> dict[str, ParameterLayout]:
    """Layout of every parameter, by name. Call before FSDP, while parameters have their tensor-parallel shape."""
    layouts = {}
    for name, parameter in named_parameters(encoder).items():
        in_block = name.startswith("block.")
        axis = next((axis for end, axis in _SPLIT_AXIS.items() if in_block and name.endswith(end)), None)
        shape = list(parameter.shape)
        if axis is not None:
            shape[axis] *= topology.tensor
        # Inside the block, norms and row-parallel biases act on this rank's tokens only.
        partial = encoder.sequence_parallel and in_block and axis is None
        layouts[name] = ParameterLayout(tuple(shape), axis, partial)
    return layouts


@torch.no_grad()
def fill_parameters(
    encoder: Encoder,
    layouts: Mapping[str, ParameterLayout],
    topology: Topology,
    value: Callable[[str, tuple[int, ...]], torch.Tensor],
) -> None:
    """Copy each rank's rectangle out of `value(name, global shape)` into the encoder's (unsharded) parameters."""
    for name, parameter in named_parameters(encoder).items():
        layout = layouts[name]
        tensor = value(name, layout.global_shape)
        assert tuple(tensor.shape) == layout.global_shape, (name, tuple(tensor.shape), layout.global_shape)
        if layout.split_axis is not None:
            tensor = tensor.chunk(topology.tensor, dim=layout.split_axis)[topology.tensor_rank]
        parameter.copy_(tensor)


def random_values(seed: int, std: float) -> Callable[[str, tuple[int, ...]], torch.Tensor]:
    """Initial values: N(0, std) weights, zero biases, unit norms; the pooling query N(0, 1) and its q, k, v Xavier-uniform."""

    def value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        key = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
        if name == "pool.probe":
            return torch.randn(shape, generator=generator)
        if name == "pool.query_key_value.weight":
            bound = math.sqrt(6 / sum(shape))
            return torch.empty(shape).uniform_(-bound, bound, generator=generator)
        if name.endswith("bias"):
            return torch.zeros(shape)
        if "norm" in name:
            return torch.ones(shape)
        return torch.randn(shape, generator=generator) * std

    return value
