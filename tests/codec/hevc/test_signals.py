"""`FrameSignals` of HEVC clips: with and without pixels, of real motion, after damage, and of what the reader does not support."""

import io
import warnings

import av
import numpy as np
import pytest

import codec
from codec import hevc
from codec.hevc import parser
from tests.codec.clips import encode, moving_square, panning, trimmed
from tests.codec.hevc_streams.streams import STREAMS

QUIET = "log-level=none:pools=1:frame-threads=1"
CONTAINERS = ("mp4", "matroska", "mpegts", "hevc")


def encoded(count: int = 12, params: str = "bframes=3:keyint=6:min-keyint=6", container: str = "mp4") -> bytes:
    frames = panning(count, (112, 128), (2, 1))
    return encode(frames, "libx265", {"x265-params": f"{QUIET}:{params}"}, container)


@pytest.fixture(scope="module")
def clip() -> bytes:
    return encoded()


@pytest.mark.parametrize("container", CONTAINERS)
def test_signals_are_the_same_with_and_without_pixels(container: str) -> None:
    data = encoded(container=container)
    alone = list(codec.signals(data))
    pairs = list(codec.decode(data))
    assert len(alone) == len(pairs) == 12
    for index, (frame, (picture, paired)) in enumerate(zip(alone, pairs, strict=True)):
        assert frame.index == paired.index == index
        assert (frame.pts, frame.time, frame.key_frame) == (paired.pts, paired.time, bool(picture.key_frame))
        assert container == "hevc" or frame.pts == picture.pts
        assert (frame.height, frame.width) == (picture.height, picture.width) == (112, 128)
        assert not frame.estimated
        for field in ("motion", "residual", "bits"):
            np.testing.assert_array_equal(getattr(frame, field), getattr(paired, field))


@pytest.mark.parametrize("params", ["bframes=3:keyint=24", "bframes=0:keyint=5", "bframes=4:keyint=8:open-gop=1"])
@pytest.mark.parametrize("hidden", [1, 6, 11])
def test_frames_that_an_edit_list_hides_have_no_signals(params: str, hidden: int) -> None:
    whole = encoded(24, params)
    data = trimmed(whole, hidden, 24)
    kept = list(codec.signals(whole))[hidden:]
    alone = list(codec.signals(data))
    pairs = list(codec.decode(data))
    assert len(kept) == len(alone) == len(pairs) == codec.Frames(data).count == 24 - hidden
    for index, (expected, frame, (picture, paired)) in enumerate(zip(kept, alone, pairs, strict=True)):
        assert frame.index == paired.index == index
        assert frame.pts == paired.pts == picture.pts
        assert (frame.type, frame.frame_bytes) == (expected.type, expected.frame_bytes)
        for field in ("motion", "residual", "bits"):
            np.testing.assert_array_equal(getattr(frame, field), getattr(expected, field))
            np.testing.assert_array_equal(getattr(paired, field), getattr(expected, field))


def test_no_pixel_is_decoded_for_signals_alone(clip: bytes, monkeypatch) -> None:
    monkeypatch.setattr("codec.source.pictures", None)
    monkeypatch.setattr("codec.hevc.reader.pictures", None)
    assert len(list(codec.signals(clip))) == 12


