"""Frames of a clip by number, decoding no more of it than they need.

    frames = codec.Frames("clip.mp4")
    for frame in frames.at([3, 17, frames.count - 1]):
        ...

Of H.264 and HEVC, packets tell before anything is decoded how many frames there are, where decoding can start, and which frames no
other is predicted from (half of them in what x264 and x265 make by default). The bitstream is asked, never a container's key-frame
flags. Where packets leave doubts, and in other codecs, everything up to the last wanted frame is decoded.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import cast

import av
import av.error
import numpy as np
import numpy.typing as npt

from codec.packet_index import Run, read_index
from codec.source import check_frame, frame_count, open_clip, pictures, reason
from codec.types import CodecError, Source, describe


class Frames:
    """The frames of a clip by their display index. Nothing stays open."""

    def __init__(self, source: Source, name: str | None = None) -> None:
        """Read the packets.

        Raises:
            CodecError: as `open_clip`, or the clip is damaged or cut off as far as this shows in what was read.
        """
        self._source = source
        self._name = describe(source, name)
        with open_clip(source, name) as clip:
            context = clip.stream.codec_context
            self.codec = clip.codec
            """FFmpeg's name of the stream's codec."""
            self.size = (context.width, context.height)
            """Width and height in pixels, as the stream's head has them."""
            self._index = read_index(clip)

    @cached_property
    def count(self) -> int:
        """Number of frames; where packets do not tell, all are decoded to find out.

        Raises:
            CodecError: the clip is damaged.
        """
        return len(self._index.packets) if self._index else frame_count(self._source, name=self._name)

    def at(self, wanted: Sequence[int] | npt.NDArray[np.integer]) -> Iterator[av.VideoFrame]:
        """Decode frames at strictly increasing display indices.

        One such iterator at a time: all of a clip's share its decoder.

        Raises:
            CodecError: the clip is damaged, or ends before a wanted frame.
        """
        indices = [int(index) for index in wanted]
        if any(after <= before for before, after in pairwise([-1, *indices])):
            raise ValueError(f"frame indices must be non-negative and strictly increasing; got {indices}")
        if self._index and indices and indices[-1] >= self.count:
            missing = next(index for index in indices if index >= self.count)
            raise CodecError(f"{self._name} ends before frame {missing}: it has {self.count}")
        return self._sought(indices) if self._index else self._filtered(indices)

    def _filtered(self, indices: list[int]) -> Iterator[av.VideoFrame]:
        """By decoding everything up to the last."""
        left = iter(indices)
        wanted = next(left, None)
        for index, frame in enumerate(_all(self._source, self._name) if indices else ()):
            if index == wanted:
                yield frame
                wanted = next(left, None)
                if wanted is None:
                    return
        if wanted is not None:
            raise CodecError(f"{self._name} ends before frame {wanted}")

    def _sought(self, indices: list[int]) -> Iterator[av.VideoFrame]:
        """By decoding from the nearest starts, leaving out what no wanted frame is predicted from."""
        assert self._index is not None
        done = 0
        size: tuple[int, int] | None = None
        for place, frame in chain.from_iterable(map(self._decoded, self._index.runs(indices))):
            if done == len(indices) or place != indices[done]:
                # One did not come out, or out of order: the packets lie about which is which.
                break
            size = size or (frame.width, frame.height)
            check_frame(self._name, frame, place, size)
            yield frame
            done += 1
        if done < len(indices):
            yield from self._filtered(indices[done:])

    def _decoded(self, run: Run) -> Iterator[tuple[int, av.VideoFrame]]:
        """(display index, frame) of the wanted frames of a run as they come out of the decoder; -1 where that is out of order."""
        index = self._index
        assert index is not None
        decoder = index.decoder
        decoder.flush_buffers()
        last = -1
        for order in (*run.orders, None):
            packet = None
            if order is not None:
                packet = index.packets[order]
                # In a tuple of its own: PyAV knows these by their address, and the small integers are shared by all clips.
                packet.opaque = (order,)
            try:
                frames = decoder.decode(packet)
            except av.error.FFmpegError as error:
                before = f"frame {index.shown[order]}" if order is not None else "its end"
                raise CodecError(f"{self._name}: cannot be decoded at {before}: {reason(error)}") from error
            for frame in frames:
                place = index.shown[cast(tuple[int], frame.opaque)[0]]
                if place < last:
                    yield -1, frame
                if place in run.wanted:
                    yield place, frame
                last = place


def _all(source: Source, name: str) -> Iterator[av.VideoFrame]:
    with open_clip(source, name) as clip:
        for picture in pictures(clip):
            yield picture.frame
