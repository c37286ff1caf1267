"""Which kernel attends, and that the one of the CPU is attention within samples."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from megatron_ovenc.model import attention
from megatron_ovenc.model.attention import Segments, attend, attend_in_blocks, choose_kernel

BOTH = frozenset({"flash_attn", "torch_varlen"})


@pytest.mark.parametrize(
    ("alike", "device", "dtype", "available", "expected"),
    [
        (True, "cuda", torch.bfloat16, BOTH, "dense"),
        (True, "cpu", torch.float32, BOTH, "dense"),
        (False, "cuda", torch.bfloat16, BOTH, "flash_attn"),
        (False, "cuda", torch.float16, BOTH - {"flash_attn"}, "torch_varlen"),
        (False, "cuda", torch.bfloat16, frozenset(), "blocks"),
        (False, "cuda", torch.float32, BOTH, "blocks"),
        (False, "cpu", torch.bfloat16, BOTH, "blocks"),
    ],
)
def test_kernel(alike: bool, device: str, dtype: torch.dtype, available: frozenset[str], expected: str) -> None:
    assert choose_kernel(alike, device, dtype, available) == expected


def test_segments() -> None:
    segments = Segments.of(torch.tensor([0, 3, 10, 11], dtype=torch.int32), torch.device("cpu"))
    assert (segments.lengths, segments.longest, segments.alike) == ((3, 7, 1), 7, False)
    assert segments.offsets.tolist() == [0, 3, 10, 11]
    assert Segments.single(3, torch.device("cpu")).offsets.tolist() == [0, 1, 2, 3]
    assert Segments.single(3, torch.device("cpu")).alike


def operands(lengths: list[int]) -> tuple[list[torch.Tensor], Segments]:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    tensors = [torch.randn(sum(lengths), 2, 32, generator=generator) for _ in range(3)]
    return tensors, Segments.of(offsets, torch.device("cpu"))


@pytest.mark.parametrize("lengths", [[4, 4, 4], [3, 7, 7, 1], [5]])
def test_attention_stays_inside_samples(lengths: list[int]) -> None:
    (q, k, v), segments = operands(lengths)
    output = attend(q, k, v, segments, segments)
    mask = torch.block_diag(*[torch.ones(n, n) for n in lengths]).bool()
    whole = F.scaled_dot_product_attention(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), attn_mask=mask)
    torch.testing.assert_close(output, whole.transpose(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kernel", "module", "function"),
    [
        ("flash_attn", "flash_attn", "flash_attn_varlen_func"),
        ("torch_varlen", "torch.nn.attention.varlen", "varlen_attn"),
    ],
)
def test_what_ragged_kernels_are_called_with(
    monkeypatch: pytest.MonkeyPatch, kernel: str, module: str, function: str
) -> None:
    """The kernels themselves need a GPU: a stand-in with their documented signature takes their place."""

    def stand_in(q, k, v, offsets_q, offsets_k, longest_q, longest_k):  # type: ignore[no-untyped-def]
        assert offsets_q.dtype == offsets_k.dtype == torch.int32
        lengths = [x.diff().tolist() for x in (offsets_q, offsets_k)]
        assert (longest_q, longest_k) == tuple(max(x) for x in lengths)
        return attend_in_blocks(q, k, v, *lengths)

    fake = types.ModuleType(module)
    setattr(fake, function, stand_in)
    monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setattr(attention, "choose_kernel", lambda *_: kernel)
    (q, k, v), keys = operands([3, 7, 1])
    probes = Segments.single(3, torch.device("cpu"))
    expected = attend_in_blocks(q[:3], k, v, probes.lengths, keys.lengths)
    torch.testing.assert_close(attend(q[:3], k, v, probes, keys), expected)
