"""FFmpeg's decoder, through PyAV, as the judge of streams."""

import io

import av
import numpy as np
from av.codec.context import Flags
from av.logging import Capture


def decode(data: bytes, container: str = "hevc", slice_threads: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Luma planes [height, width] (uint8 or uint16) in output order, and what the decoder complained about.

    With `slice_threads`, wavefronts are decoded in parallel, which is where FFmpeg uses entry points.
    """
    planes = []
    previous = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with Capture(local=False) as complaints, av.open(io.BytesIO(data), mode="r", format=container) as source:
            context = source.streams.video[0].codec_context
            context.thread_type = "SLICE"
            context.thread_count = max(slice_threads, 1)
            context.flags |= Flags.unaligned  # crop at the left exactly
            for frame in source.decode(video=0):
                planes.append(luma(frame))
    finally:
        av.logging.set_level(previous)
    return planes, [text.strip() for _, name, text in complaints if name == "hevc"]


def luma(frame: av.VideoFrame) -> np.ndarray:
    """A copy of the luma plane without its padding."""
    plane = frame.planes[0]
    kind = np.dtype(np.uint8 if frame.format.components[0].bits == 8 else "<u2")
    rows = np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)
    return rows.view(kind)[:, : plane.width].copy()
