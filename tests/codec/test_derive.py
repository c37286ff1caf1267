"""Views derived from a sidecar agree with the saliency of the clip that was really cropped, flipped or sampled so."""

from dataclasses import replace

import numpy as np
import pytest

import codec
from tests.codec.clips import P_ONLY, encode, moving_square

GRID = (16, 24)
KEYED = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=0:ref=1:weightp=0"}


def clip_frames() -> list[np.ndarray]:
    return moving_square(24, (128, 192), (3, 1), side=32, start=(24, 24), textured_floor=True)[0]


@pytest.fixture(scope="module")
def clip() -> bytes:
    return encode(clip_frames(), options={**KEYED, "crf": "18"})


@pytest.fixture(scope="module")
def sidecar(clip: bytes) -> codec.Sidecar:
    return codec.analyse(clip, GRID)


def test_the_whole_picture_is_the_sidecar_itself(sidecar: codec.Sidecar) -> None:
    same = codec.derive(sidecar, GRID)
    assert np.array_equal(same.saliency, sidecar.saliency)
    assert np.array_equal(same.frame_indices, sidecar.frame_indices)
    assert same.frame_types == sidecar.frame_types == ("I" + "P" * 11) * 2
    again = codec.derive(sidecar, GRID, frames=sidecar.frame_indices)
    assert np.array_equal(again.saliency, sidecar.saliency)


def test_a_flip_is_the_mirrored_saliency(clip: bytes, sidecar: codec.Sidecar) -> None:
    flipped = codec.derive(sidecar, GRID, flip=True)
    assert np.array_equal(flipped.saliency, sidecar.saliency[:, :, ::-1])
    mirrored = [
        replace(frame, motion=frame.motion[:, ::-1] * np.float32([-1, 1]), residual=frame.residual[:, ::-1])
        for frame in codec.signals(clip)
    ]
    expected = np.rint(codec.saliency(mirrored, GRID) * 255)
    assert np.abs(flipped.saliency - expected).max() <= 1


def test_a_flip_agrees_with_the_clip_encoded_mirrored(sidecar: codec.Sidecar) -> None:
    mirrored = encode([np.ascontiguousarray(frame[:, ::-1]) for frame in clip_frames()], options={**KEYED, "crf": "18"})
    expected = codec.analyse(mirrored, GRID).saliency
    found = codec.derive(sidecar, GRID, flip=True).saliency
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_along_patches_is_a_slice(sidecar: codec.Sidecar, flip: bool) -> None:
    crop = codec.Crop(top=16, left=40, height=64, width=96)
    found = codec.derive(sidecar, (8, 12), crop=crop, flip=flip).saliency
    expected = sidecar.saliency[:, 2:10, 5:17]
    assert np.array_equal(found, expected[:, :, ::-1] if flip else expected)


def test_any_crop_agrees_with_the_saliency_of_the_cells_in_it(clip: bytes) -> None:
    """From a sidecar of 8-pixel patches; the cells are 4 pixels wide. The camera model is left out: it sees another picture."""
    config = codec.SaliencyConfig(camera="none")
    fine = codec.analyse(clip, GRID, config=config)
    top, left, height, width = 12, 20, 100, 140
    signals = [
        replace(
            frame,
            height=height,
            width=width,
            motion=frame.motion[top // 4 : (top + height) // 4, left // 4 : (left + width) // 4],
            residual=frame.residual[top // 4 : (top + height) // 4, left // 4 : (left + width) // 4],
        )
        for frame in codec.signals(clip)
    ]
    expected = codec.saliency(signals, (5, 7), config=config)
    found = codec.derive(fine, (5, 7), crop=codec.Crop(top=top, left=left, height=height, width=width)).saliency / 255
    # Percentiles are taken over another area, so levels may differ, order hardly.
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.97


def test_the_mean_is_kept_on_any_grid(sidecar: codec.Sidecar) -> None:
    for grid in [(1, 1), (7, 5), (33, 50)]:
        found = codec.derive(sidecar, grid).saliency
        np.testing.assert_allclose(found.mean(axis=(1, 2)), sidecar.saliency.mean(axis=(1, 2)), atol=0.6)


def test_jittered_frames_get_the_maps_of_their_time_and_their_own_types(clip: bytes) -> None:
    half = codec.analyse(clip, GRID, virtual_frames=12)
    frames = [0, 3, 5, 12, 17, 23]
    view = codec.derive(half, GRID, frames=frames)
    assert view.frame_indices.tolist() == frames
    assert view.frame_types == "IPPIPP"
    assert not view.saliency[3].any()
    # Half of the indices are those of another sampling; what its frames say since the frame before is known from the bitstream.
    expected = codec.saliency(codec.sample(codec.signals(clip), frames), GRID)
    for t in (1, 2, 4, 5):
        assert np.corrcoef(view.saliency[t].ravel(), expected[t].ravel())[0, 1] > 0.8, t


def test_another_time_span_by_hand() -> None:
    maps = np.zeros((3, 1, 1), np.uint8)
    maps[:, 0, 0] = [0, 100, 200]
    made = replace(
        codec.analyse(encode([np.full((64, 64), 9, np.uint8)] * 9, options=P_ONLY), (1, 1), virtual_frames=3),
        saliency=maps,
    )
    assert made.frame_indices.tolist() == [0, 4, 8]
    # (0, 2] is all of map 1; (2, 6] half of map 1 and half of map 2; (6, 8] map 2.
    assert codec.derive(made, (1, 1), frames=[0, 2, 6, 8]).saliency.ravel().tolist() == [0, 100, 150, 200]
    assert codec.derive(made, (1, 1), frames=[2]).saliency.ravel().tolist() == [100]


def test_budgets_of_a_view_are_exact(sidecar: codec.Sidecar) -> None:
    view = codec.derive(
        sidecar, (16, 16), crop=codec.Crop(top=0, left=32, height=128, width=128), frames=range(0, 24, 2)
    )
    for budget in (1, 96, 192, 384, 3072):
        positions = codec.select(view.saliency, budget, "keep", frame_types=view.frame_types)
        assert len(np.unique(positions, axis=0)) == budget
        assert positions[:, 0].max() < len(view.frame_indices)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"grid": (0, 4)}, "grid"),
        ({"crop": codec.Crop(top=0, left=0, height=129, width=10)}, "192x128"),
        ({"crop": codec.Crop(top=-1, left=0, height=9, width=10)}, "leave the picture"),
        ({"crop": codec.Crop(top=0, left=0, height=0, width=10)}, "empty"),
        ({"frames": [3, 3]}, "strictly increasing"),
        ({"frames": []}, "at least one"),
        ({"frames": [24]}, "ends with frame 23"),
    ],
)
def test_bad_views_are_refused(sidecar: codec.Sidecar, change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        codec.derive(sidecar, **({"grid": GRID} | change))
