"""Image files to RGB pixels, decoded and resized by NVIDIA DALI: the same windows, filter and errors as `images`.

The pipeline holds nothing between samples: no reader, no shuffling, no random numbers. It is given files with their windows and
returns their pictures, so order and resumption stay ours. Here it has one file at a time, on the CPU; `dali_batch` gives it more.
JPEG alone goes through it. What other formats need, such as palettes and transparency, Pillow does in either case.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.images import framed_pixels, is_plain_jpeg, open_picture
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
    if not is_plain_jpeg(file):
        return framed_pixels(content, framing)
    window = framing(width, height)
    try:
        for name, value in inputs(np.frombuffer(content, np.uint8), window).items():
            _pipeline().feed_input(name, [value])
        (pictures,) = _pipeline().run()
    except RuntimeError as error:
        _pipeline.cache_clear()  # DALI declares a pipeline unusable after its first error
        framed_pixels(content, framing)  # DALI's "unknown error" helps nobody: Pillow says what is wrong with the file
        raise BadSample(f"DALI cannot decode the image, which Pillow can: {error}") from error
    return np.array(pictures.at(0))  # a copy: DALI reuses its buffer


def inputs(content: np.ndarray, window: Window) -> dict[str, np.ndarray]:
    """What `windows_of_files` wants to know of one file, uint8 [bytes], by name of the input."""
    left, top, right, bottom = window.box
    if window.flip:
        left, right = right, left  # DALI mirrors a region whose end lies before its start
    return {
        "file": content,
        "region": np.array([top, left, bottom, right], np.float32),
        "size": np.array([window.height, window.width], np.float32),
    }


def windows_of_files(device: str, **options: Any) -> Any:
    """The part of a pipeline that decodes files and resizes their windows.

    Args:
        device: of DALI's decoder, `cpu` or `mixed`.
        options: of the decoder.
    """
    from nvidia.dali import fn, types

    file = fn.external_source(name="file", dtype=types.UINT8, ndim=1)
    region = fn.external_source(name="region", dtype=types.FLOAT, ndim=1)
    size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
    # Colour is upsampled smoothly, as Pillow does it.
    picture = fn.decoders.image(file, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True, **options)
    return fn.resize(
        picture,
        size=size,
        roi_start=region[:2],
        roi_end=region[2:],
        interp_type=types.INTERP_TRIANGULAR,
        antialias=True,
    )


@cache
def _pipeline() -> Any:
    """One a process, for pictures and windows of any size."""
    from nvidia.dali import pipeline_def

    # Nothing runs ahead: what is fed comes out of the same call.
    @pipeline_def(batch_size=1, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
    def one_picture() -> Any:
        return windows_of_files("cpu")

    pipeline = one_picture()
    pipeline.build()
    return pipeline
