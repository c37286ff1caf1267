"""Frames by number equal those of a full decode, whatever the stream, its container and what the container claims."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import pytest

import codec
from codec.h264_headers import _record_units
from codec.source import open_clip, pictures
from tests.codec.clips import encode, panning, trimmed
from tests.codec.hevc_streams.streams import STREAMS

QUIET = "log-level=none:pools=none"
LENGTH = 41
ENCODED = {
    "x264": ("libx264", {"preset": "medium"}),
    "x264, short groups, pyramid": ("libx264", {"x264-params": "keyint=7:bframes=3:b-adapt=0:b-pyramid=strict"}),
    "x264, open groups": ("libx264", {"x264-params": "keyint=9:open-gop=1:bframes=3:b-adapt=0"}),
    "x264, intra refresh": ("libx264", {"x264-params": "keyint=10:intra-refresh=1"}),
    "x264, fields": ("libx264", {"x264-params": "interlaced=1:keyint=12"}),
    "x264, no B frames": ("libx264", {"tune": "zerolatency", "g": "12"}),
    "x265": ("libx265", {"x265-params": QUIET}),
    "x265, open groups": ("libx265", {"x265-params": f"{QUIET}:keyint=9:open-gop=1:bframes=4:b-adapt=0"}),
    "x265, closed groups": ("libx265", {"x265-params": f"{QUIET}:keyint=11:open-gop=0:bframes=3"}),
    "x265, leading pictures": ("libx265", {"x265-params": f"{QUIET}:keyint=12:open-gop=0:radl=2:bframes=4"}),
    "x265, temporal layers": ("libx265", {"x265-params": f"{QUIET}:keyint=16:temporal-layers=1:bframes=3"}),
    "VP9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "MPEG-4": ("mpeg4", {"bf": "2"}),
}
SEEKABLE = [name for name in ENCODED if name.startswith("x26") and "fields" not in name]


def encoded(name: str, container: str) -> bytes:
    encoder, options = ENCODED[name]
    frames = panning(LENGTH, (64, 96), (2.3, 1.1))
    frames[20] = 255 - frames[20]  # a cut, as scene detection sees it
    return encode(frames, encoder, options, container)


def every(clip: bytes) -> list[np.ndarray]:
    with open_clip(clip) as opened:
        return [picture.frame.to_ndarray() for picture in pictures(opened)]


def check(clip: bytes, draws: int = 12) -> None:
    """Any choice of frames equals the same of all."""
    expected, frames = every(clip), codec.Frames(clip)
    assert frames.count == len(expected)
    rng = np.random.default_rng(0)
    for _ in range(draws):
        wanted = np.sort(rng.choice(len(expected), rng.integers(1, min(9, len(expected) + 1)), replace=False))
        found = [frame.to_ndarray() for frame in frames.at(wanted)]
        assert len(found) == len(wanted)
        assert all(np.array_equal(frame, expected[index]) for frame, index in zip(found, wanted, strict=True))


def decoded_packets(frames: codec.Frames, wanted: list[int]) -> int:
    assert frames._index is not None
    return sum(len(run.orders) for run in frames._index.runs(wanted))


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("name", ENCODED)
def test_chosen_frames_are_those_of_a_full_decode(name: str, container: str) -> None:
    if (name, container) == ("VP9", "mpegts"):
        pytest.skip("MPEG-TS carries no VP9")
    check(encoded(name, container))


@pytest.mark.parametrize("name", SEEKABLE)
def test_less_is_decoded_than_all(name: str) -> None:
    frames = codec.Frames(encoded(name, "mp4"))
    assert decoded_packets(frames, list(range(LENGTH))) == LENGTH
    assert decoded_packets(frames, [0]) == 1
    assert decoded_packets(frames, [3, 8, 30]) <= 31
    if "groups" in name and "x264, open" not in name:
        assert decoded_packets(frames, [38]) <= 12  # from a key frame nearby
    if "no B" not in name:
        assert decoded_packets(frames, [0, LENGTH - 1]) < LENGTH - 5  # without frames that no other needs


@pytest.mark.parametrize("name", ["x264", "x265"])
def test_raw_streams_without_time_stamps_are_decoded_from_the_start(name: str) -> None:
    clip = encoded(name, "h264" if name == "x264" else "hevc")
    assert codec.Frames(clip)._index is None
    check(clip)


def with_stamps(raw: bytes, name: str) -> bytes:
    """A written HEVC stream in MPEG-TS, with time stamps in the order of display."""
    output = io.BytesIO()
    with av.open(io.BytesIO(raw), format="hevc") as source, av.open(output, "w", format="mpegts") as target:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        with open_clip(raw) as clip:
            shown = [picture.order for picture in pictures(clip)]
        hidden = sorted(set(range(len(packets))) - set(shown))
        # Those that lead the first picture would be shown before it.
        shown = [*hidden, *shown] if "cra" in name else [shown[0], *hidden, *shown[1:]]
        stream = target.add_stream_from_template(source.streams.video[0])
        for order, packet in enumerate(packets):
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.dts, packet.pts = order, shown.index(order) + len(packets)
            target.mux(packet)
    return output.getvalue()


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "size_changes"])
def test_written_streams_of_every_kind(name: str) -> None:
    raw = STREAMS[name]().data
    check(raw, draws=3)
    check(with_stamps(raw, name), draws=6)


def packets_of(clip: bytes) -> list[av.Packet]:
    with av.open(io.BytesIO(clip)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def test_avi_has_no_times_of_display() -> None:
    clip = encoded("x264", "avi")
    assert codec.Frames(clip)._index is None
    check(clip)


def joined(first: bytes, second: bytes) -> bytes:
    """Two MPEG-TS files one after the other; the packets of each stream are numbered on, so that no reader misses any."""
    result, counters = bytearray(first + second), dict[int, int]()
    for begin in range(0, len(result), 188):
        stream, flags = int.from_bytes(result[begin + 1 : begin + 3], "big") & 0x1FFF, result[begin + 3]
        if flags & 0x10:
            counters[stream] = (counters.get(stream, -1) + 1) & 15
        result[begin + 3] = (flags & 0xF0) | counters.get(stream, 0)
    return bytes(result)


def moved(clip: bytes, offset: int) -> bytes:
    """An MPEG-TS file whose clock is `offset` / 90,000 seconds ahead."""
    output = io.BytesIO()
    with av.open(io.BytesIO(clip)) as source, av.open(output, "w", format="mpegts") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size and packet.pts is not None and packet.dts is not None:
                packet.stream = stream
                packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                target.mux(packet)
    return output.getvalue()


@pytest.mark.parametrize("offset", [1700, 6 * 3600 + 1700])
@pytest.mark.parametrize("name", ["x264, no B frames", "x265, closed groups"])
def test_a_clock_that_starts_again_does_not_mix_two_recordings(name: str, offset: int) -> None:
    first = encoded(name, "mpegts")
    encoder, options = ENCODED[name]
    inverted = encode([255 - frame for frame in panning(LENGTH, (64, 96), (-1.3, 2.1))], encoder, options, "mpegts")
    clip = joined(moved(first, 0), moved(inverted, offset))
    assert len(every(clip)) > 1.5 * LENGTH
    check(clip)


def appended(first: bytes, second: bytes, sets: bytes) -> bytes:
    """A Matroska file of two clips' packets; before those of the second, its parameter sets."""
    output = io.BytesIO()
    with av.open(io.BytesIO(first)) as template, av.open(output, "w", format="matroska") as target:
        stream = target.add_stream_from_template(template.streams.video[0])
        for clip, shift, before in ((first, 0, b""), (second, 1000, sets)):
            for packet in packets_of(clip):
                added, before = av.Packet(before + bytes(packet)), b""
                added.pts, added.dts = (packet.pts or 0) + 100 + shift, (packet.dts or 0) + shift
                added.time_base, added.stream, added.is_keyframe = packet.time_base, stream, packet.is_keyframe
                target.mux(added)
    return output.getvalue()


