"""Samples to views: whole files, segments of long videos, and several clips of one video.

A segment is copied out of its file packet by packet, from the key frame before it, so that an hour of video is neither read nor
decoded for five seconds of it, and the codec's signals stay those of the original stream.
"""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import av
import av.error

from eval.datasets import Sample
from eval.views import Picture, SampleView
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.video import length, open_frames
from megatron_ovenc.data.views import View

SEEK_MARGIN_S = 1.0
"""More than any stream's pictures are decoded before they are shown."""


def look(view: SampleView, clips: int, sample: Sample) -> list[View]:
    """What `view` shows of each of the `clips` equal parts of a sample.

    Raises:
        BadSample: the file is missing or damaged.
    """
    content, frames = read(sample)
    if isinstance(view, Picture) or clips == 1:
        return [view(content, frames)]
    frames = range(length(open_frames(content))) if frames is None else frames
    return [view(content, part) for part in parts(frames, clips)]


def parts(frames: range, count: int) -> list[range]:
    """`count` parts of `frames` in order, equal but for one frame; they share frames only where there are too few."""
    edges = [frames.start + len(frames) * number // count for number in range(count + 1)]
    return [range(min(begin, frames.stop - 1), max(end, begin + 1)) for begin, end in pairwise(edges)]


def read(sample: Sample) -> tuple[bytes, range | None]:
    """A file's bytes, or of a segment a short video and the frames of that which belong to it.

    Raises:
        BadSample: the file cannot be read, or has no frame in the segment.
    """
    if sample.seconds is not None:
        return copy_segment(sample.path, *sample.seconds)
    try:
        return sample.path.read_bytes(), None
    except OSError as error:
        raise BadSample(f"it cannot be read: {error.strerror}") from error


def copy_segment(path: Path, begin: float, end: float) -> tuple[bytes, range]:
    """The packets that frames of [begin, end) seconds need, as a Matroska file, and the places of those frames in it.

    Raises:
        BadSample: the file cannot be read, or has no frame in the segment.
    """
    target = io.BytesIO()
    try:
        with av.open(path) as source, av.open(target, "w", format="matroska") as copy:
            stream = source.streams.video[0]
            assert stream.time_base is not None
            ticks = 1 / stream.time_base
            origin = stream.start_time or 0
            first, stop = origin + begin * ticks, origin + end * ticks
            copied = copy.add_stream_from_template(stream)
            # Containers seek by decoding time, which runs ahead of display time by a few frames.
            source.seek(int(first - SEEK_MARGIN_S * ticks), stream=stream, backward=True)
            stamps = _copy_packets(source, stream, copy, copied, float(stop))
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise BadSample(f"its segment cannot be read: {getattr(error, 'strerror', None) or error}") from error
    inside = [place for place, stamp in enumerate(sorted(stamps)) if first <= stamp < stop]
    if not inside:
        raise BadSample(f"it has no frame between {begin:g} and {end:g} seconds")
    return target.getvalue(), range(inside[0], inside[-1] + 1)


def _copy_packets(
    source: av.container.InputContainer,
    stream: av.VideoStream,
    copy: av.container.OutputContainer,
    copied: av.VideoStream,
    stop: float,
) -> list[int]:
    """Copy packets in decoding order until all frames before `stop` are there; returns the display times of what was copied."""
    stamps: list[int] = []
    for packet in source.demux(stream):
        if not packet.size:
            continue
        if packet.pts is None or packet.dts is None:
            raise BadSample("its packets carry no time, so that a segment of it cannot be found")
        if packet.dts >= stop and stamps:
            break
        # What is shown before the first key frame refers to pictures that are not copied.
        if stamps and packet.pts < stamps[0]:
            continue
        stamps.append(packet.pts)
        packet.stream = copied
        copy.mux(packet)
    return stamps
