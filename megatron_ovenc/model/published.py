"""The published form of an encoder: names and shapes of the reference's state dict, keys of its config.json.

Weights go both ways bit for bit. The only change of layout is megatron-core's fused query-key-value, which keeps a head's
q, k and v together: [heads, 3, head_dim, ...].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from megatron_ovenc.config import ConfigError, ModelConfig

_CONFIG_KEYS = {
    "hidden_size": "hidden_size",
    "ffn_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "patch_size": "patch_size",
    "norm": "layer_norm_type",
    "norm_eps": "layer_norm_eps",
    "rope": "rope_type",
    "rope_theta": "rope_theta",
}
"""Key of the `model` section -> key of a published config.json."""
_GELUS: dict[Literal["erf", "tanh"], str] = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}
"""model.gelu -> `hidden_act`."""


def to_published_config(model: ModelConfig) -> dict[str, Any]:
    """The published configuration's keys for this model."""
    return {theirs: getattr(model, ours) for ours, theirs in _CONFIG_KEYS.items()} | {"hidden_act": _GELUS[model.gelu]}


def from_published_config(published: Mapping[str, Any], source: str) -> ModelConfig:
    """The `model` section that a published configuration describes.

    Raises:
        ConfigError: it describes something that this encoder is not.
    """
    for key, only in (("use_head", True), ("num_channels", 3), ("attention_dropout", 0.0)):
        if published.get(key, only) != only:
            raise ConfigError(f"{source} has {key}={published[key]}; this encoder supports {key}={only} only")
    activations = {theirs: ours for ours, theirs in _GELUS.items()}
    activation = published.get("hidden_act", "gelu")
    if activation not in activations:
        raise ConfigError(
            f"{source} has hidden_act={activation}; this encoder supports {' and '.join(activations)} only"
        )
    sizes = {ours: published[theirs] for ours, theirs in _CONFIG_KEYS.items() if theirs in published}
    return ModelConfig(**sizes, gelu=activations[activation])


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
        ConfigError: (on use) a tensor is missing or has another shape.
    """

    def take(name: str, numel: int) -> torch.Tensor:
        if name not in published:
            raise ConfigError(f"{source} has no tensor `{name}`; is it an encoder with a pooling head (use_head)?")
        if published[name].numel() != numel:
            raise ConfigError(
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
