"""Real clips: a stream that x265 did not write, and two clips of cameras and screens transcoded.

They are not part of the repository.
"""

import io
from pathlib import Path

import av
import numpy as np
import pytest

import codec
from codec import hevc

FOLDER = Path(__file__).parents[4] / "shared" / "videos"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the clips in {FOLDER} are not here")
PICTURE_TYPES = " IPB"


def transcoded(path: Path, count: int = 20) -> bytes:
    file = io.BytesIO()
    with av.open(str(path)) as source, av.open(file, "w", format="matroska") as output:
        options = {"crf": "23", "preset": "veryfast", "x265-params": "log-level=none:pools=1"}
        stream = output.add_stream("libx265", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = (
            source.streams.video[0].width,
            source.streams.video[0].height,
            "yuv420p",
        )
        for _, frame in zip(range(count), source.decode(video=0), strict=False):
            frame.pict_type = 0
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("name", ["girlshy.h265", "ytb_XwB-dkS5BVM.mp4", "ytb_YVQwAEKZpaU.mp4"])
def test_a_real_clip_is_read_as_ffmpeg_shows_it(name: str) -> None:
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    data = path.read_bytes() if name.endswith("h265") else transcoded(path)
    with av.open(io.BytesIO(data)) as clip:
        shown = [(PICTURE_TYPES[int(f.pict_type)], bool(f.key_frame), f.width, f.height) for f in clip.decode(video=0)]
    frames = list(hevc.frames(data))
    assert [(frame.type, frame.key_frame, frame.width, frame.height) for frame in frames] == shown
    for frame in frames:
        assert frame.bits.sum() + frame.other_bits == pytest.approx(frame.slice_data_bits, rel=0.01)
    for alone, (_, paired) in zip(codec.signals(data), codec.decode(data), strict=True):
        assert not alone.estimated
        np.testing.assert_array_equal(alone.motion, paired.motion)
