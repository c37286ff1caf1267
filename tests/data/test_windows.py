"""Windows: inside the picture, inside the budget, in the picture's aspect, and the same for the same seed."""

from __future__ import annotations

import math

import pytest

from megatron_ovenc.data.order import generator
from megatron_ovenc.data.windows import AREA, grid_within, native, square

SIZES = [(1, 5000), (5000, 1), (1, 1), (13, 15), (640, 427), (3000, 2000), (199, 1999), (7, 300)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 64, 256, 5000])
def test_grids_keep_to_the_budget_and_as_far_as_whole_patches_allow_to_the_aspect(width, height, tokens):
    rows, cols = grid_within(height, width, tokens=tokens, patch_size=14)
    assert rows >= 1
    assert cols >= 1
    assert rows * cols <= tokens
    assert (rows <= max(1, math.ceil(height / 14))) and (cols <= max(1, math.ceil(width / 14)))  # never enlarged
    assert (rows <= cols) == (height <= width) or rows == cols
    if min(rows, cols) >= 4:
        assert cols / rows == pytest.approx(width / height, rel=0.5 / rows + 0.5 / cols)


@pytest.mark.parametrize(
    ("size", "tokens", "grid"),
    [
        ((1000, 1000), 256, (16, 16)),
        ((28, 42), 256, (3, 2)),  # smaller than the budget: as it is
        ((1500, 1000), 256, (13, 19)),
        ((1000, 1000), 3, (1, 1)),
        ((5000, 1), 256, (1, 256)),
        ((300, 1), 256, (1, 21)),
    ],
)
def test_grids_of_known_pictures(size, tokens, grid):
    assert grid_within(size[1], size[0], tokens=tokens, patch_size=14) == grid


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_random_windows_lie_inside_the_picture_and_repeat_with_their_seed(width, height):
    for number in range(50):
        one, again = (native(width, height, tokens=64, patch_size=14, rng=generator("w", number)) for _ in range(2))
        assert one == again
        other = square(width, height, size=28, rng=generator("w", number))
        for left, top, right, bottom in (one.box, other.box):
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
        wide, high = one.box[2] - one.box[0], one.box[3] - one.box[1]
        assert wide / high == pytest.approx(width / height)
        assert AREA[0] <= wide * high / (width * height) * (1 + 1e-9) <= AREA[1] + 1e-6


def test_without_a_generator_native_windows_show_all_of_the_picture():
    window = native(640, 427, tokens=100, patch_size=14, rng=None)
    assert window.box == (0, 0, 640, 427)
    assert not window.flip
