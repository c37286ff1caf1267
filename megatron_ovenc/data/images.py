"""Image files to RGB pixels, decoded and resized by Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from functools import partial

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.windows import Framing, square

# Pillow's plugins raise all of these on damaged or hostile files.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112
"""EXIF tag; from 5 on, height and width are exchanged."""
_SIXTEEN_BIT = ("PNG", "PPM")
"""Formats that Pillow reads to 32 bits a pixel only if they hold 16."""


def image_pixels(content: bytes, size: int, rng: np.random.Generator | None) -> np.ndarray:
    """Decode and resize a picture to a square: uint8 [size, size, 3], RGB.

    Args:
        content: a JPEG, PNG, WebP or any other file that Pillow reads.
        size: side of the result in pixels.
        rng: source of the random-resized crop and flip; None resizes the short side and takes the centre.

    Raises:
        BadSample: not a picture, or a damaged one.
    """
    return framed_pixels(content, partial(square, size=size, rng=rng))


def framed_pixels(content: bytes, framing: Framing) -> np.ndarray:
    """Decode a picture and resize the window that `framing` chooses: uint8 [height, width, 3] of the window, RGB.

    The filter is bilinear and widens with the reduction (antialiasing).

    Raises:
        BadSample: not a picture, or a damaged one.
    """
    file, width, height = open_picture(content)
    window = framing(width, height)
    try:
        # JPEG decodes at a half, quarter or eighth for a fraction of the cost; twice the target leaves a crop its detail.
        target = (2 * window.width, 2 * window.height)
        stored = file.width
        drafted = file.draft("RGB", target if (width, height) == file.size else target[::-1])
        picture = _rgb(ImageOps.exif_transpose(file), file.format)
        # The draft's own box, for its sides are rounded up to whole pixels.
        scale = 1.0 if drafted is None else drafted[1][2] / stored
        left, top, right, bottom = (scale * edge for edge in window.box)
        size = (window.width, window.height)
        box = (left, top, min(right, picture.width), min(bottom, picture.height))
        pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))
    except _DECODE_ERRORS as error:
        raise BadSample(f"the image cannot be decoded: {error}") from error
    return np.ascontiguousarray(pixels[:, ::-1] if window.flip else pixels)


def _rgb(picture: Image.Image, kind: str | None) -> Image.Image:
    """In RGB with 8 bits, what is transparent laid on white paper.

    Raises:
        BadSample: its numbers have no range that tells which of them is white.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in _SIXTEEN_BIT):
        # Pillow's own conversion would clip: all but the darkest 256th became white.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise BadSample(
            f"the image has 32-bit pixels (Pillow's mode {picture.mode}), of which no value is known to be white: store it with "
            "8 or 16 bits"
        )
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture).convert("RGB")


def open_picture(content: bytes) -> tuple[Image.Image, int, int]:
    """A picture of which only the header has been read, with its width and height after the turn that its EXIF asks for.

    Raises:
        BadSample: not a picture.
    """
    if not content:
        raise BadSample("the image is empty (0 bytes)")
    try:
        file = Image.open(io.BytesIO(content))
        # Of a TIFF, Pillow tells the upright size from the start.
        turned = file.format != "TIFF" and file.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except UnidentifiedImageError as error:
        raise BadSample("the image cannot be decoded: it is of no format that Pillow knows") from error
    except _DECODE_ERRORS as error:
        raise BadSample(f"the image cannot be decoded: {error}") from error
    width, height = file.size[::-1] if turned else file.size
    return file, width, height


def is_plain_jpeg(file: Image.Image) -> bool:
    """Whether a file is a JPEG without anything of which libraries make different things, such as inks."""
    return file.format == "JPEG" and file.mode in ("RGB", "L")
