"""The compiled motion compensation against a NumPy restatement, on random vectors."""

import numpy as np
import pytest

from codec.compensate import RECORD_BYTES, Reference, motion_and_residual
from codec.types import cell_grid
from tests.codec import interpolation
from tests.codec.clips import texture

RECORD = np.dtype(
    {
        "names": ["source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y"],
        "formats": ["<i4", "u1", "u1", "<i2", "<i2", "<i4", "<i4"],
        "offsets": [0, 4, 5, 10, 12, 24, 28],
        "itemsize": 40,
    }
)
SIZES = [(96, 112), (98, 42), (64, 70), (17, 35), (8, 8)]


def quarters(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Corners (y, x) of the 8x8 quarters of all macroblocks that touch the picture."""
    high, wide = (-(-length // 16) * 16 for length in shape)
    return [(y, x) for y in range(0, high, 8) for x in range(0, wide, 8)]


def records(shape: tuple[int, int], vectors: dict[tuple[int, int], tuple[int, int]], source: int) -> np.ndarray:
    made = np.zeros(len(vectors), RECORD)
    for record, ((y, x), (across, down)) in zip(made, vectors.items(), strict=True):
        record["source"], record["w"], record["h"] = source, 8, 8
        record["dst_x"], record["dst_y"] = x + 4, y + 4
        record["motion_x"], record["motion_y"] = across, down
    return as_bytes(made)


def as_bytes(made: np.ndarray) -> np.ndarray:
    return made.view(np.uint8).reshape(-1, RECORD_BYTES)


def random_vectors(shape: tuple[int, int], seed: int, reach: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Also of whole macroblocks, so that blocks of all sizes are predicted."""
    rng = np.random.default_rng(seed)
    found = {}
    for y, x in quarters(shape):
        if rng.random() < 0.5 or (y // 16 * 16, x // 16 * 16) not in found:
            found[y, x] = tuple(rng.integers(-reach, reach + 1, 2).tolist())
        else:
            found[y, x] = found[y // 16 * 16, x // 16 * 16]
    return found


def field(shape: tuple[int, int], vectors: dict[tuple[int, int], tuple[int, int]]) -> np.ndarray:
    rows, cols = cell_grid(*shape)
    wide = np.zeros((rows + 4, cols + 4, 2), np.int32)
    for (y, x), vector in vectors.items():
        wide[y // 4 : y // 4 + 2, x // 4 : x // 4 + 2] = vector
    return wide[:rows, :cols]


def residual(picture: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Mean |difference| over lines 0 and 2 of each cell."""
    rows, cols = cell_grid(*picture.shape)
    found = np.zeros((rows, cols))
    for row, col in np.ndindex(rows, cols):
        lines = (slice(4 * row, 4 * row + 4, 2), slice(4 * col, 4 * col + 4))
        found[row, col] = np.abs(picture[lines].astype(int) - prediction[lines]).mean()
    return found


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("reach", [7, 60, 400])
def test_past_future_and_both_equal_the_restatement(shape: tuple[int, int], reach: int) -> None:
    picture, before, after = (texture(*shape, seed=seed) for seed in range(3))
    back, ahead = random_vectors(shape, 1, reach), random_vectors(shape, 2, reach)
    # Far outside, the restatement's padding ends, and with it its truth.
    back, ahead = ({k: v for k, v in some.items() if abs(v[0]) < 60 and abs(v[1]) < 60} for some in (back, ahead))
    kinds = {corner: np.random.default_rng(corner).integers(3) for corner in back.keys() | ahead.keys()}
    back = {corner: vector for corner, vector in back.items() if kinds[corner] != 1}
    ahead = {corner: vector for corner, vector in ahead.items() if kinds[corner] != 0}
    motion, found = motion_and_residual(
        picture,
        [Reference(luma=before, distance=2)],
        [Reference(luma=after, distance=3)],
        np.concatenate([records(shape, back, -1), records(shape, ahead, 1)]),
    )
    one = interpolation.predict(interpolation.reference(before), field(shape, back))
    other = interpolation.predict(interpolation.reference(after), field(shape, ahead))
    has_back, has_ahead = (field(shape, dict.fromkeys(some, (1, 1)))[..., 0].astype(bool) for some in (back, ahead))
    pixels = (np.arange(shape[0])[:, None] // 4, np.arange(shape[1]) // 4)
    prediction = np.where(has_ahead[pixels], np.where(has_back[pixels], interpolation.average(one, other), other), one)
    np.testing.assert_allclose(found, residual(picture, prediction), rtol=1e-6)
    from_past, from_future = -field(shape, back) / 8, field(shape, ahead) / 12
    count = np.maximum(has_back.astype(int) + has_ahead, 1)[..., None]
    np.testing.assert_allclose(motion, (from_past + from_future) / count, atol=1e-5)


@pytest.mark.parametrize("vector", [(2, 2), (2, 1), (3, 2), (1, 2), (2, 3)])
def test_filters_do_not_overflow_where_taps_and_pixels_conspire(vector: tuple[int, int]) -> None:
    """Pixels that are white where a tap is positive and black where it is negative, in both directions."""
    shape = (48, 96)
    signs = np.array([1, 0, 1, 1, 0, 1])
    tile = np.where(signs[:, None] == signs, 255, 0).astype(np.uint8)
    picture, before = texture(*shape), np.tile(tile, (8, 16))
    vectors = dict.fromkeys(quarters(shape), vector)
    _, found = motion_and_residual(picture, [Reference(luma=before, distance=1)], [], records(shape, vectors, -1))
    prediction = interpolation.predict(interpolation.reference(before), field(shape, vectors))
    np.testing.assert_allclose(found, residual(picture, prediction), rtol=1e-6)


def test_the_reference_that_fits_is_found_and_the_motion_is_per_frame() -> None:
    scene = texture(160, 180)
    shift = 12
    current, near, far = scene[32:96, 32:112], texture(64, 80, seed=5), scene[32:96, 32 - shift : 112 - shift]
    vectors = records((64, 80), dict.fromkeys(quarters((64, 80)), (4 * shift, 0)), -1)
    references = [Reference(luma=near, distance=1), Reference(luma=far, distance=3)]
    motion, left = motion_and_residual(current, references, [], vectors)
    inner = (slice(None), slice(0, 14))
    assert not left[inner].any()
    np.testing.assert_allclose(motion[inner], np.broadcast_to([-4.0, 0.0], motion[inner].shape), atol=1e-6)
    # The nearest one stays where no other is clearly better.
    motion, _ = motion_and_residual(current, [references[1], references[1]], [], vectors)
    np.testing.assert_allclose(motion[inner], np.broadcast_to([-4.0, 0.0], motion[inner].shape), atol=1e-6)


def test_pictures_of_another_size_and_foreign_records_are_refused() -> None:
    picture = texture(32, 32)
    with pytest.raises(ValueError, match="another size"):
        motion_and_residual(picture, [Reference(luma=texture(16, 32), distance=1)], [], None)
    with pytest.raises(ValueError, match="past"):
        motion_and_residual(picture, [], [], None)


def test_any_records_on_any_size_give_finite_signals() -> None:
    """Damaged streams export nonsense: it must stay within the pictures. (Also run once under ASan and UBSan.)"""
    rng = np.random.default_rng(0)
    for round_ in range(300):
        shape = tuple(rng.integers(1, 70, 2).tolist())
        pictures = [rng.integers(0, 256, shape, np.uint8) for _ in range(4)]
        vectors = np.zeros(int(rng.integers(0, 60)), RECORD)
        if round_ % 2:
            vectors.view(np.uint8)[:] = rng.integers(0, 256, vectors.nbytes)
        else:
            vectors["source"] = rng.choice([-1, 1], len(vectors))
            vectors["w"], vectors["h"] = rng.choice([8, 16], (2, len(vectors)))
            vectors["dst_x"], vectors["dst_y"] = rng.integers(-20, 90, (2, len(vectors)))
            vectors["motion_x"], vectors["motion_y"] = rng.integers(-500, 500, (2, len(vectors)))
        past = [Reference(luma=picture, distance=place) for place, picture in enumerate(pictures[1:3], 1)]
        future = [Reference(luma=pictures[3], distance=1)][: rng.integers(0, 2)]
        motion, left = motion_and_residual(pictures[0], past, future, as_bytes(vectors))
        assert np.isfinite(motion).all()
        assert (left >= 0).all() and (left <= 255).all()
