"""Attention inside samples of a packed token sequence: no mask, no padding, any device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig


def _runs(lengths: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Runs of equal (query length, key length): (query length, key length, samples)."""
    return [(q, k, len(list(run))) for (q, k), run in groupby(lengths)]


def attend(
    query_QHd: torch.Tensor,
    key_NHd: torch.Tensor,
    value_NHd: torch.Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> torch.Tensor:
    """Bidirectional attention of each sample's queries over the same sample's keys.

    Neighbours of equal length share one dense call, so a batch of equal samples is a single fused kernel.

    Args:
        query_QHd: queries of all samples, concatenated; H heads of d channels.
        key_NHd, value_NHd: keys and values of all samples, concatenated.
        query_lengths, key_lengths: host integers, one a sample.

    Returns:
        [Q, H, d].
    """
    outputs, q_start, k_start = [], 0, 0
    for q_len, k_len, count in _runs(zip(query_lengths, key_lengths, strict=True)):
        q_end, k_end = q_start + q_len * count, k_start + k_len * count
        q = query_QHd[q_start:q_end].unflatten(0, (count, q_len)).transpose(1, 2)
        k = key_NHd[k_start:k_end].unflatten(0, (count, k_len)).transpose(1, 2)
        v = value_NHd[k_start:k_end].unflatten(0, (count, k_len)).transpose(1, 2)
        outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
        q_start, k_start = q_end, k_end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class SDPACoreAttention(torch.nn.Module):
    """megatron-core's `core_attention` on torch's scaled_dot_product_attention.

    The tokens of all samples come as one sequence of batch size one; `packed_seq_params.cu_seqlens_q` (on the host) says where
    samples end. megatron-core's own DotProductAttention needs CUDA and refuses packed input; its ViT spec is causal.
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
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """Attend; query, key, value [N, 1, H, d] -> [N, 1, H * d], H being this rank's heads."""
        assert packed_seq_params is not None and attention_mask is None and attention_bias is None
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        output = attend(query.squeeze(1), key.squeeze(1), value.squeeze(1), lengths, lengths)
        return output.flatten(1).unsqueeze(1)
