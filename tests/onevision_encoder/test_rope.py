"""Rotary angles: their formula, and that no cast or way of loading spoils them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from onevision_encoder import OneVisionEncoderModel
from onevision_encoder.rope_onevision_encoder import apply_rope, rope_cos_sin, rope_frequencies
from tests.onevision_encoder.conftest import largest_difference

# Corners of the largest training grid (64 frames, 128 x 128 patches), and a page so tall that bfloat16 has no 401.
CORNERS = torch.tensor([[[0, 0, 0], [63, 127, 127], [5, 401, 1], [63, 0, 126]]])


def expected_angles(position: list[int], head_dim: int, kind: str) -> list[float]:
    """Angles of one position in double precision, written out channel by channel."""
    unit = head_dim // 32
    sizes = (4 * unit, 6 * unit, 6 * unit)
    phi = [x * 10000 ** (-i / size) for x, size in zip(position, sizes, strict=True) for i in range(size)]
    return [phi[j % len(phi) if kind == "reference" else j // 2] for j in range(head_dim)]


def test_frequencies_are_normalised_by_each_axis() -> None:
    t, row, column = rope_frequencies(64, 10000.0, torch.device("cpu"))
    assert t.tolist() == pytest.approx([10 ** (-i / 2) for i in range(8)], rel=1e-6)
    assert row.tolist() == column.tolist() == pytest.approx([10000 ** (-i / 12) for i in range(12)], rel=1e-6)


@pytest.mark.parametrize("kind", ["reference", "rotation"])
@pytest.mark.parametrize("head_dim", [32, 64, 96])
def test_angles_follow_the_formula(kind: str, head_dim: int) -> None:
    cos, sin = rope_cos_sin(CORNERS, head_dim, 10000.0, kind)
    angles = [expected_angles(position, head_dim, kind) for position in CORNERS[0].tolist()]
    # fp32 resolves an angle of 401 radians to 3e-5.
    assert largest_difference(cos[0], torch.tensor([[math.cos(a) for a in row] for row in angles])) < 6e-5
    assert largest_difference(sin[0], torch.tensor([[math.sin(a) for a in row] for row in angles])) < 6e-5


def test_pairs_are_interleaved() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    quarter = apply_rope(x, torch.zeros(4), torch.ones(4))
    assert quarter.tolist() == [-2.0, 1.0, -4.0, 3.0]


def test_rotation_keeps_norms_and_depends_on_relative_positions_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 64)
    a, b, shift = torch.tensor([3, 7, 1]), torch.tensor([9, 2, 30]), torch.tensor([20, 11, 50])

    def turn(x: Tensor, position: Tensor, kind: str) -> Tensor:
        return apply_rope(x, *rope_cos_sin(position, 64, 10000.0, kind))

    def score(kind: str, offset: Tensor) -> float:
        return float(turn(query, a + offset, kind) @ turn(key, b + offset, kind))

    assert float(turn(query, a, "rotation").norm()) == pytest.approx(float(query.norm()), rel=1e-5)
    assert score("rotation", shift) == pytest.approx(score("rotation", shift * 0), abs=1e-3)
    # What the released weights were trained with is no rotation; if this fails, they no longer load correctly.
    assert abs(score("reference", shift) - score("reference", shift * 0)) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_keep_fp32_angles(build: Callable[..., OneVisionEncoderModel], dtype: torch.dtype) -> None:
    model = build()
    pixels, seen = torch.randn(1, 3, 8, 8), []

    def remember(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments)

    model.encoder.layers[0].register_forward_pre_hook(remember)
    with torch.no_grad():
        exact = model(pixels, patch_positions=CORNERS)
        rounded = model.to(dtype)(pixels, patch_positions=CORNERS)
    (_, cos, sin, _), (tokens, low_cos, low_sin, _) = seen
    assert tokens.dtype == rounded.pooler_output.dtype == dtype
    assert low_cos.dtype == low_sin.dtype == torch.float32
    assert torch.equal(cos, low_cos)
    assert torch.equal(sin, low_sin)
    scale = float(exact.last_hidden_state.abs().max())
    assert largest_difference(exact.last_hidden_state, rounded.last_hidden_state) < 0.05 * scale


def test_products_are_formed_in_the_dtype_of_the_queries() -> None:
    x = torch.randn(4, 64).bfloat16()
    cos, sin = rope_cos_sin(CORNERS[0], 64, 10000.0, "reference")
    assert apply_rope(x, cos, sin).dtype == torch.bfloat16
    assert torch.equal(apply_rope(x, cos, sin), apply_rope(x, cos.bfloat16(), sin.bfloat16()))


def test_model_has_no_buffers(build: Callable[..., OneVisionEncoderModel]) -> None:
    assert list(build().buffers()) == []
