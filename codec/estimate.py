"""Signals of any codec that FFmpeg decodes, measured on the pixels: block matching against the previous frame.

Coarse to fine over quarter, half and full resolution: every vector of up to 24 pixels is tried on 16x16 blocks at quarter
resolution, then refined by one pixel at each finer level, down to 8x8 blocks and whole pixels; last, a block may take the
vector of a neighbour. A block keeps the vector zero unless another matches better by one grey level a pixel, so that noise
and flat areas do not appear to move.
Every frame but the first is measured, I frames included: here they differ from the previous frame like any other.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import TypeAlias

import av
import numpy as np
import numpy.typing as npt

from codec.source import Clip, Luma, frame_signals, luma, pictures
from codec.types import BLOCK_SIZE, FrameSignals, cell_grid

Vectors: TypeAlias = npt.NDArray[np.int32]
"""[block rows, block cols, 2]: (x, y) whole pixels from a block to where it was in the previous frame"""

_COARSE_BLOCK, _BLOCK = 4, 8
"""Pixels per block side at quarter resolution (16 in the picture), and at half and full resolution."""
_COARSE_RADIUS = 6
_COARSE_STEPS = range(-_COARSE_RADIUS, _COARSE_RADIUS + 1)
_FINE_STEPS = range(-1, 2)
_ADVANTAGE = 1.0
"""Grey levels per pixel by which a vector must beat the vector zero."""
_ALIGN = 16
_PAD = 16
"""Pixels of repeated edge at every level: blocks further out see only the edge."""


def read(clip: Clip) -> Iterator[tuple[av.VideoFrame, FrameSignals]]:
    """Frames and estimated signals of a clip, in display order.

    Raises:
        CodecError: as `source.pictures`.
    """
    previous: Luma | None = None
    for index, picture in enumerate(pictures(clip)):
        current = luma(picture.frame)
        motion, residual = estimate(current, current if previous is None else previous)
        signals = frame_signals(clip, picture, index=index, motion=motion, residual=residual, estimated=True)
        yield picture.frame, signals
        previous = current


def estimate(current: Luma, previous: Luma) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Motion [rows, cols, 2] and residual [rows, cols] of `current` against `previous`, both [H, W]."""
    height, width = current.shape
    now, then = _pyramid(current), _pyramid(previous)
    vectors = _search(now[2], then[2])
    vectors = _best(now[1], then[1], _nearby(2 * vectors))
    vectors = _best(now[0], then[0], _nearby(2 * vectors.repeat(2, axis=0).repeat(2, axis=1)))
    vectors = _best(now[0], then[0], _neighbours(vectors))
    prediction = _displaced(_padded(then[0]), vectors, _BLOCK).reshape(now[0].shape)[:height, :width]
    rows, cols = cell_grid(height, width)
    cells = _BLOCK // BLOCK_SIZE
    motion = (-vectors).repeat(cells, axis=0).repeat(cells, axis=1)[:rows, :cols].astype(np.float32)
    return motion, _cell_residual(current, prediction)


def _pyramid(picture: Luma) -> list[Luma]:
    """The picture at full, half and quarter resolution, its edge repeated up to whole blocks."""
    height, width = picture.shape
    levels = [np.pad(picture, ((0, -height % _ALIGN), (0, -width % _ALIGN)), mode="edge")]
    for _ in range(2):
        fine = levels[-1].astype(np.uint16)
        total = fine[::2, ::2] + fine[::2, 1::2] + fine[1::2, ::2] + fine[1::2, 1::2]
        levels.append(((total + 2) >> 2).astype(np.uint8))
    return levels


def _search(current: Luma, previous: Luma) -> Vectors:
    """The best of all vectors within the radius, for each coarse block."""
    height, width = current.shape
    padded = _padded(previous)
    blocks = _blocks(current, _COARSE_BLOCK)
    best = _mismatch(blocks, _blocks(previous, _COARSE_BLOCK)) - _ADVANTAGE
    vectors = np.zeros((*best.shape, 2), np.int32)
    for y in _COARSE_STEPS:
        for x in _COARSE_STEPS:
            shifted = padded[_PAD + y : _PAD + y + height, _PAD + x : _PAD + x + width]
            _keep_better(best, vectors, _mismatch(blocks, _blocks(shifted, _COARSE_BLOCK)), np.array([x, y], np.int32))
    return vectors


