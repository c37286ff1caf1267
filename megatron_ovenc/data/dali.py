"""Image files to RGB pixels, decoded and resized by NVIDIA DALI: the same windows, filter and errors as `images`.

The pipeline holds nothing between samples: no reader, no shuffling, no random numbers. It is given one file with its window and
returns one picture, so order and resumption stay ours, and a file that it fails on is known by being the one it was given.
JPEG alone goes through it. What other formats need, such as palettes and transparency, Pillow does in either case.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.images import framed_pixels, open_picture
from megatron_ovenc.data.windows import Framing, Window


def installed() -> bool:
    """Whether DALI can be imported."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def dali_pixels(content: bytes, framing: Framing) -> np.ndarray:
    """As `images.framed_pixels`, to within the rounding of two implementations of one filter.

    Raises:
        BadSample: not a picture, or a damaged one.
    """
    file, width, height = open_picture(content)
    if not _is_plain_jpeg(file):
        return framed_pixels(content, framing)
    window = framing(width, height)
    try:
        return _run(_pipeline(), content, window)
    except RuntimeError as error:
        _pipeline.cache_clear()  # DALI declares a pipeline unusable after its first error
        framed_pixels(content, framing)  # DALI's "unknown error" helps nobody: Pillow says what is wrong with the file
        raise BadSample(f"DALI cannot decode the image, which Pillow can: {error}") from error


def _is_plain_jpeg(file: Image.Image) -> bool:
    return file.format == "JPEG" and file.mode in ("RGB", "L")


def _run(pipeline: Any, content: bytes, window: Window) -> np.ndarray:
    left, top, right, bottom = window.box
    if window.flip:
        left, right = right, left  # DALI mirrors a region whose end lies before its start
    pipeline.feed_input("file", [np.frombuffer(content, np.uint8)])
    pipeline.feed_input("region", [np.array([top, left, bottom, right], np.float32)])
    pipeline.feed_input("size", [np.array([window.height, window.width], np.float32)])
    (pictures,) = pipeline.run()
    return np.array(pictures.at(0))  # a copy: DALI reuses its buffer


@cache
def _pipeline() -> Any:
    """One a process, for pictures and windows of any size."""
    from nvidia.dali import fn, pipeline_def, types

    # Nothing runs ahead: what is fed comes out of the same call.
    @pipeline_def(batch_size=1, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
    def decode_and_resize() -> Any:
        file = fn.external_source(name="file", dtype=types.UINT8, ndim=1)
        region = fn.external_source(name="region", dtype=types.FLOAT, ndim=1)
        size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
        # Colour is upsampled smoothly, as Pillow does it.
        picture = fn.decoders.image(file, device="cpu", output_type=types.RGB, jpeg_fancy_upsampling=True)
        return fn.resize(
            picture,
            size=size,
            roi_start=region[:2],
            roi_end=region[2:],
            interp_type=types.INTERP_TRIANGULAR,
            antialias=True,
        )

    pipeline = decode_and_resize()
    pipeline.build()
    return pipeline
