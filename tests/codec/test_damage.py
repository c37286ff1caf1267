"""Damaged clips end in a `CodecError` that names them: no hang, no painted-over picture, no other exception."""

import io
import struct
import wave

import av
import numpy as np
import pytest
from av.stream import Disposition

import codec
from codec.truncated import missing_bytes
from tests.codec.clips import encode, panning

X265 = {"x265-params": "log-level=none:keyint=8"}


@pytest.fixture(scope="module")
def clip() -> bytes:
    return encode(panning(32, (112, 128), (2, 1)), options={"x264-params": "keyint=8:bframes=2"})


@pytest.fixture(scope="module")
def hevc_clip() -> bytes:
    return encode(panning(24, (112, 128), (2, 1)), "libx265", X265)


def read_until_error(clip: bytes) -> tuple[list[codec.FrameSignals], str]:
    """The frames of a damaged clip and the message of the error after them."""
    frames: list[codec.FrameSignals] = []
    with pytest.raises(codec.CodecError, match="shard-3:clip-7") as caught:
        frames.extend(codec.signals(clip, name="shard-3:clip-7"))
    return frames, str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"\x00" * 5000, "opened"), (bytes(range(256)) * 40, "opened"), (b"hello", "opened")],
)
def test_files_that_are_no_videos(tmp_path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(codec.CodecError, match=r"broken\.mp4"):
        next(codec.signals(path))
    with pytest.raises(codec.CodecError, match=f"{len(content)} bytes in memory.*{says}"):
        next(codec.signals(content))


def test_a_missing_file_and_a_directory(tmp_path) -> None:
    with pytest.raises(codec.CodecError, match=r"gone\.mp4.*No such file"):
        next(codec.signals(tmp_path / "gone.mp4"))
    with pytest.raises(codec.CodecError, match=str(tmp_path)):
        next(codec.signals(tmp_path))


def test_sound_without_a_picture(tmp_path) -> None:
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(struct.pack("<800h", *range(800)))
    with pytest.raises(codec.CodecError, match=r"sound\.wav.*no video stream"):
        next(codec.signals(path))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("which", ["clip", "hevc_clip"])
def test_a_cut_file_gives_its_sound_frames_and_then_the_error(request, which: str, share: float) -> None:
    whole = request.getfixturevalue(which)
    complete = list(codec.signals(whole))
    frames, _ = read_until_error(whole[: int(share * len(whole))])
    assert len(frames) < len(complete)
    if share >= 0.7:
        assert len(frames) > len(complete) / 4


def test_frames_before_the_cut_are_those_of_the_whole_file(clip: bytes) -> None:
    frames, _ = read_until_error(clip[: int(0.8 * len(clip))])
    for found, expected in zip(frames, codec.signals(clip), strict=False):
        assert np.array_equal(found.residual, expected.residual)
        assert found.pts == expected.pts


def packets(clip: bytes) -> list[tuple[int, int]]:
    """Position and size of every packet, in the order of the file."""
    with av.open(io.BytesIO(clip), mode="r") as container:
        return sorted((packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size)


def test_a_file_cut_between_packets_is_noticed_by_its_frame_count(clip: bytes) -> None:
    position, _ = packets(clip)[-1]
    frames, message = read_until_error(clip[:position])
    assert "truncated after 31 of 32 frames" in message
    assert len(frames) >= 28


def test_a_file_cut_within_a_packet_is_noticed(clip: bytes) -> None:
    _, message = read_until_error(clip[:-3])
    assert "cut off" in message


def test_an_overwritten_packet_is_noticed_at_its_frame_or_before(clip: bytes) -> None:
    """FFmpeg would paint over the damage and report nothing but a flag."""
    large = [(position, size) for position, size in packets(clip) if size > 60]
    caught = 0
    for position, size in large:
        middle, length = position + size // 2, size // 4
        try:
            for _ in codec.signals(clip[:middle] + b"\xff" * length + clip[middle + length :]):
                pass
        except codec.CodecError as error:
            caught += "damaged" in str(error)
    # Overwritten bytes can by chance be decodable: then nobody can tell.
    assert caught >= 0.9 * len(large) > 10


def test_random_damage_never_raises_anything_else(clip: bytes, hevc_clip: bytes) -> None:
    rng = np.random.default_rng(0)
    for whole in (clip, hevc_clip):
        for _ in range(25):
            broken = np.frombuffer(whole, np.uint8).copy()
            broken[rng.integers(0, len(broken), 12)] = rng.integers(0, 256, 12)
            try:
                count = sum(1 for _ in codec.signals(broken.tobytes()))
            except codec.CodecError:
                continue
            assert count <= 32


@pytest.mark.parametrize(
    ("encoder", "container"), [("libx264", "matroska"), ("libx265", "matroska"), ("libvpx-vp9", "webm")]
)
def test_matroska_is_found_cut_wherever_it_is_cut(encoder: str, container: str) -> None:
    options = {"libx265": X265, "libx264": {"x264-params": "keyint=8"}}.get(encoder, {"deadline": "realtime"})
    whole = encode(panning(24, (112, 128), (2, 1)), encoder, options, container)
    assert missing_bytes(whole) == 0
    for length in np.random.default_rng(0).integers(len(whole) * 2 // 5, len(whole), 12):
        assert missing_bytes(whole[:length]) == len(whole) - length
        with pytest.raises(codec.CodecError):
            list(codec.signals(whole[:length]))


def test_a_whole_file_may_hold_less_than_its_index_counts(clip: bytes) -> None:
    """An edit list that begins behind a key frame: FFmpeg does not even deliver what comes before."""
    at = clip.index(b"elst")
    trimmed = clip[: at + 16] + (int.from_bytes(clip[at + 16 : at + 20], "big") + 12800 * 20 // 25).to_bytes(4, "big")
    assert codec.frame_count(trimmed + clip[at + 20 :]) == 12


def test_frames_that_a_file_leaves_out_do_not_make_it_a_cut_one() -> None:
    """AVI has an empty packet where a frame is shown on."""
    output = io.BytesIO()
    with av.open(output, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"  # type: ignore[union-attr]
        for number, grey in enumerate(panning(20, (64, 64), (2, 1))):
            frame = av.VideoFrame.from_ndarray(grey, format="gray").reformat(format="yuv420p")
            frame.pts = number + 5 * (number >= 10)
            container.mux(stream.encode(frame))  # type: ignore[union-attr]
        container.mux(stream.encode(None))  # type: ignore[union-attr]
    assert codec.frame_count(output.getvalue()) == 20


def test_a_cover_picture_is_no_clip(clip: bytes, tmp_path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 96, 96, "yuvj420p"  # type: ignore[union-attr]
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(96, 96, "yuvj420p")))  # type: ignore[union-attr]
        container.mux(cover.encode(None))  # type: ignore[union-attr]
    with pytest.raises(codec.CodecError, match="only a cover picture"):
        codec.frame_count(path)


def test_the_longest_video_stream_is_the_clip(clip: bytes) -> None:
    output = io.BytesIO()
    with av.open(output, "w", format="matroska") as container, av.open(io.BytesIO(clip)) as source:
        still = container.add_stream("mjpeg", rate=1)
        still.height, still.width, still.pix_fmt = 16, 16, "yuvj420p"  # type: ignore[union-attr]
        moving = container.add_stream_from_template(source.streams.video[0])
        container.mux(still.encode(av.VideoFrame(16, 16, "yuvj420p")))  # type: ignore[union-attr]
        container.mux(still.encode(None))  # type: ignore[union-attr]
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = moving
                container.mux(packet)
    assert codec.frame_count(output.getvalue()) == 32


def test_a_clip_may_not_name_other_files(clip: bytes, tmp_path, monkeypatch) -> None:
    (tmp_path / "other.mp4").write_bytes(clip)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(codec.CodecError):
        codec.frame_count(b"ffconcat version 1.0\nfile other.mp4\n")


def test_a_change_of_size_is_refused() -> None:
    small, large = (encode(panning(4, size, (1, 0)), container="h264") for size in ((64, 80), (96, 80)))
    _, message = read_until_error(small + large)
    assert "80x64 to 80x96" in message


def test_stopping_early_closes_the_file(tmp_path, clip: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip)
    reader = codec.decode(path)
    next(reader)
    reader.close()
    path.unlink()
    with pytest.raises(StopIteration):
        next(reader)
