"""Cut patches are the whole frame's, resampled and converted as the definition says, in every format, crop and size."""

from __future__ import annotations

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation, VideoReformatter

import codec
from tests.codec.clips import texture


def picture(height: int, width: int, format: str = "yuv420p") -> av.VideoFrame:
    """A colourful texture in any pixel format."""
    rgb = np.stack([texture(height, width, seed) for seed in range(3)], axis=-1)
    return av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=format)


def plane_of(frame: av.VideoFrame, number: int) -> np.ndarray:
    plane = frame.planes[number]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width].astype(np.float64)  # type: ignore[call-overload]


def kernel(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution (1981) with a = -0.6."""
    a, x = -0.6, abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resampling(length: int, begin: float, end: float, count: int) -> np.ndarray:
    """[count, length]: each output pixel's weights, the edge repeated beyond the picture."""
    step = (end - begin) / count
    places, reach = np.arange(-4 * length, 5 * length), max(1.0, step)
    centres = begin + (np.arange(count) + 0.5) * step
    weights = kernel((places + 0.5 - centres[:, None]) / reach)
    weights /= weights.sum(axis=1, keepdims=True)
    folded = np.zeros((count, length))
    np.add.at(folded.T, places.clip(0, length - 1), weights.T)
    return folded


def defined(frame: av.VideoFrame, height: int, width: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """Float RGB [height, width, 3] of a box, for BT.601 of limited range."""
    left, top, right, bottom = box
    planes = []
    for number in range(3):
        plane = plane_of(frame, number)
        across = 1 if number == 0 or "444" in frame.format.name else 2
        down = across if "420" in frame.format.name else 1
        rows = resampling(plane.shape[0], top / down, bottom / down, height)
        planes.append(rows @ plane @ resampling(plane.shape[1], left / across, right / across, width).T)
    y, cb, cr = (planes[0] - 16) * 255 / 219, (planes[1] - 128) * 255 / 224, (planes[2] - 128) * 255 / 224
    rgb = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
    return np.stack(rgb, axis=-1).clip(0, 255)


@pytest.mark.parametrize("format", ["yuv420p", "yuv422p", "yuv444p"])
@pytest.mark.parametrize("size", [(64, 96), (61, 83), (30, 20), (200, 300)])
def test_pixels_are_what_the_definition_says(format: str, size: tuple[int, int]) -> None:
    frame = picture(*size, format)
    whole = codec.Cutter((3, 4), 14).whole(frame)
    expected = defined(frame, 42, 56, (0, 0, size[1], size[0]))
    assert whole.shape == (42, 56, 3)
    assert np.abs(whole - expected).max() < 0.51


@pytest.mark.parametrize("box", [(10, 6, 70, 50), (0, 0, 12, 64), (84, 50, 96, 64), (3.5, 2.25, 60.75, 33)])
def test_a_crop_sees_what_surrounds_it(box: tuple[float, float, float, float]) -> None:
    frame = picture(64, 96)
    seen = codec.Cutter((2, 2), 16, codec.Appearance(box=box)).whole(frame)
    assert np.abs(seen - defined(frame, 32, 32, box)).max() < 0.51


@pytest.mark.parametrize("patch", [1, 7, 8, 14, 16, 33])
@pytest.mark.parametrize("grid", [(1, 1), (4, 3)])
def test_a_patch_is_a_part_of_the_whole(patch: int, grid: tuple[int, int]) -> None:
    frame, cut = picture(90, 70), codec.Cutter(grid, patch)
    whole = cut.whole(frame)
    rng = np.random.default_rng(0)
    rows, cols = (rng.integers(0, count, 9).astype(np.int32) for count in grid)
    patches = cut(frame, rows, cols)
    assert patches.shape == (9, 3, patch, patch)
    for found, row, col in zip(patches, rows, cols, strict=True):
        part = whole[row * patch : (row + 1) * patch, col * patch : (col + 1) * patch]
        assert np.array_equal(found, part.transpose(2, 0, 1))


def test_the_size_of_patches_does_not_change_pixels() -> None:
    frame = picture(256, 256)
    assert np.array_equal(codec.Cutter((16, 16), 14).whole(frame), codec.Cutter((1, 1), 224).whole(frame))


def test_a_mirror_image_is_mirrored() -> None:
    frame, box = picture(64, 96), (10, 6, 71, 50)
    plain, mirrored = (
        codec.Cutter((2, 2), 14, codec.Appearance(box=box, flip=flip)).whole(frame) for flip in (False, True)
    )
    assert np.abs(mirrored[:, ::-1].astype(int) - plain).max() <= 1  # sums in another order


def test_ffmpeg_resizes_alike() -> None:
    # Its fast path has but half of the colour's resolution, so colours are smooth here.
    y, x = np.mgrid[:256, :256] / 256
    rgb = texture(256, 256)[..., None] / 2 + np.stack([100 * x, 100 * y, 100 - 50 * x], axis=-1)
    frame = av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24").reformat(format="yuv420p")
    theirs = VideoReformatter().reformat(frame, 224, 224, "rgb24", interpolation=Interpolation.BICUBIC).to_ndarray()
    difference = codec.Cutter((16, 16), 14).whole(frame) - theirs.astype(float)
    # It is also up to two levels too dark (it makes 253 of white); ours is held to the definition above.
    assert np.abs(difference).max() <= 5
    assert difference.std() < 1


@pytest.mark.parametrize(
    ("format", "like"),
    [
        ("yuv420p10le", "yuv420p"),
        ("nv12", "yuv420p"),
        ("yuv444p12le", "yuv444p"),
        ("rgb24", "yuv444p"),
        ("bgra", "yuv444p"),
        ("gray10le", "gray"),
    ],
)
def test_other_formats_are_converted_first(format: str, like: str) -> None:
    cut = codec.Cutter((4, 4), 16)
    seen, expected = (cut.whole(picture(64, 64, kind)).astype(int) for kind in (format, like))
    assert np.abs(seen - expected).mean() < 1.5


def constant(values: tuple[int, ...], format: str, **properties: int) -> np.ndarray:
    """The colour that a frame of one colour, in stored values, is shown in."""
    frame = av.VideoFrame(32, 32, format)
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    for name, value in properties.items():
        setattr(frame, name, value)
    colours = codec.Cutter((1, 1), 8).whole(frame).reshape(-1, 3)
    assert (colours == colours[0]).all()
    return colours[0]


def test_black_white_and_the_primaries_of_every_standard() -> None:
    assert constant((16, 128, 128), "yuv420p").tolist() == [0, 0, 0]
    assert constant((235, 128, 128), "yuv420p").tolist() == [255, 255, 255]
    assert constant((0,), "gray", color_range=2).tolist() == [0, 0, 0]
    assert constant((126,), "gray").tolist() == [126, 126, 126]
    assert constant((126,), "gray", color_range=1).tolist() == [128, 128, 128]
    assert constant((200, 128, 128), "yuvj420p").tolist() == [200, 200, 200]
    assert constant((200, 128, 128), "yuv420p", color_range=2).tolist() == [200, 200, 200]
    # Red, as ITU-R BT.601, BT.709 and BT.2020 code it in eight bits.
    for space, stored in {2: (81, 90, 240), 5: (81, 90, 240), 1: (63, 102, 240), 9: (74, 97, 240)}.items():
        red = constant(stored, "yuv444p", colorspace=space).astype(int)
        assert np.abs(red - [255, 0, 0]).max() <= 2, (space, red)


def test_colours_change_as_asked() -> None:
    frame = picture(32, 32)

    def seen(**changes: float) -> np.ndarray:
        return codec.Cutter((2, 2), 16, codec.Appearance(**changes)).whole(frame).astype(float)  # type: ignore[arg-type]

    plain = seen()
    assert np.abs(seen(brightness=0.5) - plain / 2).max() <= 1
    assert np.abs(seen(contrast=0.5) - (plain + 127.5) / 2).max() <= 1
    grey = plain @ [0.299, 0.587, 0.114]
    assert np.abs(seen(saturation=0.0) - grey[..., None]).max() <= 1.5
    assert np.abs(seen(saturation=0.5) - (plain + grey[..., None]) / 2).max() <= 1.5
    assert seen(brightness=9.0).max() == 255


def test_frames_may_change_their_size_and_format() -> None:
    cut = codec.Cutter((2, 2), 14)
    for size, format in (((64, 96), "yuv420p"), ((96, 64), "yuv420p"), ((96, 64), "yuv444p")):
        frame = picture(*size, format)
        assert np.array_equal(cut.whole(frame), codec.Cutter((2, 2), 14).whole(frame))


def test_what_is_outside_of_the_grid_is_refused() -> None:
    cut, frame = codec.Cutter((2, 3), 14), picture(32, 32)
    for row, col in ((2, 0), (0, 3), (-1, 0)):
        with pytest.raises(ValueError, match="outside of the grid"):
            cut(frame, np.array([row], np.int32), np.array([col], np.int32))
    with pytest.raises(ValueError, match="belong together"):
        cut(frame, np.zeros(2, np.int32), np.zeros(3, np.int32))


@pytest.mark.parametrize("box", [(0, 50, 50, 10), (0, 0, 0, 9), (0, 0, float("nan"), 9), (-1e12, 0, 9, 9)])
def test_boxes_that_make_no_sense_are_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="box"):
        codec.Cutter((2, 2), 14, codec.Appearance(box=box)).whole(picture(32, 32))


def test_colours_of_an_unknown_kind_are_refused() -> None:
    frame = picture(32, 32)
    frame.colorspace = 8  # YCgCo
    with pytest.raises(codec.CodecError, match="matrix 8"):
        codec.Cutter((2, 2), 14).whole(frame)


def test_without_the_compiled_core_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codec.cut._cut", None)
    with pytest.raises(codec.CodecError, match="pip install -e"):
        codec.Cutter((2, 2), 14)
