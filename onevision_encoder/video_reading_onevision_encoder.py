"""Video files to the patches that a model is shown: evenly spaced whole frames, or what the file's own encoder found salient.

Both give the pixels and positions that training and evaluation give for the same file. PyAV decodes; selection is the `codec`
package's, and nothing of it is repeated here. Both are imported on use, and by name: remote code that mentioned them in an
import statement would refuse to load, pictures included, where they are missing.

Legend: T frames, H W pixels, h w patch rows and columns, p side of a patch, K patches.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from .video_pixels_onevision_encoder import resized

Source: TypeAlias = "str | os.PathLike[str]"
Size: TypeAlias = tuple[int, int]
"""(H, W) that frames are stretched to."""


def uniform_frames(source: Source, count: int, size: Size, virtual_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole frames, each from the middle of one of `count` equal segments of a clip; a shorter clip repeats frames.

    Returns:
        uint8 [count, H, W, 3] and int64 [count]: pixels, and times on the axis of `virtual_frames`.

    Raises:
        ImportError: PyAV is missing.
        ValueError: the file is missing, damaged or no video.
    """
    total = sum(1 for _ in _decode(source))
    indices = (2 * np.arange(count) + 1) * (total - 1) // (2 * count)
    distinct, places = np.unique(indices, return_inverse=True)
    chosen = set(distinct.tolist())
    pixels = [resized(frame, size) for index, frame in enumerate(_decode(source)) if index in chosen]
    times = np.rint(indices / max(total - 1, 1) * (virtual_frames - 1)).astype(np.int64)
    return np.stack(pixels)[places], times


def codec_patches(
    source: Source, budget: int, size: Size, patch_size: int, virtual_frames: int, i_frames: str
) -> tuple[np.ndarray, np.ndarray]:
    """The `budget` most salient patches of (at most `virtual_frames` evenly spaced) frames, or all that a short clip has.

    Returns:
        uint8 [K, 3, p, p] and int64 [K, 3]: pixels, and (t, row, col) in ascending order.

    Raises:
        ImportError: the `codec` package or PyAV is missing.
        ValueError: the file is missing, damaged or no video.
    """
    codec = _need("codec", "codec-selected patches", 'megatron-ovenc, or pass sampling="uniform"')
    indices = codec.frame_indices(codec.frame_count(source), virtual_frames)
    chosen = set(indices.tolist())
    frames = []

    def signals() -> Iterator[Any]:
        for frame, found in codec.decode(source):
            if found.index in chosen:
                frames.append(resized(frame, size))
            yield found

    sampled = codec.sample(signals(), indices)
    rows, cols = size[0] // patch_size, size[1] // patch_size
    # In 256 levels, as the sidecars of training clips store them.
    saliency = np.rint(codec.saliency(sampled, (rows, cols)) * 255).astype(np.uint8)
    types = [frame.type for frame in sampled]
    positions = codec.select(saliency, min(budget, saliency.size), i_frames, frame_types=types)
    t, row, col = positions.T
    blocks = np.stack(frames).reshape(len(frames), rows, patch_size, cols, patch_size, 3)
    return blocks[t, row, :, col].transpose(0, 3, 1, 2), positions.astype(np.int64)


def _decode(source: Source) -> Iterator[Any]:
    """All frames of a video file in display order; damage that FFmpeg would paint over is an error."""
    av = _need("av", "reading a video file", "av")
    if not os.path.isfile(source):
        raise ValueError(f"{os.fspath(source)}: there is no such file")
    count = 0
    try:
        with av.open(os.fspath(source)) as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise ValueError(f"{os.fspath(source)}: there is no video stream in this file that FFmpeg can decode")
            # Results must not depend on the number of cores.
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise ValueError(f"{os.fspath(source)}: frame {count} is damaged")
                yield frame
                count += 1
            promised = stream.frames
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{os.fspath(source)}: cannot be decoded past frame {count}: {error.strerror}") from error
    if count == 0 or count < promised:
        raise ValueError(f"{os.fspath(source)}: truncated after {count} of {max(promised, 1)} frames")


def _need(module: str, purpose: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the Python package `{module}`, which cannot be imported ({error}): pip install {install}."
        ) from error
