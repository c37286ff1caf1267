"""Encode one clip anew, frame for frame."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

import codec
from codec.source import open_clip, pictures

ENCODERS = {"x264": "libx264", "x265": "libx265", "h264_nvenc": "h264_nvenc", "hevc_nvenc": "hevc_nvenc"}
"""FFmpeg's names."""
DEFAULT_RATE = Fraction(30)
"""Frames a second of clips that do not tell theirs."""
_PROBE_SIDE = 256
"""Smaller pictures some NVENC encoders refuse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """How clips are encoded."""

    encoder: str
    """A key of ENCODERS."""
    size: int
    """Short side in pixels, of clips that are not smaller already."""
    gop: int
    """A key frame every so many frames, and nowhere else."""
    crf: int
    """Constant quality: lower is better."""
    preset: str | None
    """The encoder's name for its effort."""

    def options(self) -> dict[str, str]:
        """For FFmpeg's encoder. Groups are closed, so that decoding may start at any key frame."""
        common = {"g": str(self.gop), "preset": self.preset or ("p5" if "nvenc" in self.encoder else "medium")}
        match self.encoder:
            case "x264":
                return {**common, "crf": str(self.crf), "keyint_min": str(self.gop), "sc_threshold": "0"}
            case "x265":
                keys = f"keyint={self.gop}:min-keyint={self.gop}:scenecut=0:open-gop=0"
                return {
                    **common,
                    "crf": str(self.crf),
                    "x265-params": f"{keys}:pools=none:frame-threads=1:log-level=error",
                }
        return {**common, "rc": "vbr", "cq": str(self.crf), "no-scenecut": "1", "forced-idr": "1"}

    def probe(self) -> None:
        """Encode a grey picture.

        Raises:
            ValueError: this FFmpeg or this machine does not have the encoder, or not the preset.
        """
        grey = av.VideoFrame.from_ndarray(np.full((_PROBE_SIDE, _PROBE_SIDE, 3), 128, np.uint8), format="rgb24")
        try:
            with av.open(io.BytesIO(), "w", format="mp4") as out:
                stream = self.stream(out, DEFAULT_RATE, _PROBE_SIDE, _PROBE_SIDE)
                out.mux(stream.encode(grey.reformat(format="yuv420p")))
                out.mux(stream.encode(None))
        except (av.error.FFmpegError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"--encoder {self.encoder} with --preset {self.preset} does not work on this machine: {error}; "
                f"take another of {', '.join(ENCODERS)}, or another preset"
            ) from error

    def stream(self, out: Any, rate: Fraction, width: int, height: int) -> Any:
        """Add a stream of this encoding to an open container."""
        stream = out.add_stream(ENCODERS[self.encoder], rate=rate, options=self.options())
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # one process a core, and the same bytes every time
        return stream


def encode(source: Path, target: Path, encoding: Encoding) -> int:
    """Encode a clip; `target` appears when it is whole. Returns the number of frames.

    Raises:
        CodecError: the clip is damaged, or what was made of it has not as many frames.
        OSError, FFmpegError: it cannot be read or encoded, or the disk is full.
    """
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        frames = _encode(source, temporary, encoding)
        made = codec.frame_count(temporary)
        if made != frames:
            raise codec.CodecError(f"the clip: {frames} frames were decoded, but {made} came out of the encoder")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return frames


def _encode(source: Path, target: Path, encoding: Encoding) -> int:
    reformatter, frames = VideoReformatter(), 0
    with (
        open_clip(source, "the clip") as clip,
        av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as out,
    ):
        rate = clip.stream.average_rate or DEFAULT_RATE
        stream = None
        for picture in pictures(clip):
            if stream is None:
                width, height = shrunk(picture.frame.width, picture.frame.height, encoding.size)
                stream = encoding.stream(out, rate, width, height)
            frame = reformatter.reformat(
                picture.frame, width, height, "yuv420p", interpolation=Interpolation.BICUBIC, threads=1
            )
            frame.pts, frame.time_base = frames, 1 / rate
            frame.pict_type = 0  # the encoder decides, not the source
            out.mux(stream.encode(frame))
            frames += 1
        assert stream is not None, "pictures() raises where there is none"
        out.mux(stream.encode(None))
    return frames


def shrunk(width: int, height: int, size: int) -> tuple[int, int]:
    """The picture's sides with the short one at most `size`, even as 4:2:0 wants them."""
    scale = min(1.0, size / min(width, height))
    across, down = (max(2, min(2 * round(side * scale / 2), side - side % 2)) for side in (width, height))
    return across, down