def test_parameter_sets_told_once_on_the_way_are_not_left_out() -> None:
    first, second = (
        encode(
            panning(24, (64, 96), (2.3, 1.1), seed),
            "libx264",
            {"x264-params": f"keyint=8:qp=20:cqm={matrix}"},
            "matroska",
        )
        for seed, matrix in enumerate(("flat", "jvt"))
    )
    with av.open(io.BytesIO(second)) as container:
        record = bytes(container.streams.video[0].codec_context.extradata or b"")
    sets = b"".join(len(unit).to_bytes(4, "big") + unit for unit in _record_units(record))
    clip = appended(first, second, sets)
    expected = every(clip)
    assert len(expected) == 48
    for wanted in (47, 44, 30):
        (found,) = codec.Frames(clip).at([wanted])
        assert np.array_equal(found.to_ndarray(), expected[wanted])


@pytest.mark.parametrize("hidden", [3, 9, 20])
def test_frames_that_an_edit_list_hides_do_not_count(hidden: int) -> None:
    clip = trimmed(encoded("x264, short groups, pyramid", "mp4"), hidden, LENGTH)
    assert len(every(clip)) == LENGTH - hidden
    check(clip)


def remuxed(clip: bytes, change: Callable[[int, av.Packet], None]) -> bytes:
    output = io.BytesIO()
    with av.open(io.BytesIO(clip)) as source, av.open(output, "w", format="matroska") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for order, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.stream = stream
                change(order, packet)
                target.mux(packet)
    return output.getvalue()