@pytest.mark.parametrize("params", ["bframes=0", "bframes=3:b-adapt=0", "bframes=3:b-adapt=0:ref=4:b-pyramid=1"])
def test_the_square_is_found(params: str) -> None:
    frames, corners = moving_square(8, (112, 128), (5, 3), textured_floor=True)
    data = encode(frames, "libx265", {"x265-params": f"{QUIET}:{params}"})
    found = list(codec.signals(data))
    speeds = []
    for frame, (x, y) in zip(found, corners, strict=True):
        inside = frame.motion[y // 4 + 2 : y // 4 + 6, x // 4 + 2 : x // 4 + 6]
        if inside.any():  # an encoder may code the square anew instead
            speeds.append(np.median(inside, axis=(0, 1)))
        assert not frame.motion[-4:].any()
    assert len(speeds) >= 5
    np.testing.assert_array_equal(np.median(speeds, axis=0), [5, 3])


@pytest.mark.parametrize("name", ["poc_gaps", "poc_gaps_far_vectors", "pyramid", "long_term_in_header"])
def test_motion_is_per_frame_whatever_the_distance_of_counts(name: str) -> None:
    """By the definition, from the vectors of `hevc.frames`, which other tests verify. Long-term references say nothing: that is
    picture 0 of the last stream, from picture 2 on."""
    data = STREAMS[name]().data
    shown: hevc.HevcFrame | None = None
    for frame, found in zip(hevc.frames(data), codec.signals(data), strict=True):
        step = frame.poc - shown.poc if shown is not None and frame.poc > shown.poc else 1
        used = frame.predicted.copy()
        if name == "long_term_in_header" and frame.poc >= 2:
            used &= frame.reference_poc != 0
            assert (used != frame.predicted).any()
        distance = np.where(used, frame.poc - frame.reference_poc, 1)[..., None]
        moved = np.where(used[..., None], frame.vectors / -4.0 / distance * step, 0)
        mean = moved.sum(axis=2) / np.maximum(used.sum(axis=2), 1)[..., None]
        np.testing.assert_allclose(found.motion, mean, rtol=1e-4, atol=1e-4)
        shown = frame


def test_intra_frames_have_bits_but_no_signals_of_change(clip: bytes) -> None:
    frames = list(codec.signals(clip))
    full = list(hevc.frames(clip))
    intra = [frame for frame in frames if frame.type == "I"]
    assert len(intra) >= 2
    for frame in intra:
        assert not frame.motion.any() and not frame.residual.any()
        assert frame.bits is not None and frame.bits.sum() > 0
        assert full[frame.index].residual_energy.any()
    assert any(frame.residual.any() for frame in frames)


def test_frames_tell_packets(clip: bytes) -> None:
    with av.open(io.BytesIO(clip)) as container:
        sizes = [packet.size for packet in container.demux(video=0) if packet.size]
    frames = list(hevc.frames(clip))
    assert [frame.frame_bytes for frame in sorted(frames, key=lambda frame: frame.order)] == sizes


def test_other_codecs_are_refused_by_name() -> None:
    data = encode(panning(2, (64, 64), (1, 0)))
    with pytest.raises(codec.CodecError, match=r"walk\.mp4: its video is h264, not HEVC: use codec\.signals"):
        next(hevc.frames(data, name="walk.mp4"))


@pytest.mark.parametrize("read", [codec.signals, codec.decode])
def test_what_is_not_supported_is_estimated_and_said(read) -> None:
    data = encode(panning(4, (64, 64), (2, 0)), "libx265", {"x265-params": QUIET}, pixel_format="yuv444p")
    with pytest.warns(
        UserWarning, match=r"wide\.mp4: the HEVC reader does not support chroma format 4:2:2 or 4:4:4; .*estimated"
    ):
        found = list(read(data, name="wide.mp4"))
    frames = [item[1] if isinstance(item, tuple) else item for item in found]
    assert len(frames) == 4 and all(frame.estimated for frame in frames)
    with pytest.raises(hevc.UnsupportedStream, match=r"wide\.mp4"):
        next(hevc.frames(data, name="wide.mp4"))


def test_without_the_compiled_core_signals_are_estimated_and_the_remedy_named(clip: bytes, monkeypatch) -> None:
    monkeypatch.setattr(parser, "_hevc", None)
    with pytest.warns(UserWarning, match="not compiled: install a C\\+\\+ compiler"):
        frames = list(codec.signals(clip))
    assert len(frames) == 12 and all(frame.estimated for frame in frames)


def test_sound_clips_warn_of_nothing(clip: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(codec.signals(clip))) == 12


def test_damage_is_named_after_the_sound_frames(clip: bytes) -> None:
    """Each packet in turn is overwritten: frames before it in display order come first, and are those of the whole clip."""
    whole = list(codec.signals(clip))
    with av.open(io.BytesIO(clip)) as container:
        places = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    caught = 0
    for position, size in places:
        if size < 60:
            continue
        broken = clip[: position + size // 2] + b"\xff" * (size // 4) + clip[position + size // 2 + size // 4 :]
        frames, message = read_until_error(broken)
        assert not message or f"walk: frame {len(frames)} is damaged" in message
        caught += bool(message)
        for found, expected in zip(frames, whole, strict=False):
            if found.frame_bytes != expected.frame_bytes:
                break
            assert found.type == expected.type
    assert caught >= 5


def test_a_cut_raw_stream_ends_in_damage() -> None:
    data = encoded(container="hevc")
    frames, message = read_until_error(data[: len(data) * 3 // 4])
    assert "damaged" in message and 4 < len(frames) < 12


def read_until_error(data: bytes) -> tuple[list[codec.FrameSignals], str]:
    """The frames before the error, and its message; "" if there is none."""
    frames: list[codec.FrameSignals] = []
    try:
        frames.extend(codec.signals(data, name="walk"))
    except codec.CodecError as error:
        return frames, str(error)
    return frames, ""


def without_picture(data: bytes, number: int) -> bytes:
    """A raw stream of one slice a picture, less a picture."""
    start = b"\x00\x00\x01"
    units = data.split(start)[1:]
    pictures = [n for n, unit in enumerate(units) if unit[0] >> 1 & 63 < 32]
    return b"".join(start + unit for n, unit in enumerate(units) if n != pictures[number])


@pytest.mark.parametrize("params", ["bframes=0:keyint=6:min-keyint=6", "bframes=3:keyint=6:min-keyint=6:open-gop=1"])
def test_reading_starts_at_the_first_picture_that_can_be_decoded(params: str) -> None:
    """As FFmpeg does, in a stream that was cut out of a longer one."""
    data = without_picture(encoded(20, params, "hevc"), 0)
    with av.open(io.BytesIO(data), format="hevc") as clip:
        shown = sum(1 for _ in clip.decode(video=0))
    assert 10 < shown < 19
    assert len(list(codec.signals(data))) == len(list(codec.decode(data))) == shown


@pytest.mark.parametrize("read", [codec.signals, codec.decode])
def test_a_lost_picture_is_damage_to_those_that_refer_to_it(read) -> None:
    """FFmpeg leaves such frames out without a word."""
    data = without_picture(encoded(20, "bframes=0:keyint=8", "hevc"), 3)
    frames = []
    with pytest.raises(codec.CodecError, match="frame 3 is damaged: it refers to a picture that is missing"):
        frames.extend(read(data))
    assert len(frames) == 3


def test_random_damage_never_raises_anything_else(clip: bytes) -> None:
    rng = np.random.default_rng(0)
    for read in (codec.signals, codec.decode):
        for _ in range(20):
            broken = np.frombuffer(clip, np.uint8).copy()
            broken[rng.integers(1000, len(broken), 6)] = rng.integers(0, 256, 6)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # damage may look like a feature
                try:
                    assert sum(1 for _ in read(broken.tobytes())) <= 12
                except codec.CodecError:
                    continue
