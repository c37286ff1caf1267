"""Training-free descriptors, to start a concept bank from nothing. Concepts will be about what these see, and nothing else:

pictures  where edges of which orientation are, and where which colour is: layout and texture, not objects;
clips     which way and how fast things move, when, on which side of what moves, with and without the camera's own motion;
          with a small weight, the middle frame as a picture.

Once an encoder has been trained on such concepts, its own features make a better bank (``--features hf:DIR``).
Only NumPy and `codec` are used. Descriptors are float32 vectors, not normalised; only their direction means anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import codec
from codec.camera import compensate
from megatron_ovenc.data.images import image_pixels
from megatron_ovenc.data.video import frame_pixels, frame_signals, length, open_frames

PICTURE_SIDE = 96
"""Pixels to which pictures are resized."""
_CELL = 16
_GRID = PICTURE_SIDE // _CELL
_ORIENTATIONS = 8
_COLOUR_WEIGHT = 0.7

CLIP_FRAMES = 32
"""Virtual frames of a clip; motion is summed over the frames between them."""
_TIMES = 4
_DIRECTIONS = 8
_SPEEDS = 3
_SLOWEST = 1.0
"""Hundredths of the picture's longer side a virtual frame: speed of the slowest bin; each further bin is 2.5 times as fast."""
_SPEED_RATIO = 2.5
_SIDES = 4
_STEP = 2
"""Motion fields are read at every second cell, 8 pixels apart."""
_RAW_WEIGHT, _SIDES_WEIGHT, _APPEARANCE_WEIGHT = 0.5, 0.7, 0.15

_CONSTANT = 0.02
"""One entry of this value gives even a grey square or a still clip a direction."""
_FLOOR = 0.05
"""Added to a part's norm when it is brought to unit length, so that what is hardly there stays small."""

PICTURE_WIDTH = _GRID * _GRID * (_ORIENTATIONS + 3) + 1
CLIP_WIDTH = _TIMES * _DIRECTIONS * _SPEEDS * (2 + _SIDES) + PICTURE_WIDTH


def picture_descriptor(content: bytes) -> np.ndarray:
    """float32 [PICTURE_WIDTH] of an image file.

    Raises:
        BadSample: not a picture, or a damaged one.
    """
    return _picture(image_pixels(content, PICTURE_SIDE, None))


