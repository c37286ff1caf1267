"""Drawing frames of a clip: plain, dimmed where patches are left out, under a heat map, or with arrows of motion."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

STRIP = 40
"""Pixels of the bar chart below the pictures."""
CAPTION = 14
"""Pixels of a line of text."""
_DARK = 0.25
_HEAT = np.array([(0, 0, 20), (70, 15, 110), (190, 50, 85), (245, 130, 30), (255, 250, 170)], np.float32)
"""Colours of 0, 1/4, ... 1: dark violet over red to pale yellow."""
_HEAT_SHARE = 0.7
_MIN_SHARE = 0.01
"""Share of a frame's patches that a full bar stands for at least."""
_ARROW_STEP = 20
"""Pixels between arrows."""
_ARROW_SCALE = 3.0
"""Pixels of arrow for a pixel of motion, on a picture shown at its own size."""
_BAR, _INTRA_BAR, _SHOWN_BAR = (90, 110, 140), (235, 150, 40), (255, 255, 255)
_ARROW = (90, 255, 140)

Picture = npt.NDArray[np.uint8]
"""[H, W, 3], RGB"""


def dimmed(picture: Picture, chosen: npt.NDArray[np.bool_]) -> Picture:
    """The chosen patches [rows, cols] as they are, the rest grey and dark."""
    dark = picture.mean(axis=-1, keepdims=True) * _DARK
    return np.where(_spread(chosen, picture)[..., None], picture, dark).astype(np.uint8)


def heated(picture: Picture, heat: npt.NDArray[np.float32]) -> Picture:
    """A map [rows, cols] in [0, 1] in colours over the grey picture."""
    position = _spread(heat, picture).clip(0, 1) * (len(_HEAT) - 1)
    lower = np.minimum(position.astype(np.int64), len(_HEAT) - 2)
    share = (position - lower)[..., None]
    colours = _HEAT[lower] * (1 - share) + _HEAT[lower + 1] * share
    grey = picture.mean(axis=-1, keepdims=True)
    return (_HEAT_SHARE * colours + (1 - _HEAT_SHARE) * grey).clip(0, 255).astype(np.uint8)


def with_arrows(picture: Picture, motion: npt.NDArray[np.float32], pixels: float) -> Picture:
    """Arrows along a motion field [rows, cols, 2], in pixels of the clip; `pixels` of the picture show one of them."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    height, width, _ = picture.shape
    rows, cols, _ = motion.shape
    for y in range(_ARROW_STEP // 2, height, _ARROW_STEP):
        for x in range(_ARROW_STEP // 2, width, _ARROW_STEP):
            around = motion[
                max(0, (y - 8) * rows // height) : (y + 8) * rows // height + 1,
                max(0, (x - 8) * cols // width) : (x + 8) * cols // width + 1,
            ]
            across, down = np.median(around, axis=(0, 1)) * pixels * _ARROW_SCALE
            if across or down:
                draw.line((x, y, x + across, y + down), fill=_ARROW)
                draw.rectangle((x + across - 1, y + down - 1, x + across + 1, y + down + 1), fill=_ARROW)
    return np.asarray(image)


def row(panels: list[tuple[str, Picture]], chosen: npt.NDArray[np.bool_], types: str, t: int) -> Image.Image:
    """Titled panels side by side above bars for all frames: the share of each frame's patches [T, rows, cols] that is chosen."""
    height, width, _ = panels[0][1].shape
    image = Image.new("RGB", (_even(width * len(panels)), _even(height + CAPTION + STRIP)))
    draw = ImageDraw.Draw(image)
    for place, (title, picture) in enumerate(panels):
        draw.text((place * width + 3, 1), title, fill=_SHOWN_BAR)
        image.paste(Image.fromarray(picture), (place * width, CAPTION))
    _draw_strip(draw, chosen, types, t, (width * len(panels), height + CAPTION))
    return image


def _draw_strip(
    draw: ImageDraw.ImageDraw, chosen: npt.NDArray[np.bool_], types: str, t: int, place: tuple[int, int]
) -> None:
    width, top = place
    bottom = top + STRIP - 1
    shares = chosen.mean(axis=(1, 2))
    # Whole frames would dwarf all others: they fill the strip, and the tallest of the others nearly does.
    partial = shares[shares < 1]
    heights = np.minimum(shares / max(partial.max(initial=0), _MIN_SHARE), 1) * (STRIP - CAPTION - 1)
    for frame, tall in enumerate(heights):
        left, right = frame * width // len(shares), (frame + 1) * width // len(shares) - 1
        colour = _SHOWN_BAR if frame == t else _INTRA_BAR if types[frame] == "I" else _BAR
        draw.rectangle((left, bottom - round(tall), max(left, right), bottom), fill=colour)
    caption = f"{chosen.sum()} of {chosen.size} ({chosen.mean():.1%})   t {t} {types[t]}: {shares[t]:.0%}"
    draw.text((2, top), caption, fill=_SHOWN_BAR)


def _spread(patches: np.ndarray, picture: Picture) -> np.ndarray:
    """Each pixel's patch."""
    height, width, _ = picture.shape
    rows, cols = patches.shape
    return patches[np.arange(height)[:, None] * rows // height, np.arange(width) * cols // width]


def _even(pixels: int) -> int:
    """Video encoders want even sizes."""
    return pixels + pixels % 2