def _best(current: Luma, previous: Luma, candidates: Iterable[Vectors]) -> Vectors:
    """Per block, the best of the candidate vectors, or zero."""
    padded = _padded(previous)
    blocks = _blocks(current, _BLOCK)
    best = _mismatch(blocks, _blocks(previous, _BLOCK)) - _ADVANTAGE
    vectors: Vectors = np.zeros((*best.shape, 2), np.int32)
    for candidate in candidates:
        _keep_better(best, vectors, _mismatch(blocks, _displaced(padded, candidate, _BLOCK)), candidate)
    return vectors


def _nearby(guess: Vectors) -> Iterator[Vectors]:
    """A guess per block and the eight vectors around it."""
    for y in _FINE_STEPS:
        for x in _FINE_STEPS:
            yield guess + np.array([x, y], np.int32)


def _neighbours(vectors: Vectors) -> Iterator[Vectors]:
    """The vectors of each block itself and of the blocks above, below, left and right of it."""
    around = np.pad(vectors, ((1, 1), (1, 1), (0, 0)), mode="edge")
    yield vectors
    yield around[:-2, 1:-1]
    yield around[2:, 1:-1]
    yield around[1:-1, :-2]
    yield around[1:-1, 2:]


def _keep_better(
    best: npt.NDArray[np.float32], vectors: Vectors, mismatch: npt.NDArray[np.float32], candidate: Vectors
) -> None:
    """Where `mismatch` is below `best`, take it and its vector, in place."""
    better = mismatch < best
    np.copyto(best, mismatch, where=better)
    np.copyto(vectors, candidate, where=better[..., None])


def _padded(picture: Luma) -> Luma:
    return np.pad(picture, _PAD, mode="edge")


def _blocks(picture: Luma, size: int) -> Luma:
    """[H, W] -> [block rows, size, block cols, size]"""
    height, width = picture.shape
    return picture.reshape(height // size, size, width // size, size)


def _displaced(padded: Luma, vectors: Vectors, size: int) -> Luma:
    """The blocks [block rows, size, block cols, size] that vectors point to in a padded picture."""
    rows, cols, _ = vectors.shape
    height, stride = padded.shape
    y = (np.arange(rows, dtype=np.int32)[:, None] * size + _PAD + vectors[..., 1]).clip(0, height - size)
    x = (np.arange(cols, dtype=np.int32) * size + _PAD + vectors[..., 0]).clip(0, stride - size)
    origin = (y * stride + x).astype(np.intp)
    inside = np.arange(size)[:, None] * stride + np.arange(size)
    return padded.reshape(-1).take(origin[:, None, :, None] + inside[:, None, :])


def _mismatch(one: Luma, other: Luma) -> npt.NDArray[np.float32]:
    """Mean absolute difference per block, in grey levels."""
    size = one.shape[1]
    difference = np.maximum(one, other) - np.minimum(one, other)
    columns = difference.sum(axis=1, dtype=np.uint16)
    return columns.sum(axis=-1, dtype=np.float32) / np.float32(size * size)


def _cell_residual(picture: Luma, prediction: Luma) -> npt.NDArray[np.float32]:
    """Mean |picture - prediction| over the pixels of each cell: [H, W] x 2 -> [rows, cols]."""
    height, width = picture.shape
    rows, cols = cell_grid(height, width)
    difference = np.zeros((rows * BLOCK_SIZE, cols * BLOCK_SIZE), np.uint8)
    difference[:height, :width] = np.maximum(picture, prediction) - np.minimum(picture, prediction)
    lines = difference.reshape(rows, BLOCK_SIZE, -1).sum(axis=1, dtype=np.uint16)
    sums = sum(lines[:, step::BLOCK_SIZE] for step in range(BLOCK_SIZE))
    return (sums / _pixels(height, width)).astype(np.float32)


@cache
def _pixels(height: int, width: int) -> npt.NDArray[np.float32]:
    """[rows, cols]: pixels of each cell that lie inside the picture."""
    rows, cols = cell_grid(height, width)
    tall = np.minimum(BLOCK_SIZE, height - BLOCK_SIZE * np.arange(rows))
    wide = np.minimum(BLOCK_SIZE, width - BLOCK_SIZE * np.arange(cols))
    return np.outer(tall, wide).astype(np.float32)
