"""Image files to square RGB pixels."""

from __future__ import annotations

import io
import math
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from megatron_ovenc.data.errors import BadSample

AREA = (0.7, 1.0)
"""Share of the picture's area that a random crop keeps (uniform), as far as its aspect fits into the picture."""
ASPECT = (0.8, 1.25)
"""Width over height of a random crop (log-uniform)."""

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


def image_pixels(content: bytes, size: int, rng: np.random.Generator | None) -> np.ndarray:
    """Decode and resize a picture: uint8 [size, size, 3], RGB.

    Args:
        content: a JPEG, PNG, WebP or any other file that Pillow reads.
        size: side of the result in pixels.
        rng: source of the random-resized crop and flip; None resizes the short side and takes the centre.

    Raises:
        BadSample: not a picture, or a damaged one.
    """
    if not content:
        raise BadSample("the image is empty (0 bytes)")
    try:
        file = Image.open(io.BytesIO(content))
        # JPEG decodes at a half, quarter or eighth for a fraction of the cost; twice the target leaves a crop its detail.
        file.draft("RGB", (2 * size, 2 * size))
        picture = ImageOps.exif_transpose(file).convert("RGB")
    except _DECODE_ERRORS as error:
        raise BadSample(f"the image cannot be decoded: {error}") from error
    box = _centre_box(picture.width, picture.height) if rng is None else _random_box(picture.width, picture.height, rng)
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))
    if rng is not None and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A random crop inside the picture (left, top, right, bottom); one that would stick out shrinks until it fits."""
    area = width * height * rng.uniform(*AREA)
    aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    wide, high = math.sqrt(area * aspect), math.sqrt(area / aspect)
    fit = min(1.0, width / wide, height / high)
    wide, high = min(wide * fit, width), min(high * fit, height)
    left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
    return left, top, min(left + wide, width), min(top + high, height)


def _centre_box(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
