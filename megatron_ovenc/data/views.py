"""Ways to see a picture or a clip: which patches of which frames, and where they are.

Legend: F frames, S side of a frame in pixels, p side of a patch, rows = cols = S / p.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import codec
from megatron_ovenc.config.tree import SourceConfig
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.video import frame_count, frame_pixels, frame_pixels_and_signals


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
    ) -> None:
        """Find out which frames there are.

        Args:
            content: the video file.
            sidecar: what `codec.dumps` made of it. One of another clip, patch grid or number of virtual frames does not count.
            frames: the part of the file that is the clip, if it is not all of it; takes no sidecar.

        Raises:
            BadSample: not a clip, or one whose truncation shows in its packets.
        """
        self._content = content
        self._source = source
        self._patch_size = patch_size
        self._side = source.size // patch_size
        self._sidecar = None if sidecar is None else _usable(sidecar, content, self._side, source.clip_frames)
        if self._sidecar is not None:
            self.indices: np.ndarray = self._sidecar.frame_indices
        else:
            frames = range(frame_count(content)) if frames is None else frames
            self.indices = frames.start + codec.frame_indices(len(frames), source.clip_frames)

    def codec_view(self, selection: np.ndarray | None = None) -> View:
        """The most salient patches of all frames, `source.tokens` of them or all that a short clip has.

        Args:
            selection: positions int32 [n, 3] that were chosen beforehand, ascending; what they show after the end of a short
                clip is its last frame.

        Raises:
            BadSample: the clip is damaged.
        """
        if selection is not None:
            return self._patches_at(selection)
        budget = min(self._source.tokens, len(self.indices) * self._side**2)
        if self._sidecar is not None:
            positions = codec.select(
                self._sidecar.saliency, budget, self._source.i_frames, frame_types=self._sidecar.frame_types
            )
            return self._patches_at(positions)
        # What happens in the file before the clip begins must not count for its first frame.
        lead = int(self.indices[0] > 0)
        wanted = np.concatenate([self.indices[:lead] - 1, self.indices])
        pixels, signals = frame_pixels_and_signals(self._content, wanted, self._source.size)
        pixels, signals = pixels[lead:], signals[lead:]
        saliency = codec.saliency(signals, (self._side, self._side))
        # Rounded as in a sidecar: having one must not change which patches are seen.
        levels = np.rint(saliency * 255).astype(np.uint8)
        types = "".join(frame.type for frame in signals)
        positions = codec.select(levels, budget, self._source.i_frames, frame_types=types)
        t, row, col = positions.T
        return View(patches=cut(pixels, t, row, col, self._patch_size), positions=positions)

    def _patches_at(self, positions: np.ndarray) -> View:
        """Decode no more than the frames of known positions."""
        times = np.minimum(positions[:, 0].astype(np.int64), len(self.indices) - 1)
        frames, slots = np.unique(times, return_inverse=True)
        pixels = frame_pixels(self._content, self.indices[frames], self._source.size)
        return View(patches=cut(pixels, slots, positions[:, 1], positions[:, 2], self._patch_size), positions=positions)

    def frames_view(self, rng: np.random.Generator) -> View:
        """Whole frames, one drawn from each of `source.num_frames` equal bins of the clip.

        Raises:
            BadSample: the clip is damaged before the last drawn frame.
        """
        pixels, times = self._drawn_frames(rng)
        view = whole(pixels, self._patch_size)
        positions = view.positions.copy()
        positions[:, 0] = times[positions[:, 0]]
        return View(patches=view.patches, positions=positions)

    def collage_view(self, rng: np.random.Generator) -> View:
        """The same draw, stacked from top to bottom into one still picture."""
        pixels, _ = self._drawn_frames(rng)
        return whole(pixels.reshape(1, -1, *pixels.shape[2:]), self._patch_size)

    def _drawn_frames(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        times = draw_frames(len(self.indices), self._source.num_frames, rng)
        return frame_pixels(self._content, self.indices[times], self._source.size), times


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
    grid = (frames, height // patch_size, width // patch_size)
    positions = np.indices(grid, dtype=np.int32).reshape(3, -1).T
    frame, row, col = positions.T
    return View(patches=cut(pixels, frame, row, col, patch_size), positions=np.ascontiguousarray(positions))


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
    except codec.CodecError:
        return None
    # The last frame of a clip is always among the virtual ones, so the indices tell its length.
    expected = codec.frame_indices(int(loaded.frame_indices[-1]) + 1, clip_frames)
    fits = loaded.saliency.shape[1:] == (side, side) and np.array_equal(loaded.frame_indices, expected)
    return loaded if fits else None
