"""What an HEVC encoder decided, read from the bitstream without decoding a pixel.

    for frame in codec.hevc.frames("clip.mp4"):
        print(frame.poc, frame.type, frame.bits.sum(), frame.vectors[frame.predicted].mean())

The core (`src/`, C++) does the entropy decoding and the motion derivation of ITU-T H.265's Main, Main 10 and Main Still Picture
profiles; no sample is predicted, transformed back for display or filtered. `codec.signals` and `codec.decode` use it for every
HEVC clip. What it does not support (4:2:2, 4:4:4, more than 10 bits, range, multilayer and screen content extensions) raises
`UnsupportedStream`.
"""

from codec.hevc.parser import INTER, INTRA, SKIPPED, HevcFrame, frames
from codec.types import UnsupportedStream

__all__ = ["INTER", "INTRA", "SKIPPED", "HevcFrame", "UnsupportedStream", "frames"]
