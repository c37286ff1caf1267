"""Headers of H.264 streams: what x264 was told is what they say."""

import io

import av
import pytest

from codec.h264_headers import MOST_ACTIVE, HeaderReader
from tests.codec.clips import encode, panning

FIXED = "keyint=30:min-keyint=30:scenecut=0:b-adapt=0:weightp=0"


def headers(clip: bytes) -> list[tuple[str, bool, tuple[int, int]]]:
    """Type, is_reference and active references of each picture, in decoding order."""
    with av.open(io.BytesIO(clip), mode="r") as container:
        stream = container.streams.video[0]
        reader = HeaderReader(stream.codec_context.extradata or b"")
        packets = {packet.pts: bytes(packet) for packet in container.demux(stream) if packet.size}
    with av.open(io.BytesIO(clip), mode="r") as container:
        kinds = {frame.pts: av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(video=0)}
    found = [(kinds[pts], reader.read(packet)) for pts, packet in packets.items()]
    return [(kind, header.is_reference, header.active) for kind, header in found]


@pytest.mark.parametrize("container", ["mp4", "mpegts", "matroska"])
@pytest.mark.parametrize("extra", ["", ":interlaced=1", ":cabac=0", ":slices=3", ":cqm=jvt"])
def test_one_reference_is_one_reference(container: str, extra: str) -> None:
    options = {"x264-params": f"{FIXED}:bframes=2:b-pyramid=none:ref=1{extra}"}
    found = headers(encode(panning(10, (96, 112), (1, 0)), options=options, container=container))
    assert {kind for kind, _, _ in found} == {"I", "P", "B"}
    fields = 2 if "interlaced" in extra else 1
    for kind, is_reference, active in found:
        assert is_reference == (kind != "B")
        if fields == 1:
            assert active == {"I": (0, 0), "P": (1, 0), "B": (1, 1)}[kind]


@pytest.mark.parametrize("profile", ["baseline", "main", "high"])
def test_several_references_come_one_by_one(profile: str) -> None:
    options = {"x264-params": f"{FIXED}:bframes=0:ref=4", "profile": profile}
    found = headers(encode(panning(8, (64, 80), (1, 0)), options=options))
    assert [active for _, _, active in found] == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 0), (4, 0), (4, 0)]


def test_nonsense_allows_everything() -> None:
    reader = HeaderReader(b"\x01garbage")
    for packet in (b"", b"\x00\x00\x00\x05\x41\xff\xff\xff\xff", b"\x00\x00\x00\x02\x41", bytes(range(200))):
        assert reader.read(packet).active == (MOST_ACTIVE, MOST_ACTIVE)
    assert not HeaderReader(b"").read(b"\x00\x00\x01\x01\x88\x80").is_reference
    for length in range(40):
        HeaderReader(bytes([1, 100, 0, 30, 255, 225, 0, length]) + bytes(range(length))).read(
            b"\x00\x00\x00\x03\x65\x88\x80"
        )
