"""Writes the fuzzer's first inputs: the beginnings of the written streams, and x265's smallest.

python -m tests.codec.hevc.fuzz.corpus FOLDER
"""

import io
import sys
from pathlib import Path

import av

from tests.codec.hevc_streams.matrix import Configuration, encode
from tests.codec.hevc_streams.streams import STREAMS

LONGEST = 2500
"""Bytes of an input: fewer make more executions a second."""
START = b"\x00\x00\x01"
X265 = (
    "bframes=2:ctu=16",
    "bframes=2:ctu=32:rect=1:amp=1",
    "wpp=1:ctu=16:bframes=0",
    "lossless=1:ctu=16",
    "tskip=1:ctu=16:qp=20",
)


def beginning(data: bytes) -> bytes:
    """As many whole units as fit."""
    units = data.split(START)[1:]
    kept = b""
    for unit in units:
        if kept and len(kept) + len(unit) > LONGEST:
            break
        kept += START + unit
    return kept


def in_mp4(data: bytes) -> bytes:
    """What `target.cpp` takes for an hvcC record and a packet."""
    with av.open(io.BytesIO(data)) as clip:
        record = bytes(clip.streams.video[0].codec_context.extradata or b"")
        packets = b"".join(bytes(packet) for packet in clip.demux(video=0) if packet.size)
    # x265's account of its options makes records longer than a byte can tell: it is the last array.
    record = record[:22] + bytes([3]) + record[23:]
    return bytes([1, min(len(record), 255)]) + record[:255] + packets


def main(folder: Path) -> None:
    for name, make in STREAMS.items():
        (folder / name).write_bytes(beginning(make().data))
    for number, params in enumerate(X265):
        configuration = Configuration(params, "noisy", (48, 32), 3)
        (folder / f"x265_{number}").write_bytes(beginning(encode(configuration)))
    (folder / "mp4").write_bytes(
        in_mp4(encode(Configuration("bframes=1:ctu=16:info=0", "noisy", (48, 32), 3, container="mp4")))
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
