"""The vision encoder: positioned patches in, tokens and one embedding a sample out.

    patches -> patch embedding -> norm -> megatron-core TransformerBlock with 3-D rotary angles -> norm -> attention pooling

All samples of a batch travel as one token sequence [N, 1, D]: sequence parallelism then splits tokens evenly whatever the
samples' lengths, and rotary angles are per token in every layout.

Shape suffixes: N tokens of all samples, B samples, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.transformer_block import TransformerBlock

from megatron_ovenc.config import ModelConfig, ParallelConfig
from megatron_ovenc.config.fp8_shapes import token_multiple
from megatron_ovenc.model.attention import Packing, Segments
from megatron_ovenc.model.layer_specs import BLOCK_SPECS, Norm, transformer_config
from megatron_ovenc.model.patch_embedding import PatchEmbedding
from megatron_ovenc.model.pooling import AttentionPool
from megatron_ovenc.model.rope import rotary_angles
from megatron_ovenc.parallel.device import compute_capability
from megatron_ovenc.parallel.topology import Topology


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderOutput:
    """What the encoder says about a batch."""

    last_hidden: torch.Tensor
    """[N, D] tokens after the last norm."""
    pooled: torch.Tensor
    """fp32 [B, D] embeddings."""


class Encoder(torch.nn.Module):
    """A ViT for images, documents and clips. Parameters are uninitialised; see `parameters.py`."""

    def __init__(self, model: ModelConfig, parallel: ParallelConfig, topology: Topology) -> None:
        super().__init__()
        self.config = model
        self.sequence_parallel = parallel.sequence_parallel
        self.token_multiple = token_multiple(model, parallel)
        self.tensor_group = topology.tensor_group
        groups = ProcessGroupCollection()
        groups.tp, groups.pp, groups.cp = topology.tensor_group, topology.self_group, topology.self_group
        config = transformer_config(model, parallel, compute_capability(topology.device))
        self.patch_embedding = PatchEmbedding(model.patch_size, model.hidden_size)
        self.pre_norm = Norm(config, model.hidden_size, model.norm_eps)
        self.block = TransformerBlock(
            config, BLOCK_SPECS[model.layers](model, parallel), post_layer_norm=False, pg_collection=groups
        )
        self.post_norm = Norm(config, model.hidden_size, model.norm_eps)
        self.pool = AttentionPool(model)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile every block by itself, in place: names of parameters stay, and equal blocks share the code."""
        for layer in self.block.layers:
            layer.compile(backend=backend)

    def forward(self, patches: torch.Tensor, positions: torch.Tensor, cu_seqlens: torch.Tensor) -> EncoderOutput:
        """Encode a packed batch.

        Args:
            patches: [N, 3 * patch * patch], uint8 raw or float normalised.
            positions: integer [N, 3]: t, row, col.
            cu_seqlens: int32 [B + 1] on the host; sample b owns rows cu_seqlens[b]:cu_seqlens[b + 1].
        """
        assert cu_seqlens.device.type == "cpu", "cu_seqlens is a shape: it stays on the host"
        tokens = patches.shape[0]
        samples = segments = Segments.of(cu_seqlens, patches.device)
        hidden_ND = self.pre_norm(self.patch_embedding(patches))
        angles_Nd = rotary_angles(
            positions, self.config.hidden_size // self.config.num_heads, self.config.rope_theta, self.config.rope
        )
        if missing := -tokens % self.token_multiple:
            # The few tokens that are missing form a sample of their own, which nobody reads.
            hidden_ND = torch.nn.functional.pad(hidden_ND, (0, 0, 0, missing))
            angles_Nd = torch.nn.functional.pad(angles_Nd, (0, 0, 0, missing))
            segments = Segments.of(torch.cat([cu_seqlens, cu_seqlens.new_tensor([tokens + missing])]), patches.device)
        if self.sequence_parallel:
            hidden_ND = scatter_to_sequence_parallel_region(hidden_ND, group=self.tensor_group)
        packing = Packing(qkv_format="sbhd", segments=segments)
        hidden_ND = self.block(
            hidden_ND[:, None], attention_mask=None, rotary_pos_emb=angles_Nd[:, None, None], packed_seq_params=packing
        )[:, 0]
        if self.sequence_parallel:
            # What follows is computed alike on every tensor rank, so backward takes a slice instead of a sum.
            hidden_ND = gather_from_sequence_parallel_region(
                hidden_ND, tensor_parallel_output_grad=False, group=self.tensor_group
            )
        hidden_ND = self.post_norm(hidden_ND[:tokens])
        return EncoderOutput(last_hidden=hidden_ND, pooled=self.pool(hidden_ND, samples).float())
