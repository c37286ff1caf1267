"""Patches out of decoded frames: only what is cut is resampled and converted, which is a few per cent of a whole frame's work.

    cut = codec.Cutter(grid=(16, 16), patch_size=14)
    patches = cut(frame, rows, cols)                # uint8 [n, 3, 14, 14]

Pixels are those of resizing each plane of the whole frame by a bicubic filter (Keys 1981, with FFmpeg's a = -0.6, widened where it
reduces) and converting that to RGB: what FFmpeg does, but at colour's full resolution. A crop, a mirror image and changed colours
cost nothing: they are part of the filters and of the matrix.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace

from codec.types import CodecError, not_compiled

try:
    from codec import _cut
except ImportError:  # a checkout that was never built
    _cut = None  # type: ignore[assignment]

_SHIFTS = {
    "gray": (0, 0),
    "yuv420p": (1, 1),
    "yuvj420p": (1, 1),
    "yuv422p": (1, 0),
    "yuvj422p": (1, 0),
    "yuv444p": (0, 0),
    "yuvj444p": (0, 0),
}
"""By which powers of two chroma is smaller, across and down, in the formats that are read as they are."""
_LUMA_WEIGHTS: dict[int, tuple[float, float]] = {
    Colorspace.ITU709: (0.2126, 0.0722),
    Colorspace.SMPTE240M: (0.212, 0.087),
    Colorspace.BT2020: (0.2627, 0.0593),
    Colorspace.FCC: (0.30, 0.11),
}
_BT601 = (0.299, 0.114)
"""Weights of red and blue in luma (ITU-T H.273, table 4); BT.601 where a clip does not say, as FFmpeg takes it."""
_LUMA_WEIGHTS |= dict.fromkeys((0, 2, 3, 5, 6), _BT601)


@dataclass(frozen=True, kw_only=True, slots=True)
class Appearance:
    """What part of the picture is shown, and how."""

    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom in pixels of the clip; all of it without one."""
    flip: bool = False
    """Left and right exchanged."""
    brightness: float = 1.0
    """Factor of red, green and blue."""
    contrast: float = 1.0
    """Factor of the distance from middle grey."""
    saturation: float = 1.0
    """Factor of the distance from the pixel's own grey."""


PLAIN = Appearance()


class Cutter:
    """Cuts patches of one grid out of the frames of one clip."""

    def __init__(self, grid: tuple[int, int], patch_size: int, appearance: Appearance = PLAIN) -> None:
        """
        Args:
            grid: (rows, cols) of patches that the box is divided into; it is stretched to fit.
            patch_size: p, pixels.
            appearance: what is shown.

        Raises:
            UnsupportedStream: the compiled core was not built.
        """
        core()
        self._grid = grid
        self._patch_size = patch_size
        self._appearance = appearance
        self._made_for: tuple[object, ...] = ()
        self._cutter: Any = None

    def __call__(
        self,
        frame: av.VideoFrame,
        rows: npt.NDArray[np.int32],
        cols: npt.NDArray[np.int32],
        out: npt.NDArray[np.uint8] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """The n patches at (rows, cols) of the grid: uint8 [n, 3, p, p], RGB; written to `out`, if given.

        Raises:
            CodecError: colours are coded in a way that is not known here.
            ValueError: a patch outside of the grid, an empty box, or one far outside of the picture.
        """
        if frame.format.name not in _SHIFTS:
            frame = frame.reformat(format=_nearest(frame.format))
        if out is None:
            out = np.empty((len(rows), 3, self._patch_size, self._patch_size), np.uint8)
        self._prepare(frame)
        planes = frame.planes
        pixels = [np.frombuffer(cast(Any, plane), np.uint8) for plane in planes]
        self._cutter.cut(pixels, [plane.line_size for plane in planes], rows, cols, out)
        return out

    def whole(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """All patches, put together: uint8 [rows * p, cols * p, 3]."""
        (rows, cols), side = self._grid, self._patch_size
        row, col = np.divmod(np.arange(rows * cols, dtype=np.int32), np.int32(cols))
        patches = self(frame, row, col).reshape(rows, cols, 3, side, side)
        return np.ascontiguousarray(patches.transpose(0, 3, 1, 4, 2)).reshape(rows * side, cols * side, 3)

    def _prepare(self, frame: av.VideoFrame) -> None:
        """Make the filters, unless those of the frame before will do."""
        made_for = (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range)
        if made_for == self._made_for:
            return
        left, top, right, bottom = self._appearance.box or (0.0, 0.0, float(frame.width), float(frame.height))
        if self._appearance.flip:
            left, right = right, left
        shifts = _SHIFTS[frame.format.name]
        chroma = (left / 2 ** shifts[0], top / 2 ** shifts[1], right / 2 ** shifts[0], bottom / 2 ** shifts[1])
        self._cutter = core().Cutter(
            [(plane.height, plane.width) for plane in frame.planes],
            [(left, top, right, bottom), chroma, chroma][: len(frame.planes)],
            *self._grid,
            self._patch_size,
            _rgb_matrix(frame, self._appearance).ravel().tolist(),
        )
        self._made_for = made_for


def core() -> ModuleType:
    """The compiled core.

    Raises:
        UnsupportedStream: it was not built.
    """
    if _cut is None:
        raise not_compiled("the cutting of patches")
    return _cut


def _nearest(format: av.VideoFormat) -> str:
    """The format among those read that keeps the resolution of another's colours."""
    shift = (format.chroma_width(2) < 2, format.chroma_height(2) < 2)
    return {(True, True): "yuv420p", (True, False): "yuv422p"}.get(shift, "yuv444p")


def _rgb_matrix(frame: av.VideoFrame, appearance: Appearance) -> npt.NDArray[np.float64]:
    """[3, 4]: RGB in 0..255 of (Y, Cb, Cr, 1) as stored (ITU-T H.273, 8.3), and the change of colours after it."""
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    # Grey pictures use all values unless they say otherwise, as FFmpeg makes them.
    full |= len(frame.planes) == 1 and frame.color_range != ColorRange.MPEG
    if frame.colorspace not in _LUMA_WEIGHTS:
        raise CodecError(
            f"colours are coded by matrix {frame.colorspace} of ITU-T H.273, which is not supported: encode the clip in BT.709"
        )
    red, blue = _LUMA_WEIGHTS[frame.colorspace]
    green = 1 - red - blue
    y, c = (1.0, 1.0) if full else (255 / 219, 255 / 224)
    black = 0 if full else 16
    from_luma, from_blue, from_red = np.full(3, y), np.zeros(3), np.zeros(3)
    from_red[0], from_blue[2] = 2 * (1 - red) * c, 2 * (1 - blue) * c
    from_red[1], from_blue[1] = -from_red[0] * red / green, -from_blue[2] * blue / green
    matrix = np.stack([from_luma, from_blue, from_red, -black * from_luma - 128 * (from_blue + from_red)], axis=1)
    if len(frame.planes) == 1:
        matrix = np.stack([from_luma, np.zeros(3), np.zeros(3), -black * from_luma], axis=1)
    # Each change is affine in RGB. Saturation keeps the grey of BT.601, as Pillow's does.
    grey = np.tile([_BT601[0], 1 - sum(_BT601), _BT601[1]], (3, 1))
    matrix = (appearance.saturation * np.eye(3) + (1 - appearance.saturation) * grey) @ matrix
    matrix *= appearance.contrast * appearance.brightness
    matrix[:, 3] += (1 - appearance.contrast) * 127.5
    return matrix
