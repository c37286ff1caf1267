"""Ways to see a picture or a clip: which patches of which frames, and where they are.

Legend: F frames, S side of a frame in pixels, p side of a patch, rows = cols = S / p.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

import codec
from megatron_ovenc.config.tree import SourceConfig
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.video import analysed, cut_patches, frame_signals, length, open_frames
from megatron_ovenc.data.windows import square

logger = logging.getLogger(__name__)
_told: set[str] = set()
"""What this process has said of sidecars."""

COLOURS = (0.8, 1.25)
"""Factors of a clip's brightness, contrast and saturation where it is augmented (uniform)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The visible part of a sample."""

    patches: np.ndarray
    """uint8 [n, 3 * p * p], channel-major as a Conv2d weight flattens."""
    positions: np.ndarray
    """int32 [n, 3]: t, row, col."""


class Clip:
    """A clip as stored, its virtual frames, and the three views of it.

    A view's `t` counts virtual frames: `indices[t]` is the frame of the file whose pixels are shown.
    """

    def __init__(
        self,
        content: bytes,
        sidecar: bytes | None,
        source: SourceConfig,
        patch_size: int,
        frames: range | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Find out which frames there are.

        Args:
            content: the video file.
            sidecar: what `codec.dumps` made of it. One of another clip, patch grid or number of virtual frames does not count.
            frames: the part of the file that is the clip, if it is not all of it; takes neither sidecar nor `rng`.
            rng: source of the crop, mirroring and colours; without it the whole picture is shown as it is.

        Raises:
            BadSample: not a clip, or one whose damage or truncation shows in its packets.
        """
        self._content = content
        self._source = source
        self._patch_size = patch_size
        self._side = source.size // patch_size
        self._frames = open_frames(content)
        self._sidecar = None if sidecar is None else _usable(sidecar, content, self._side, source.clip_frames)
        if self._sidecar is not None:
            self.indices: np.ndarray = self._sidecar.frame_indices
        else:
            frames = range(length(self._frames)) if frames is None else frames
            self.indices = frames.start + codec.frame_indices(len(frames), source.clip_frames)
        self._appearance = codec.Appearance() if rng is None else clip_appearance(*self._frames.size, rng)

    def codec_view(self, selection: np.ndarray | None = None) -> View:
        """The most salient patches of all frames, `source.tokens` of them or all that a short clip has.

        Args:
            selection: positions int32 [n, 3] that were chosen beforehand, ascending; what they show after the end of a short
                clip is its last frame. They were chosen on the whole picture, so that is what is shown, in changed colours.

        Raises:
            BadSample: the clip is damaged.
        """
        if selection is not None:
            return self._cut(selection, replace(self._appearance, box=None, flip=False))
        saliency, types = self._saliency()
        budget = min(self._source.tokens, len(self.indices) * self._side**2)
        positions = codec.select(saliency, budget, self._source.i_frames, frame_types=types)
        return self._cut(positions, self._appearance)

    def frames_view(self, rng: np.random.Generator) -> View:
        """Whole frames, one drawn from each of `source.num_frames` equal bins of the clip.

        Raises:
            BadSample: the clip is damaged before the last drawn frame.
        """
        times = draw_frames(len(self.indices), self._source.num_frames, rng)
        positions = grid_positions(len(times), self._side, self._side)
        positions[:, 0] = times[positions[:, 0]]
        return self._cut(positions, self._appearance)

    def collage_view(self, rng: np.random.Generator) -> View:
        """The same draw, stacked from top to bottom into one still picture."""
        shown = self.frames_view(rng)
        frames = len(shown.positions) // self._side**2
        return View(patches=shown.patches, positions=grid_positions(1, frames * self._side, self._side))

    def _saliency(self) -> tuple[np.ndarray, str]:
        """Of every patch that could be shown, uint8 [T, rows, cols], and the type of each frame."""
        grid = (self._side, self._side)
        if self._sidecar is None and self._appearance.box is not None:
            self._sidecar = analysed(self._content, grid, self._source.clip_frames)
        if self._sidecar is not None:
            derived = codec.derive(self._sidecar, grid, crop=_crop(self._appearance), flip=self._appearance.flip)
            return derived.saliency, derived.frame_types
        # What happens in the file before the clip begins must not count for its first frame.
        lead = int(self.indices[0] > 0)
        wanted = np.concatenate([self.indices[:lead] - 1, self.indices])
        signals = frame_signals(self._content, wanted)[lead:]
        # Rounded as in a sidecar: having one must not change which patches are seen.
        levels = np.rint(codec.saliency(signals, grid) * 255).astype(np.uint8)
        return levels, "".join(frame.type for frame in signals)

    def _cut(self, positions: np.ndarray, appearance: codec.Appearance) -> View:
        cutter = codec.Cutter((self._side, self._side), self._patch_size, appearance)
        patches = cut_patches(self._frames, self.indices, positions, cutter, self._patch_size)
        return View(patches=patches, positions=positions)


def clip_appearance(width: int, height: int, rng: np.random.Generator) -> codec.Appearance:
    """A random-resized crop to whole pixels, mirrored in half of the cases, in slightly changed colours; one for all frames.

    Its aspect is the clip's, times what `windows.ASPECT` allows: without augmentation all of the clip is stretched to a square.
    """
    window = square(1, 1, size=1, rng=rng)
    left, right = (round(edge * width) for edge in window.box[::2])
    top, bottom = (round(edge * height) for edge in window.box[1::2])
    brightness, contrast, saturation = rng.uniform(*COLOURS, 3)
    return codec.Appearance(
        box=(left, top, max(right, left + 1), max(bottom, top + 1)),
        flip=window.flip,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
    )


def _crop(appearance: codec.Appearance) -> codec.Crop | None:
    if appearance.box is None:
        return None
    left, top, right, bottom = map(int, appearance.box)
    return codec.Crop(top=top, left=left, height=bottom - top, width=right - left)


def draw_frames(length: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """One of each of `count` equal bins of [0, length): strictly increasing int64 [min(count, length)].

    Bins of a length that `count` does not divide differ by one; a clip shorter than `count` gives all it has.
    """
    count = min(count, length)
    edges = np.arange(count + 1) * length // count
    return rng.integers(edges[:-1], edges[1:])


def whole(pixels: np.ndarray, patch_size: int) -> View:
    """All patches of frames uint8 [F, H, W, 3] in raster order, t = 0..F-1."""
    frames, height, width, _ = pixels.shape
    positions = grid_positions(frames, height // patch_size, width // patch_size)
    frame, row, col = positions.T
    return View(patches=cut(pixels, frame, row, col, patch_size), positions=positions)


def grid_positions(frames: int, rows: int, cols: int) -> np.ndarray:
    """t, row, col of all patches of some frames in raster order: int32 [frames * rows * cols, 3]."""
    return np.ascontiguousarray(np.indices((frames, rows, cols), dtype=np.int32).reshape(3, -1).T)


def cut(pixels: np.ndarray, frames: np.ndarray, rows: np.ndarray, cols: np.ndarray, patch_size: int) -> np.ndarray:
    """The n patches at (frames, rows, cols) [n] each, of uint8 [F, H, W, 3]: uint8 [n, 3 * p * p], channel-major."""
    count, height, width, _ = pixels.shape
    blocks = pixels.reshape(count, height // patch_size, patch_size, width // patch_size, patch_size, 3)
    patches = blocks[frames, rows, :, cols]
    return np.ascontiguousarray(patches.transpose(0, 3, 1, 2)).reshape(len(patches), -1)


def draw_positives(candidates: np.ndarray, count: int, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` different labels of int64 [L] (-1 = none): int64 [count], -1 where there are no more.

    Raises:
        BadSample: a label names no row of the bank.
    """
    labels = np.unique(candidates[candidates != -1])
    if len(labels) and not 0 <= labels[0] <= labels[-1] < num_classes:
        wrong = labels[0] if labels[0] < 0 else labels[-1]
        raise BadSample(f"its label {wrong} is outside the bank's [0, {num_classes})")
    drawn = rng.permutation(labels)[:count]
    return np.concatenate([drawn, np.full(count - len(drawn), -1, np.int64)])


def _usable(sidecar: bytes, content: bytes, side: int, clip_frames: int) -> codec.Sidecar | None:
    """The sidecar, if it describes this clip as this run sees it."""
    try:
        loaded = codec.loads(sidecar)
        loaded.verify(content)
    except codec.CodecError as error:
        _tell_once("a sidecar is damaged, or was made of another clip", str(error))
        return None
    # The last frame of a clip is always among the virtual ones, so the indices tell its length.
    expected = codec.frame_indices(int(loaded.frame_indices[-1]) + 1, clip_frames)
    grid, frames = loaded.saliency.shape[1:], len(loaded.frame_indices)
    if grid == (side, side) and np.array_equal(loaded.frame_indices, expected):
        return loaded
    _tell_once(
        "a sidecar is of other patches or frames",
        f"it has {grid[0]} x {grid[1]} patches of {frames} frames, source.size and source.clip_frames ask for {side} x {side} of "
        f"{len(expected)}",
    )
    return None


def _tell_once(what: str, details: str) -> None:
    """Say why sidecars are of no use, once a process: it costs several times the work, and nothing else would show it."""
    if what not in _told:
        _told.add(what)
        logger.warning(
            "%s: %s; saliency is computed anew (make the shards again); not said again of others", what, details
        )
