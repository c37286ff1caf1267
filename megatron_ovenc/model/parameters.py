"""Names, global shapes and values of the encoder's parameters, independent of the layout.

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

from megatron_ovenc.config import ModelConfig
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


def parameter_layouts(encoder: Encoder, topology: Topology) -> dict[str, ParameterLayout]:
    """Layout of every parameter, by name. Call before FSDP, while parameters have their tensor-parallel shape."""
    layouts = {}
    for name, parameter in encoder.named_parameters():
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
    for name, parameter in encoder.named_parameters():
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


_LAYER_NAMES = {
    "input_layernorm.weight": "layer_norm1.weight",
    "input_layernorm.bias": "layer_norm1.bias",
    "self_attention.linear_proj.weight": "self_attn.out_proj.weight",
    "self_attention.linear_proj.bias": "self_attn.out_proj.bias",
    "pre_mlp_layernorm.weight": "layer_norm2.weight",
    "pre_mlp_layernorm.bias": "layer_norm2.bias",
    "mlp.linear_fc1.weight": "mlp.fc1.weight",
    "mlp.linear_fc1.bias": "mlp.fc1.bias",
    "mlp.linear_fc2.weight": "mlp.fc2.weight",
    "mlp.linear_fc2.bias": "mlp.fc2.bias",
}
_OUTER_NAMES = {
    "patch_embedding.weight": "embeddings.patch_embedding.weight",
    "pre_norm.weight": "layernorm_pre.weight",
    "pre_norm.bias": "layernorm_pre.bias",
    "post_norm.weight": "layernorm_post.weight",
    "post_norm.bias": "layernorm_post.bias",
    "pool.probe": "head.probe",
    "pool.query_key_value.weight": "head.attention.in_proj_weight",
    "pool.query_key_value.bias": "head.attention.in_proj_bias",
    "pool.projection.weight": "head.attention.out_proj.weight",
    "pool.projection.bias": "head.attention.out_proj.bias",
    "pool.norm.weight": "head.norm.weight",
    "pool.fc1.weight": "head.mlp.fc1.weight",
    "pool.fc1.bias": "head.mlp.fc1.bias",
    "pool.fc2.weight": "head.mlp.fc2.weight",
    "pool.fc2.bias": "head.mlp.fc2.bias",
}
_FUSED_QKV = "self_attention.linear_qkv."


def _published_names(name: str) -> tuple[str, ...]:
    """Names in a published state dict: one, or three for the fused query-key-value."""
    if name in _OUTER_NAMES:
        return (_OUTER_NAMES[name],)
    _, _, index, rest = name.split(".", 3)
    prefix = f"encoder.layers.{index}."
    if rest.startswith(_FUSED_QKV):
        return tuple(f"{prefix}self_attn.{x}_proj.{rest.removeprefix(_FUSED_QKV)}" for x in "qkv")
    return (prefix + _LAYER_NAMES[rest],)


def to_published(state: Mapping[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """Global tensors under this encoder's names -> a state dict of the Hugging Face model, bit for bit.

    megatron-core keeps q, k and v of a head together: [heads, 3, head_dim, ...]; published weights keep them apart.
    """
    published = {}
    for name, tensor in state.items():
        names = _published_names(name)
        if len(names) == 3:
            parts = tensor.unflatten(0, (model.num_heads, 3, -1)).unbind(1)
            published.update({n: part.flatten(0, 1).contiguous() for n, part in zip(names, parts, strict=True)})
        elif name == "patch_embedding.weight":
            published[names[0]] = tensor.unflatten(1, (3, model.patch_size, model.patch_size))
        else:
            published[names[0]] = tensor.view(1, 1, -1) if name == "pool.probe" else tensor
    return published


def published_values(
    published: Mapping[str, torch.Tensor], model: ModelConfig, source: str
) -> Callable[[str, tuple[int, ...]], torch.Tensor]:
    """Values for `fill_parameters` out of a published state dict.

    Args:
        published: tensors under the reference's names.
        model: the configuration they must fit.
        source: where they came from, for errors.

    Raises:
        ValueError: (on use) a tensor is missing or has another shape.
    """

    def take(name: str, numel: int) -> torch.Tensor:
        if name not in published:
            raise ValueError(f"{source} has no tensor `{name}`; is it an encoder with a pooling head (use_head)?")
        if published[name].numel() != numel:
            raise ValueError(
                f"{source}: `{name}` has shape {tuple(published[name].shape)}, which does not fit the `model` section "
                f"(hidden_size={model.hidden_size}, ffn_size={model.ffn_size}, patch_size={model.patch_size})"
            )
        return published[name]

    def value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        names = _published_names(name)
        parts = [take(n, math.prod(shape) // len(names)) for n in names]
        if len(names) == 1:
            return parts[0].reshape(shape)
        return torch.stack([part.unflatten(0, (model.num_heads, -1)) for part in parts], dim=1).reshape(shape)

    return value
