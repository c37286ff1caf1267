"""Rendered clips whose class is how an object moves over the floor, and nothing else.

A coloured object rests on a grey, textured floor, moves once in one of four directions, slowly or fast, and rests again. The
camera stands still or pans. Texture, colour, kind, size and place of the object, how far it goes, when, and the pan are drawn
alike for every class: no single frame tells direction or speed, and no picture before with one after tells speed.
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
DIRECTIONS = {"right": (1, 0), "down": (0, 1), "left": (-1, 0), "up": (0, -1)}
SPEEDS = {"slow": 1.25, "fast": 4.0}
"""Pixels a frame relative to the floor."""
CLASSES = tuple(f"{direction} {speed}" for direction in DIRECTIONS for speed in SPEEDS)

_WAY = (20.0, 30.0)
"""Pixels that the object goes, drawn independently of its speed."""
_PAN = (0.3, 0.7)
"""Pixels a frame that a panning camera moves."""
_RADIUS = (7.0, 9.0)
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
        direction, speed = (
            names[index]
            for names, index in zip(
                (tuple(DIRECTIONS.values()), tuple(SPEEDS.values())), divmod(self.label, len(SPEEDS)), strict=True
            )
        )
        floor, skin = texture(rng, _FLOOR), texture(rng, _SKIN)
        kind, radius = _KINDS[rng.integers(len(_KINDS))], rng.uniform(*_RADIUS)
        colour = rng.permutation([1.5, 1.0, 0.2]) * np.float32(1)
        way = rng.uniform(*_WAY)
        middle = rng.uniform(14, FRAMES - 14)
        angle = rng.uniform(0, 2 * np.pi)
        pan = self.panning * rng.uniform(*_PAN) * np.array([np.cos(angle), np.sin(angle)])
        # Half-way the object is somewhere around the middle of the picture.
        place = SIDE / 2 + rng.uniform(-SIDE / 8, SIDE / 8, 2)
        y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        for t in range(FRAMES):
            camera = pan * (t - middle)
            picture = bilinear(floor, x + camera[0], y + camera[1])[..., None]
            gone = np.clip(speed * (t - middle), -way / 2, way / 2)
            dx, dy = (
                grid - centre for grid, centre in zip((x, y), place + gone * np.array(direction) - camera, strict=True)
            )
            cover = (radius + 0.5 - kind(dx, dy)).clip(0, 1)[..., None]
            picture = picture * (1 - cover) + bilinear(skin, dx, dy)[..., None] * colour * cover
            picture = picture + rng.normal(0, _NOISE, (SIDE, SIDE, 1))
            yield picture.round().clip(0, 255).astype(np.uint8)
