"""Layers as data: which modules a transformer block is made of, and the megatron-core configuration they share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch.utils.checkpoint import checkpoint

from megatron_ovenc.config import Fp8Config, ModelConfig, ParallelConfig
from megatron_ovenc.model.attention import PackedCoreAttention
from megatron_ovenc.model.fp8_linear import (
    Fp8ColumnParallelLinear,
    Fp8RowParallelLinear,
    PreciseFp8ColumnParallelLinear,
    PreciseFp8RowParallelLinear,
)
from megatron_ovenc.parallel.requirements import Recipe, resolve_recipe

GELU = {"erf": F.gelu, "tanh": partial(F.gelu, approximate="tanh")}
"""model.gelu -> activation."""


def transformer_config(
    model: ModelConfig, parallel: ParallelConfig, capability: tuple[int, int] | None = None
) -> TransformerConfig:
    """megatron-core's view of the encoder, on a GPU of the given compute capability (None: on a CPU).

    Fusions are off where they change the function: the fused bias-GELU is the tanh approximation, the weights want erf; the
    fused rotation knows no angles per token. Weights are fp32 and left uninitialised: `parameters.py` fills them, independently
    of the layout.
    """
    # megatron-core's fused GELU is the tanh approximation, and goes by the name of F.gelu.
    fuse_gelu = model.layers == "te" and model.gelu == "tanh"
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_size,
        num_attention_heads=model.num_heads,
        tensor_model_parallel_size=parallel.tensor,
        sequence_parallel=parallel.sequence_parallel,
        normalization={"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}[model.norm],
        layernorm_epsilon=model.norm_eps,
        activation_func=F.gelu if fuse_gelu else GELU[model.gelu],
        add_bias_linear=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        rotary_interleaved=True,
        apply_rope_fusion=False,
        bias_activation_fusion=fuse_gelu,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        use_cpu_initialization=True,
        perform_initialization=False,
        params_dtype=torch.float32,
        # Nobody would tell Transformer Engine that weights have changed: it must not keep their FP8 copies over micro-batches.
        disable_parameter_transpose_cache=True,
        **_fp8_options(parallel.fp8, resolve_recipe(parallel.fp8.recipe, capability) if model.layers == "te" else None),
    )


def _fp8_options(config: Fp8Config, recipe: Recipe | None) -> dict[str, Any]:
    """megatron-core's fields for a recipe of Transformer Engine. Weights stay fp32: FP8 exists inside products only."""
    if recipe is None:
        return {}
    options: dict[str, Any] = {
        # hybrid: e4m3 forward, e5m2 gradients. Fine-grained scales leave gradients little range to cover, and use e4m3 for all.
        "fp8": "hybrid" if recipe in ("tensorwise", "delayed") else "e4m3",
        "fp8_recipe": recipe,
        "first_last_layers_bf16": config.first_last_bf16 > 0,
        "num_layers_at_start_in_bf16": config.first_last_bf16,
        "num_layers_at_end_in_bf16": config.first_last_bf16,
    }
    if recipe == "delayed":
        options |= {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
    return options


class Norm:
    """Builds torch's LayerNorm or RMSNorm for megatron-core, whose own wrapper refuses sequence parallelism.

    A class, because megatron-core instantiates classes of a specification and passes functions through uncalled.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float) -> torch.nn.Module:  # type: ignore[misc]
        kind = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": torch.nn.RMSNorm}[config.normalization]
        return kind(hidden_size, eps=eps)


class RecomputedLayer(TransformerLayer):
    """A layer whose activations are recomputed in backward. megatron-core's own recomputation reads CUDA random states."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._compute = super().forward

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what is recomputed. Compiling the recomputation itself would come to nothing: attention interrupts it."""
        self._compute = torch.compile(super().forward, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As TransformerLayer.forward; without dropout there is no random state to preserve."""
        if not torch.is_grad_enabled():
            return self._compute(*args, **kwargs)
        return checkpoint(self._compute, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def layer_spec(recompute: bool, column: type[ColumnParallelLinear], row: type[RowParallelLinear]) -> ModuleSpec:
    """A layer of the given tensor-parallel linears around attention by torch; runs on any device."""
    return ModuleSpec(
        module=RecomputedLayer if recompute else TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.no_mask},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column, core_attention=PackedCoreAttention, linear_proj=row
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=Norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row)),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def sdpa_block(model: ModelConfig, parallel: ParallelConfig) -> TransformerBlockSubmodules:
    """Every layer in parallel.precision."""
    layer = layer_spec(parallel.recompute, ColumnParallelLinear, RowParallelLinear)
    return TransformerBlockSubmodules(layer_specs=[layer] * model.num_layers)


def fp8_torch_block(model: ModelConfig, parallel: ParallelConfig) -> TransformerBlockSubmodules:
    """Linear layers on `torch._scaled_mm`, but for the first and last layers of parallel.fp8.first_last_bf16."""
    kept = parallel.fp8.first_last_bf16
    high = layer_spec(parallel.recompute, ColumnParallelLinear, RowParallelLinear)
    linears: dict[str, tuple[type[ColumnParallelLinear], type[RowParallelLinear]]] = {
        "fp8": (Fp8ColumnParallelLinear, Fp8RowParallelLinear),
        "high": (PreciseFp8ColumnParallelLinear, PreciseFp8RowParallelLinear),
    }
    fp8 = layer_spec(parallel.recompute, *linears[parallel.fp8.weight_gradient])
    return TransformerBlockSubmodules(layer_specs=[high] * kept + [fp8] * (model.num_layers - 2 * kept) + [high] * kept)


def te_block(model: ModelConfig, parallel: ParallelConfig) -> TransformerBlockSubmodules:
    """Transformer Engine's modules; which layers run in FP8 is megatron-core's business (see `transformer_config`)."""
    from megatron_ovenc.model.te_layers import te_layer  # nothing else may import it: it needs CUDA libraries

    return TransformerBlockSubmodules(layer_specs=[te_layer(parallel.recompute)] * model.num_layers)


BLOCK_SPECS: dict[str, Callable[[ModelConfig, ParallelConfig], TransformerBlockSubmodules]] = {
    "sdpa": sdpa_block,
    "te": te_block,
    "fp8_torch": fp8_torch_block,
}
"""model.layers -> specification of the block."""
