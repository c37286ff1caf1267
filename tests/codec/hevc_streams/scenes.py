"""Rendered clips for real encoders: a panned textured floor, textured objects on it, sensor noise."""

import numpy as np


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth random texture, float [height, width] around 0 with a standard deviation of one; it wraps around."""
    noise = np.random.default_rng(seed).standard_normal((height, width))
    for axis in (0, 1):
        for _ in range(4):
            noise = (np.roll(noise, 1, axis) + 2 * noise + np.roll(noise, -1, axis)) / 4
    return noise / noise.std()


def render(kind: str, width: int, height: int, count: int, bit_depth: int = 8) -> list[np.ndarray]:
    """Luma frames [height, width] of a named scene: `objects`, `pan`, `noisy`, `fade`, `cut` or `still`."""
    floor, ball, slab = texture(height, width, 1), texture(40, 40, 2), texture(64, 64, 3)
    rng = np.random.default_rng(4)
    frames = []
    for t in range(count):
        shift = {"pan": (t, 3 * t), "noisy": (0, t), "objects": (0, t // 2)}.get(kind, (0, 0))
        frame = 110 + 25 * np.roll(floor, shift, (0, 1))
        if kind == "cut" and t >= count // 2:
            frame = 140 + 20 * texture(height, width, 9)
        if kind != "still":
            _paste(frame, 90 + 40 * slab, 20 + t, height // 2 - 32 + t // 2)
            _paste(frame, 150 + 35 * ball, width - 60 - 5 * t, 10 + 4 * t)
        if kind == "fade":
            frame *= 1 - 0.08 * t
        if kind == "noisy":
            frame += rng.normal(0, 6, frame.shape)
        scale = 1 << (bit_depth - 8)
        frames.append((frame * scale).clip(0, 255 * scale).astype(np.uint8 if bit_depth == 8 else np.uint16))
    return frames


def _paste(frame: np.ndarray, patch: np.ndarray, x: int, y: int) -> None:
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + patch.shape[0], frame.shape[0]), min(x + patch.shape[1], frame.shape[1])
    if bottom > top and right > left:
        frame[top:bottom, left:right] = patch[top - y : bottom - y, left - x : right - x]
