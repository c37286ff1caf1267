"""Saliency and camera compensation on fields and clips whose moving part is known."""

import dataclasses

import numpy as np
import pytest

import codec
from codec.camera import Camera, compensate
from codec.types import FrameType, cell_grid
from tests.codec.clips import P_ONLY, encode, moving_square, panning, texture


def frame(
    height: int = 112,
    width: int = 112,
    motion: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    kind: FrameType = "P",
) -> codec.FrameSignals:
    cells = cell_grid(height, width)
    return codec.FrameSignals(
        index=0,
        pts=0,
        time=0.0,
        type=kind,
        key_frame=kind == "I",
        height=height,
        width=width,
        block_size=4,
        motion=np.zeros((*cells, 2), np.float32) if motion is None else motion.astype(np.float32),
        residual=np.zeros(cells, np.float32) if residual is None else residual.astype(np.float32),
        bits=None,
        frame_bytes=1,
        estimated=False,
    )


def noisy(seed: int, bits: bool = False, **options) -> codec.FrameSignals:
    rng = np.random.default_rng(seed)
    cells = cell_grid(112, 112)
    made = frame(motion=rng.normal(0, 2, (*cells, 2)), residual=rng.gamma(1, 4, cells), **options)
    return dataclasses.replace(made, bits=rng.gamma(1, 9, cells).astype(np.float32)) if bits else made


def spec_energy(signals: codec.FrameSignals, centre: float = 0.0) -> np.ndarray:
    """SPEC 5.5 restated, pixel by pixel: energies over P95, mean, clip, centre prior; no camera model. [H, W]"""
    pixels = (np.arange(signals.height)[:, None] // 4, np.arange(signals.width) // 4)
    vx, vy = signals.motion[..., 0], signals.motion[..., 1]
    m = np.sqrt(vx.astype(np.float64) ** 2 + vy.astype(np.float64) ** 2)
    a = np.clip(m / max(np.percentile(m, 95), 1e-6), 0, 1)[pixels]
    x = signals.residual.astype(np.float64)[pixels]
    b = np.clip(x / max(np.percentile(x, 95), 1), 0, 1)
    fused = np.clip((1.0 * a + 1.0 * b) / (1.0 + 1.0), 0, 1)
    y = np.arange(signals.height)[:, None] - (signals.height - 1) / 2
    x = np.arange(signals.width) - (signals.width - 1) / 2
    sigma = 0.35 * min(signals.height, signals.width)
    gaussian = np.exp(-(y**2 + x**2) / (2 * sigma**2))
    return np.clip(fused * (1 + centre * gaussian), 0, 1)


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_reference_reproduces_the_specification(scale: float) -> None:
    signals = noisy(0)
    signals = dataclasses.replace(
        signals, residual=signals.residual * np.float32(scale), motion=signals.motion * np.float32(scale)
    )
    # 4 x 4 patches of 7 x 7 whole cells; their mean is the reference's sum up to a constant.
    expected = spec_energy(signals).reshape(4, 28, 4, 28).mean(axis=(1, 3))
    found = codec.saliency([signals], (4, 4), config=codec.REFERENCE)
    assert found.dtype == np.float32
    # The percentile is over cells here and over pixels there.
    np.testing.assert_allclose(found[0], expected, rtol=3e-3)


def test_the_centre_prior_is_the_specifications() -> None:
    signals = noisy(1)
    config = dataclasses.replace(codec.REFERENCE, centre_prior=0.3)
    expected = spec_energy(signals, centre=0.3).reshape(4, 28, 4, 28).mean(axis=(1, 3))
    np.testing.assert_allclose(codec.saliency([signals], (4, 4), config=config)[0], expected, rtol=5e-3)


def test_inconsistency_is_the_variance_in_a_window() -> None:
    signals = noisy(2)
    config = dataclasses.replace(codec.REFERENCE, inconsistency=5, residual_weight=0, percentile=100)
    speed = np.linalg.norm(signals.motion.astype(np.float64), axis=-1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(speed, 2, mode="edge"), (5, 5))
    expected = windows.var(axis=(2, 3))
    found = codec.saliency([signals], cell_grid(112, 112), config=config)[0]
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-4)


def test_weights_percentile_and_bits() -> None:
    both = noisy(3, bits=True)
    base = dataclasses.replace(codec.REFERENCE, bits_weight=2.0, bits_scale="log")
    parts = []
    for energy, floor in (
        (np.linalg.norm(both.motion, axis=-1), 1e-6),
        (both.residual, 1.0),
        (np.log1p(both.bits), 1e-6),
    ):
        parts.append(np.clip(energy / max(np.percentile(energy, 95), floor), 0, 1))
    expected = ((parts[0] + parts[1] + 2 * parts[2]) / 4).reshape(4, 7, 4, 7).mean(axis=(1, 3))
    np.testing.assert_allclose(codec.saliency([both], (4, 4), config=base)[0], expected, rtol=1e-5)
    lower = codec.saliency([both], (4, 4), config=dataclasses.replace(base, percentile=50))
    assert (lower > codec.saliency([both], (4, 4), config=base)).all()


def test_bits_count_only_where_the_reader_tells_them() -> None:
    config = codec.SaliencyConfig(bits_weight=3.0)
    without = [noisy(4), noisy(5)]
    np.testing.assert_array_equal(
        codec.saliency(without, (4, 4), config=config),
        codec.saliency(without, (4, 4), config=dataclasses.replace(config, bits_weight=0)),
    )
    only = codec.SaliencyConfig(motion_weight=0, residual_weight=0, bits_weight=1)
    with pytest.raises(ValueError, match="motion_weight"):
        codec.saliency(without, (4, 4), config=only)
    assert codec.saliency([noisy(4, bits=True)], (4, 4), config=only).any()


def test_normalisation_over_the_clip_lets_a_lively_frame_count_more() -> None:
    lively, calm = noisy(6), noisy(7)
    calm = dataclasses.replace(calm, motion=calm.motion / 4, residual=calm.residual / 4)
    per_frame = codec.saliency(
        [lively, calm], (4, 4), config=dataclasses.replace(codec.REFERENCE, normalisation="frame")
    )
    per_clip = codec.saliency([lively, calm], (4, 4), config=dataclasses.replace(codec.REFERENCE, normalisation="clip"))
    assert per_frame[1].mean() > 0.8 * per_frame[0].mean()
    assert per_clip[1].mean() < 0.4 * per_clip[0].mean()
    # An I frame, which has no energies, does not change the percentile of the others.
    with_intra = codec.saliency(
        [frame(kind="I"), lively, calm], (4, 4), config=dataclasses.replace(codec.REFERENCE, normalisation="clip")
    )
    np.testing.assert_array_equal(with_intra[1:], per_clip)


def test_saliency_does_not_depend_on_resolution() -> None:
    small = noisy(8)
    large = dataclasses.replace(
        small,
        height=224,
        width=224,
        motion=2 * small.motion.repeat(2, axis=0).repeat(2, axis=1),
        residual=small.residual.repeat(2, axis=0).repeat(2, axis=1),
    )
    for config in (codec.REFERENCE, codec.SaliencyConfig(camera="median", centre_prior=0.3)):
        found = [codec.saliency([signals], (7, 7), config=config)[0] for signals in (small, large)]
        np.testing.assert_allclose(found[0], found[1], atol=0.01)


def test_faint_residual_is_not_blown_up() -> None:
    faint = frame(residual=np.full((28, 28), 0.2))
    np.testing.assert_allclose(codec.saliency([faint], (2, 2), config=codec.REFERENCE), 0.1, rtol=1e-5)
    slow = frame(motion=np.full((28, 28, 2), 0.03))
    assert codec.saliency([slow], (2, 2), config=codec.SaliencyConfig(camera="none")).max() < 0.15


@pytest.mark.parametrize("size", [(640, 360), (98, 42), (42, 98), (101, 67), (3, 5)])
@pytest.mark.parametrize("grid", [(16, 16), (7, 3), (1, 1), (13, 29)])
def test_pooling_keeps_the_mean_whatever_the_size_and_grid(size: tuple[int, int], grid: tuple[int, int]) -> None:
    height, width = size
    rows, cols = cell_grid(height, width)
    residual = np.random.default_rng(2).random((rows, cols)) * 0.9
    found = codec.saliency(
        [frame(height, width, residual=residual)], grid, config=dataclasses.replace(codec.REFERENCE, motion_weight=0)
    )[0]
    assert found.shape == grid
    pixels = residual.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    assert found.mean() == pytest.approx(pixels.mean(), rel=1e-4)
    if height % grid[0] == 0 and width % grid[1] == 0:
        patches = pixels.reshape(grid[0], height // grid[0], grid[1], width // grid[1]).mean(axis=(1, 3))
        np.testing.assert_allclose(found, patches, rtol=1e-4)


def test_intra_frames_are_not_salient_unless_all_are() -> None:
    changed = np.full((28, 28), 9.0)
    mixed = codec.saliency([frame(residual=changed, kind=kind) for kind in ("I", "P", "I")], (2, 2))
    assert mixed.any(axis=(1, 2)).tolist() == [False, True, False]
    assert codec.saliency([frame(residual=changed, kind="I") for _ in range(2)], (2, 2)).all()


def test_the_moving_square_stands_out() -> None:
    frames, corners = moving_square(16, (112, 168), (4, 2), side=28, start=(14, 14), textured_floor=True)
    maps = codec.saliency(codec.signals(encode(frames, options=P_ONLY)), (8, 12))
    for patches, (x, y) in list(zip(maps, corners, strict=True))[1:]:
        touched = np.zeros((8, 12), bool)
        touched[y // 14 : -(-(y + 28) // 14), x // 14 : -(-(x + 28) // 14)] = True
        assert patches[touched].mean() > 10 * max(patches[~touched].mean(), 1e-3)


@pytest.mark.parametrize("camera", ["median", "mean", "similarity", "affine"])
def test_a_panning_camera_is_subtracted(camera: Camera) -> None:
    frames = panning(8, (112, 160), (4, 1))
    square = texture(32, 32, seed=5)
    for t, picture in enumerate(frames):
        picture[40:72, 96 - 4 * t : 128 - 4 * t] = square
    signals = list(codec.signals(encode(frames, options={**P_ONLY, "crf": "18"})))
    config = codec.SaliencyConfig(camera=camera, residual_weight=0, percentile=95)
    still = codec.SaliencyConfig(camera="none", residual_weight=0, percentile=95)
    for signal in signals[2:]:
        x = 96 - 4 * signal.index
        inside = (slice(5, 8), slice(-(-x // 8), (x + 32) // 8))
        with_camera = codec.saliency([signal], (14, 20), config=config)[0]
        without = codec.saliency([signal], (14, 20), config=still)[0]
        assert with_camera[inside].mean() > 0.5
        assert np.median(with_camera) < 0.1
        assert np.median(without) > 0.4


@pytest.mark.parametrize(
    ("camera", "model"),
    [
        ("median", lambda x, y: (2.0 + 0 * x, -1.0 + 0 * y)),
        ("similarity", lambda x, y: (1 + 3 * x - 2 * y, -2 + 2 * x + 3 * y)),
        ("affine", lambda x, y: (1 + 3 * x - 2 * y, 0.5 + x - 4 * y)),
    ],
)
def test_camera_models_fit_their_own_motion_despite_an_object(camera: Camera, model) -> None:
    y, x = np.meshgrid(np.linspace(-1, 1, 30), np.linspace(-1, 1, 40), indexing="ij")
    field = np.stack(model(x, y), -1).astype(np.float32)
    field[10:16, 10:16] += [8, 5]
    rest = compensate(field, camera)
    assert rest.dtype == np.float32
    np.testing.assert_allclose(rest[10:16, 10:16], np.broadcast_to([8, 5], (6, 6, 2)), atol=0.02)
    rest[10:16, 10:16] = 0
    np.testing.assert_allclose(rest, 0, atol=0.02)


def test_a_still_camera_is_not_fitted_to_what_moves() -> None:
    field = np.zeros((20, 20, 2), np.float32)
    field[:9, :9] = [4, 0]
    for camera in ("median", "similarity", "affine"):
        np.testing.assert_allclose(compensate(field, camera), field, atol=1e-4)


def test_a_tiny_picture_falls_back_to_the_median() -> None:
    field = np.full((5, 5, 2), 3, np.float32)
    field[0, 0] = [9, 9]
    for camera in ("similarity", "affine"):
        assert np.array_equal(compensate(field, camera), field - 3)


def test_own_grids() -> None:
    assert codec.patch_grid(224, 224) == (16, 16)
    assert codec.patch_grid(640, 360) == (21, 12)
    assert codec.patch_grid(360, 640) == (12, 21)
    for height, width, patches in [(10, 4000, 256), (4000, 10, 256), (98, 42, 7), (1, 1, 1), (33, 77, 1000)]:
        rows, cols = codec.patch_grid(height, width, patches)
        assert 1 <= rows * cols <= patches
    with pytest.raises(ValueError, match="positive"):
        codec.patch_grid(0, 10)


BAD_SETTINGS: tuple[dict, ...] = (
    {"percentile": 0},
    {"percentile": 101},
    {"percentile": float("nan")},
    {"camera": "drone"},
    {"normalisation": "film"},
    {"bits_scale": "cube"},
    {"motion_floor": 0},
    {"inconsistency": 4},
    {"inconsistency": 1},
    {"centre_prior": -1},
)


def test_bad_settings_are_refused() -> None:
    for setting in BAD_SETTINGS:
        with pytest.raises(ValueError, match=next(iter(setting))):
            codec.SaliencyConfig(**setting)
    for weights in ((0, 0, 0), (-1, 2, 1), (float("nan"), 1, 1), (1, 1, float("inf"))):
        with pytest.raises(ValueError, match="motion_weight"):
            codec.SaliencyConfig(motion_weight=weights[0], residual_weight=weights[1], bits_weight=weights[2])
    with pytest.raises(ValueError, match="grid"):
        codec.saliency([frame()], (0, 4))
    with pytest.raises(ValueError, match="at least one frame"):
        codec.saliency([], (4, 4))
