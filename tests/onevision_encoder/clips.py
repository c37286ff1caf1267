"""Small clips, really encoded, for the tests of the video processor."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, frames: int, *, height: int = 96, width: int = 128, gop: int = 16) -> Path:
    """H.264: a bright square moves over grey noise. The index lies in front, so that a file cut short still opens."""
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 120, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as output:
        stream = output.add_stream("libx264", rate=25, options={"x264-params": f"keyint={gop}:bframes=0"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for index in range(frames):
            picture = ground.copy()
            left = index % (width - 24)
            picture[20:44, left : left + 24] = 230
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return path
