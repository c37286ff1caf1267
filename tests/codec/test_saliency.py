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


def test_reference_energies_by_hand() -> None:
    rng = np.random.default_rng(0)
    motion, residual = rng.normal(0, 2, (28, 28, 2)), rng.gamma(1, 4, (28, 28))
    speed = np.hypot(motion[..., 0], motion[..., 1])
    fused = (
        np.clip(speed / np.percentile(speed, 95), 0, 1) + np.clip(residual / np.percentile(residual, 95), 0, 1)
    ) / 2
    # 4 x 4 patches of 7 x 7 whole cells.
    expected = fused.reshape(4, 7, 4, 7).mean(axis=(1, 3))
    found = codec.saliency([frame(motion=motion, residual=residual)], (4, 4))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    assert codec.SaliencyConfig() == codec.REFERENCE


def test_weights_and_percentile() -> None:
    rng = np.random.default_rng(1)
    both = frame(motion=rng.normal(0, 2, (28, 28, 2)), residual=rng.gamma(1, 4, (28, 28)))
    only_motion = codec.saliency([both], (4, 4), config=codec.SaliencyConfig(residual_weight=0))
    alone = codec.saliency([dataclasses.replace(both, residual=both.residual * 0)], (4, 4))
    np.testing.assert_allclose(only_motion, 2 * alone, rtol=1e-5)
    lower = codec.saliency([both], (4, 4), config=codec.SaliencyConfig(percentile=50))
    assert (lower > codec.saliency([both], (4, 4))).all()


def test_faint_residual_is_not_blown_up() -> None:
    faint = frame(residual=np.full((28, 28), 0.2))
    np.testing.assert_allclose(codec.saliency([faint], (2, 2)), 0.1, rtol=1e-5)


@pytest.mark.parametrize("size", [(640, 360), (98, 42), (42, 98), (101, 67), (3, 5)])
@pytest.mark.parametrize("grid", [(16, 16), (7, 3), (1, 1), (13, 29)])
def test_pooling_keeps_the_mean_whatever_the_size_and_grid(size: tuple[int, int], grid: tuple[int, int]) -> None:
    height, width = size
    rows, cols = cell_grid(height, width)
    residual = np.random.default_rng(2).random((rows, cols)) * 0.9
    found = codec.saliency(
        [frame(height, width, residual=residual)], grid, config=codec.SaliencyConfig(motion_weight=0)
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


@pytest.mark.parametrize("camera", ["median", "similarity", "affine"])
def test_a_panning_camera_is_subtracted(camera: Camera) -> None:
    frames = panning(8, (112, 160), (4, 1))
    square = texture(32, 32, seed=5)
    for t, picture in enumerate(frames):
        picture[40:72, 96 - 4 * t : 128 - 4 * t] = square
    signals = list(codec.signals(encode(frames, options={**P_ONLY, "crf": "18"})))
    config = codec.SaliencyConfig(camera=camera, residual_weight=0)
    still = codec.SaliencyConfig(residual_weight=0)
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


def test_too_few_moving_cells_fall_back_to_the_median() -> None:
    field = np.zeros((20, 20, 2), np.float32)
    field[:5, :5] = [4, 0]
    for camera in ("similarity", "affine"):
        assert np.array_equal(compensate(field, camera), field)


def test_own_grids() -> None:
    assert codec.patch_grid(224, 224) == (16, 16)
    assert codec.patch_grid(640, 360) == (21, 12)
    assert codec.patch_grid(360, 640) == (12, 21)
    for height, width, patches in [(10, 4000, 256), (4000, 10, 256), (98, 42, 7), (1, 1, 1), (33, 77, 1000)]:
        rows, cols = codec.patch_grid(height, width, patches)
        assert 1 <= rows * cols <= patches
    with pytest.raises(ValueError, match="positive"):
        codec.patch_grid(0, 10)


def test_bad_settings_are_refused() -> None:
    for setting in ({"percentile": 0}, {"percentile": 101}, {"percentile": float("nan")}, {"camera": "drone"}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            codec.SaliencyConfig(**setting)
    for weights in ((0, 0), (-1, 2), (float("nan"), 1)):
        with pytest.raises(ValueError, match="motion_weight"):
            codec.SaliencyConfig(motion_weight=weights[0], residual_weight=weights[1])
    with pytest.raises(ValueError, match="grid"):
        codec.saliency([frame()], (0, 4))
    with pytest.raises(ValueError, match="at least one frame"):
        codec.saliency([], (4, 4))
