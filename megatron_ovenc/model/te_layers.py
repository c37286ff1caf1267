"""Layers of Transformer Engine, through megatron-core's wrappers. Imported by the `te` specification only: a GPU is needed.

LayerNorm is fused with the linear layer behind it; GELU is not fused where the configuration says erf, since Transformer Engine
knows the tanh approximation only. Rotary angles are applied by megatron-core, unfused: the fused kernel knows one angle a position
of the sequence, ours are one a token.

Not run yet on a GPU: see docs/gpu.md.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.extensions.transformer_engine import (
    TEDotProductAttention,
    TELayerNormColumnParallelLinear,
    TERowParallelLinear,
)
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from transformer_engine.pytorch.distributed import checkpoint

from megatron_ovenc.model.attention import Packing, Segments


class TEPackedAttention(TEDotProductAttention):
    """Transformer Engine's attention (flash-attn or cuDNN, its choice) inside samples of a packed sequence."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Packing | None = None,
        **unused: Any,
    ) -> torch.Tensor:
        """Attend; query, key, value [N, 1, H, d] -> [N, 1, H * d]: `bshd` where samples are alike, else `thd`."""
        assert packed_seq_params is not None and attention_mask is None and attention_bias is None
        segments = packed_seq_params.segments
        assert segments is not None
        layout = te_layout(segments)
        operands = [x.squeeze(1) for x in (query, key, value)]
        if segments.alike:
            operands = [x.unflatten(0, (len(segments.lengths), -1)) for x in operands]
        output = super().forward(*operands, None, attn_mask_type, packed_seq_params=layout)
        return output.reshape(query.shape[0], 1, -1)


def te_layout(segments: Segments) -> PackedSeqParams:
    """How samples lie in memory, in Transformer Engine's terms."""
    if segments.alike:
        return PackedSeqParams(qkv_format="bshd")
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=segments.offsets,
        cu_seqlens_kv=segments.offsets,
        max_seqlen_q=segments.longest,
        max_seqlen_kv=segments.longest,
    )


class TERecomputedLayer(TransformerLayer):
    """A layer whose activations are recomputed in backward, by Transformer Engine: torch's checkpoint would recompute outside
    of the FP8 context that megatron-core opens around the layer."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As TransformerLayer.forward."""
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)


def te_layer(recompute: bool) -> ModuleSpec:
    """A layer of Transformer Engine's modules. Norms live inside the linear layers behind them."""
    return ModuleSpec(
        module=TERecomputedLayer if recompute else TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=IdentityOp,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.no_mask},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=TELayerNormColumnParallelLinear,
                    core_attention=TEPackedAttention,
                    linear_proj=TERowParallelLinear,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=IdentityOp,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(linear_fc1=TELayerNormColumnParallelLinear, linear_fc2=TERowParallelLinear),
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )
