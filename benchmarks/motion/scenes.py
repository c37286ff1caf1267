"""Rendered clips whose class is how an object moves over the floor, and nothing else.

A coloured object rests on a grey, textured floor, moves once along the rows or the columns at one of three speeds, and rests
again. The camera stands still or pans. Textures, colour, kind, size and place of the object, how far it goes and which way, when,
and the pan are drawn alike for every class: no single frame tells axis or speed, and no two frames of before and after tell speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from codec.bench.scenes import ENCODERS, bilinear, encode, texture
from megatron_ovenc.data.order import generator

SIDE = 64
"""Of a clip, pixels."""
FRAMES = 64
DIRECTIONS = {"across": (1, 0), "upright": (0, 1)}
"""(x, y); which way along it is drawn."""
SPEEDS = {"slow": 1.0, "medium": 2.0, "fast": 4.0}
"""Pixels a frame relative to the floor."""
CLASSES = tuple(f"{direction} {speed}" for direction in DIRECTIONS for speed in SPEEDS)

_WAY = (28.0, 40.0)
"""Pixels that the object goes, drawn independently of its speed."""
_PAN = (0.3, 0.7)
"""Pixels a frame that a panning camera moves."""
_RADIUS = (4.5, 6.0)
_NOISE = 3.0
"""Standard deviation of sensor noise, grey levels."""
_FLOOR, _SKIN = 256, 32
_KINDS: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    np.hypot,
    lambda x, y: np.maximum(abs(x), abs(y)),
    lambda x, y: (abs(x) + abs(y)) / np.sqrt(2),
)
"""Disc, square and diamond: the distance from the middle that they are the balls of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One clip: its number within its split decides its class, codec and everything that is drawn."""

    split: str
    number: int

    @property
    def label(self) -> int:
        return self.number % len(CLASSES)

    @property
    def panning(self) -> bool:
        """Every other clip of a class."""
        return self.number // len(CLASSES) % 2 == 1

    @property
    def codec(self) -> str:
        """In turn within a class and a camera, so that it tells nothing of either."""
        return tuple(ENCODERS)[self.number // (2 * len(CLASSES)) % len(ENCODERS)]

    def encoded(self) -> bytes:
        """The clip as a file."""
        return encode(self.frames(), *ENCODERS[self.codec])

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [SIDE, SIDE, 3]."""
        rng = generator("motion", self.split, self.number)
        direction, speed = CLASSES[self.label].split()
        velocity = rng.choice((-1, 1)) * SPEEDS[speed] * np.array(DIRECTIONS[direction])
        floor, skin = texture(rng, _FLOOR), texture(rng, _SKIN)
        kind, radius = _KINDS[rng.integers(len(_KINDS))], rng.uniform(*_RADIUS)
        colour = np.array([1.5, rng.uniform(0.2, 1.2), 0.2], np.float32)
        duration = rng.uniform(*_WAY) / SPEEDS[speed]
        middle = rng.uniform(20, FRAMES - 20)
        angle = rng.uniform(0, 2 * np.pi)
        pan = self.panning * rng.uniform(*_PAN) * np.array([np.cos(angle), np.sin(angle)])
        # Half-way the object is somewhere around the middle of the picture.
        place = SIDE / 2 + rng.uniform(-SIDE / 10, SIDE / 10, 2)
        y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        for t in range(FRAMES):
            camera = pan * (t - middle)
            picture = bilinear(floor, x + camera[0], y + camera[1])[..., None]
            moved = np.clip(t - middle, -duration / 2, duration / 2) * velocity
            dx, dy = (grid - centre for grid, centre in zip((x, y), place + moved - camera, strict=True))
            cover = (radius + 0.5 - kind(dx, dy)).clip(0, 1)[..., None]
            picture = picture * (1 - cover) + bilinear(skin, dx, dy)[..., None] * colour * cover
            yield (picture + rng.normal(0, _NOISE, (SIDE, SIDE, 1))).round().clip(0, 255).astype(np.uint8)
