"""Attention inside samples of a packed token sequence: no mask, no padding, any device.

kernel          when                                            what
dense           all samples alike                               one scaled_dot_product_attention over [B, H, n, d]
flash_attn      ragged, half precision, GPU, package installed  flash_attn_varlen_func
torch_varlen    ragged, half precision, GPU, torch >= 2.10      torch.nn.attention.varlen
blocks          everything else, the CPU included               one dense call for each run of samples that are alike
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_ovenc.parallel.device import to_device

Kernel = Literal["dense", "flash_attn", "torch_varlen", "blocks"]


@dataclass(frozen=True, slots=True)
class Segments:
    """Where samples lie in a packed sequence, as host integers and, for kernels, on the device."""

    lengths: tuple[int, ...]
    """Tokens of each sample."""
    offsets: torch.Tensor
    """int32 [B + 1] on the tokens' device: sample b owns rows offsets[b]:offsets[b + 1]."""

    @classmethod
    def of(cls, cu_seqlens: torch.Tensor, device: torch.device) -> Segments:
        """From offsets on the host, without a synchronisation."""
        return cls(tuple(cu_seqlens.diff().tolist()), to_device(cu_seqlens, device))

    @classmethod
    def single(cls, count: int, device: torch.device) -> Segments:
        """`count` samples of one token each."""
        return cls((1,) * count, torch.arange(count + 1, dtype=torch.int32, device=device))

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def alike(self) -> bool:
        """Whether all samples have as many tokens."""
        return len(set(self.lengths)) == 1


@dataclass
class Packing(PackedSeqParams):
    """megatron-core's parameters of a packed sequence, which its layers hand through to our core attention."""

    segments: Segments | None = None


def choose_kernel(alike: bool, device_type: str, dtype: torch.dtype, available: frozenset[str]) -> Kernel:
    """How to attend; see the module's table. `available`: which of flash_attn and torch_varlen exist here."""
    if alike:
        return "dense"
    if device_type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        if "flash_attn" in available:
            return "flash_attn"
        if "torch_varlen" in available:
            return "torch_varlen"
    return "blocks"


@functools.cache
def available_kernels() -> frozenset[str]:
    """Kernels for ragged batches that this environment has, by name."""
    modules = {"flash_attn": "flash_attn", "torch_varlen": "torch.nn.attention.varlen"}
    return frozenset(name for name, module in modules.items() if importlib.util.find_spec(module) is not None)


@torch.compiler.disable  # lengths are Python numbers: compiled code would be made anew for every batch
def attend(
    query_QHd: torch.Tensor, key_NHd: torch.Tensor, value_NHd: torch.Tensor, queries: Segments, keys: Segments
) -> torch.Tensor:
    """Bidirectional attention of each sample's queries over the same sample's keys.

    Args:
        query_QHd: queries of all samples, concatenated; H heads of d channels.
        key_NHd, value_NHd: keys and values of all samples, concatenated.
        queries, keys: where samples lie in them.

    Returns:
        [Q, H, d].
    """
    kernel = choose_kernel(queries.alike and keys.alike, query_QHd.device.type, query_QHd.dtype, available_kernels())
    arguments = (query_QHd, key_NHd, value_NHd, queries.offsets, keys.offsets, queries.longest, keys.longest)
    if kernel == "flash_attn":
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(*arguments)
    if kernel == "torch_varlen":
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(*arguments)  # type: ignore[return-value]
    return attend_in_blocks(query_QHd, key_NHd, value_NHd, queries.lengths, keys.lengths)


def attend_in_blocks(
    query_QHd: torch.Tensor,
    key_NHd: torch.Tensor,
    value_NHd: torch.Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> torch.Tensor:
    """`attend` by one dense call for each run of neighbours of equal lengths."""
    outputs, q_start, k_start = [], 0, 0
    for (q_len, k_len), run in groupby(zip(query_lengths, key_lengths, strict=True)):
        count = len(list(run))
        q_end, k_end = q_start + q_len * count, k_start + k_len * count
        q = query_QHd[q_start:q_end].unflatten(0, (count, q_len)).transpose(1, 2)
        k = key_NHd[k_start:k_end].unflatten(0, (count, k_len)).transpose(1, 2)
        v = value_NHd[k_start:k_end].unflatten(0, (count, k_len)).transpose(1, 2)
        outputs.append(_dense(q, k, v).transpose(1, 2).flatten(0, 1))
        q_start, k_start = q_end, k_end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of samples alike, [B, H, n, d] each."""
    if query.is_meta:  # a plan: without a device torch takes the plain formula, which takes memory that no kernel does
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]
    return F.scaled_dot_product_attention(query, key, value)


class PackedCoreAttention(torch.nn.Module):
    """megatron-core's `core_attention` on `attend`.

    The tokens of all samples come as one sequence of batch size one. megatron-core's own DotProductAttention needs CUDA and
    refuses packed input; its ViT spec is causal.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__()
        assert attn_mask_type == AttnMaskType.no_mask
        assert config.attention_dropout == 0 and softmax_scale is None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Packing | None = None,
    ) -> torch.Tensor:
        """Attend; query, key, value [N, 1, H, d] -> [N, 1, H * d], H being this rank's heads."""
        assert packed_seq_params is not None and attention_mask is None and attention_bias is None
        segments = packed_seq_params.segments
        assert segments is not None
        return attend(query.squeeze(1), key.squeeze(1), value.squeeze(1), segments, segments).flatten(1).unsqueeze(1)