def clip_descriptor(content: bytes) -> np.ndarray:
    """float32 [CLIP_WIDTH] of a video file.

    Raises:
        BadSample: not a clip, or a damaged one.
    """
    indices = codec.frame_indices(length(open_frames(content)), CLIP_FRAMES)
    signals = frame_signals(content, indices)
    middle = frame_pixels(content, indices[[len(indices) // 2]], PICTURE_SIDE)[0]
    moving = [_in_hundredths(frame) for frame in signals if frame.type != "I" or frame.estimated]
    camera = [_without_camera(motion) for motion in moving]
    parts = [
        (_RAW_WEIGHT, _motion_histogram(moving, by_side=False)),
        (1.0, _motion_histogram(camera, by_side=False)),
        (_SIDES_WEIGHT, _motion_histogram(camera, by_side=True)),
        (_APPEARANCE_WEIGHT, _picture(middle)),
    ]
    return np.concatenate([weight * _unit(part) for weight, part in parts]).astype(np.float32)


def _picture(pixels: np.ndarray) -> np.ndarray:
    """Edges and colours of uint8 [S, S, 3]: [PICTURE_WIDTH]."""
    colours = pixels.astype(np.float32) / 255
    edges = np.sqrt(_edge_histogram(colours.mean(axis=-1)))
    # What all orientations of a cell have in common is contrast, of which every picture has some everywhere.
    edges -= edges.mean(axis=-1, keepdims=True)
    layout = colours.reshape(_GRID, _CELL, _GRID, _CELL, 3).mean(axis=(1, 3)) - 0.5
    return np.concatenate([_unit(edges.ravel()), _COLOUR_WEIGHT * _unit(layout.ravel()), [_CONSTANT]])


def _edge_histogram(grey: np.ndarray) -> np.ndarray:
    """Gradient magnitude by unsigned orientation in each cell of [S, S]: [grid, grid, orientations]."""
    down, across = np.gradient(grey)
    bins, shares = _circular_bins(np.arctan2(down, across) / np.pi, _ORIENTATIONS)
    row, col = np.indices(grey.shape) // _CELL
    places = (row * _GRID + col) * _ORIENTATIONS + bins
    counts = np.bincount(places.ravel(), (shares * np.hypot(down, across)).ravel(), _GRID * _GRID * _ORIENTATIONS)
    return counts.reshape(_GRID, _GRID, _ORIENTATIONS) / _CELL**2


def _in_hundredths(frame: codec.FrameSignals) -> np.ndarray:
    """Every second cell's motion in hundredths of the picture's longer side: [rows, cols, 2]."""
    return frame.motion[::_STEP, ::_STEP] * np.float32(100 / max(frame.height, frame.width))


def _without_camera(motion: np.ndarray) -> np.ndarray:
    """The motion [rows, cols, 2] relative to the background. The camera counts as still where most of the picture is: its
    motion is fitted to what moves, and that would be the object."""
    still = np.median(np.abs(motion).sum(axis=-1)) == 0
    return motion if still else compensate(motion, "similarity")


def _motion_histogram(fields: Sequence[np.ndarray], *, by_side: bool) -> np.ndarray:
    """How much of the picture moves how, in each quarter of the clip: [times * (sides | 1) * directions * speeds].

    Sides are the four quadrants around the middle of what moves in that quarter of the clip: they tell growing from
    shrinking, and turning from drifting, wherever it happens.
    """
    sides = _SIDES if by_side else 1
    histogram = np.zeros((_TIMES, sides, _DIRECTIONS * _SPEEDS))
    for time, part in enumerate(np.array_split(np.arange(len(fields)), _TIMES)):
        if len(part):
            motion = np.stack([fields[frame] for frame in part])
            histogram[time] = _count(motion, by_side)
    return np.sqrt(histogram).ravel()


def _count(motion: np.ndarray, by_side: bool) -> np.ndarray:
    """Share of the cells of [F, rows, cols, 2] in each bin: [sides, directions * speeds]."""
    sides = _SIDES if by_side else 1
    speed = np.linalg.norm(motion, axis=-1)
    moving = (2 * speed / _SLOWEST - 1).clip(0, 1)
    octave = (np.log(np.maximum(speed, 1e-6) / _SLOWEST) / np.log(_SPEED_RATIO)).clip(0, _SPEEDS - 1)
    slow = np.minimum(octave.astype(np.int64), _SPEEDS - 2)
    place = _side_of(moving) if by_side else np.zeros(speed.shape, np.int64)
    bins, shares = _circular_bins(np.arctan2(motion[..., 1], motion[..., 0]) / (2 * np.pi), _DIRECTIONS)
    counts = np.zeros(sides * _DIRECTIONS * _SPEEDS)
    for faster, weight in ((0, 1 - (octave - slow)), (1, octave - slow)):
        where = (place * _DIRECTIONS + bins) * _SPEEDS + slow + faster
        counts += np.bincount(where.ravel(), (shares * weight * moving).ravel(), len(counts))
    return counts.reshape(sides, -1) / speed.size


def _side_of(moving: np.ndarray) -> np.ndarray:
    """Quadrant of each cell around each frame's middle of motion, from how much moves [F, rows, cols]: int [F, rows, cols]."""
    _, rows, cols = moving.shape
    total = np.maximum(moving.sum(axis=(1, 2)), 1e-6)
    middle_row = (moving.sum(axis=2) @ np.arange(rows)) / total
    middle_col = (moving.sum(axis=1) @ np.arange(cols)) / total
    below = np.arange(rows)[None, :, None] > middle_row[:, None, None]
    right = np.arange(cols)[None, None, :] > middle_col[:, None, None]
    return 2 * below + right


def _circular_bins(turns: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles, in turns, shared between the two nearest of `bins` directions: both arrays [2, ...]."""
    position = turns * bins
    lower = np.floor(position)
    upper_share = position - lower
    first = lower.astype(np.int64) % bins
    return np.stack([first, (first + 1) % bins]), np.stack([1 - upper_share, upper_share])


def _unit(part: np.ndarray) -> np.ndarray:
    return part / (np.linalg.norm(part) + _FLOOR)