@pytest.mark.parametrize("name", ["x264, short groups, pyramid", "x265, open groups"])
def test_a_container_that_lies_about_key_frames_changes_nothing(name: str) -> None:
    def all_keys(_: int, packet: av.Packet) -> None:
        packet.is_keyframe = True

    check(remuxed(encoded(name, "mp4"), all_keys))


def test_where_time_stamps_lie_frames_are_counted_as_they_are_decoded() -> None:
    def swapped(order: int, packet: av.Packet) -> None:
        assert packet.pts is not None
        packet.pts += 200 + {9: 40, 10: -40}.get(order, 0)

    clip = remuxed(encoded("x264, no B frames", "matroska"), swapped)
    expected, frames = every(clip), codec.Frames(clip)
    for wanted in (range(LENGTH), [9], [3, 9, 10, 20]):
        found = [frame.to_ndarray() for frame in frames.at(wanted)]
        assert all(np.array_equal(frame, expected[index]) for frame, index in zip(found, wanted, strict=True))


def test_a_stream_that_begins_in_the_middle_has_the_frames_that_can_be_decoded() -> None:
    clip = encoded("x265, open groups", "mpegts")
    packets = packets_of(clip)
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    output = io.BytesIO()
    with av.open(io.BytesIO(clip)) as source, av.open(output, "w", format="mpegts") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= keys[1]:
                packet.stream = stream
                target.mux(packet)
    cut = output.getvalue()
    assert len(every(cut)) < len(packets) - keys[1]  # leading pictures are not shown
    check(cut)


@pytest.mark.parametrize("container", ["mp4", "mpegts"])
def test_a_cut_file_is_refused_at_once_or_where_it_ends(container: str) -> None:
    clip = encoded("x264", container)
    cut = clip[: len(clip) * 9 // 10]

    def last() -> list[av.VideoFrame]:
        # MPEG-TS does not tell how many frames there should be.
        frames = codec.Frames(cut, "the clip")
        return list(frames.at([frames.count - 1]))

    with pytest.raises(codec.CodecError, match="the clip"):
        last()


def test_damage_in_what_is_decoded_is_an_error() -> None:
    clip = bytearray(encoded("x264, no B frames", "matroska"))
    packet = bytes(packets_of(bytes(clip))[14])
    begin = bytes(clip).index(packet)
    clip[begin + 20 : begin + len(packet)] = b"\xff" * (len(packet) - 20)
    frames = codec.Frames(bytes(clip), "the clip")
    with pytest.raises(codec.CodecError, match=r"the clip: (frame 14 is damaged|cannot be decoded)"):
        list(frames.at([2, 14]))
    assert len(list(frames.at([2, 40]))) == 2  # of other groups


def test_wanted_frames_are_checked() -> None:
    frames = codec.Frames(encoded("x264", "mp4"), "the clip")
    for wrong in ([3, 3], [5, 2], [-1]):
        with pytest.raises(ValueError, match="strictly increasing"):
            frames.at(wrong)
    with pytest.raises(codec.CodecError, match="the clip ends before frame 41: it has 41"):
        frames.at([3, 41])
    assert list(frames.at([])) == []


def test_clips_that_are_decoded_at_the_same_time_do_not_disturb_each_other() -> None:
    """Turn by turn, each letting go of packets whose places in their clip are the other's, too."""
    clip = encoded("x264", "mp4")
    expected, wanted = every(clip), list(range(0, LENGTH, 3))
    first, second = codec.Frames(clip), codec.Frames(clip)
    for one, other in zip(first.at(wanted), second.at(wanted), strict=True):
        assert np.array_equal(one.to_ndarray(), other.to_ndarray())
    for index, frame in zip(wanted, second.at(wanted), strict=True):
        if index == 9:
            del first
        assert np.array_equal(frame.to_ndarray(), expected[index])
