"""What a video's encoder already knows, as tokens: bitstream -> signals -> saliency -> patches.

    import codec

    frames = codec.sample(codec.signals("clip.mp4"), codec.frame_indices(codec.Frames("clip.mp4").count, 64))
    grid = codec.patch_grid(frames[0].height, frames[0].width)
    maps = codec.saliency(frames, grid)                                         # [T, rows, cols]
    positions = codec.select(maps, budget=512, policy="free")                   # [512, 3]: (t, row, col)

Everything here runs on one core, on a CPU, and depends on NumPy, PyAV, Pillow, safetensors and rich alone, beside its own compiled
core. On the command line: ``python -m codec inspect | analyze | select | render | bench``.
"""

from codec.camera import Camera
from codec.cut import Appearance, Cutter
from codec.derive import Crop, Derived, derive
from codec.frames import Frames
from codec.gop import adaptive_groups
from codec.saliency import DEFAULT, REFERENCE, SaliencyConfig, patch_grid, saliency
from codec.sample import frame_indices, sample
from codec.select import Policy, select, visible_indices
from codec.sidecar import Sidecar, analyse, dumps, loads
from codec.signals import decode, signals
from codec.source import frame_count, luma
from codec.types import CodecError, FrameSignals, FrameType, Source

__all__ = [
    "DEFAULT",
    "REFERENCE",
    "Appearance",
    "Camera",
    "CodecError",
    "Crop",
    "Cutter",
    "Derived",
    "FrameSignals",
    "FrameType",
    "Frames",
    "Policy",
    "SaliencyConfig",
    "Sidecar",
    "Source",
    "adaptive_groups",
    "analyse",
    "decode",
    "derive",
    "dumps",
    "frame_count",
    "frame_indices",
    "loads",
    "luma",
    "patch_grid",
    "saliency",
    "sample",
    "select",
    "signals",
    "visible_indices",
]
