"""Pictures of what selection sees: a clip as a GIF, chosen patches lit, the rest dark.

Below the picture, one bar per frame shows the share of its patches that were chosen, relative to the fullest frame that was not
taken whole: orange for I frames, white for the frame on show.
"""

import io
from collections.abc import Iterator

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from codec.saliency import REFERENCE, SaliencyConfig, patch_grid, saliency
from codec.sample import frame_indices, sample
from codec.select import Policy, select
from codec.signals import decode
from codec.source import frame_count
from codec.types import FrameSignals, Source

MAX_BYTES = 3_000_000
_SIDES = (320, 256, 192, 128, 96)
"""Longest side of the picture in pixels, tried in turn until the GIF is small enough."""
_DARK = 0.3
_COLOURS = 96
_MILLISECONDS = 80
_STRIP = 40
_CAPTION = 14
_MIN_SHARE = 0.01
"""Share of a frame's patches that a full bar stands for at least."""
_BAR, _INTRA_BAR, _SHOWN_BAR = (90, 110, 140), (235, 150, 40), (255, 255, 255)


def render(
    source: Source,
    *,
    budget: int | float,
    policy: Policy,
    config: SaliencyConfig = REFERENCE,
    grid: tuple[int, int] | None = None,
    virtual_frames: int = 64,
    name: str | None = None,
) -> bytes:
    """A GIF, of at most 3 MB, of the patches selected from a clip.

    Args:
        source: path of a clip, or its bytes.
        budget: patches to select: an int is their number, a float in (0, 1] their share of all patches.
        policy: what becomes of I frames, see `codec.select`.
        config: how saliency is computed.
        grid: (rows, cols) of patches; by default 256 or a few less at the clip's own aspect.
        virtual_frames: the most frames to sample.
        name: what error messages call the clip.

    Raises:
        CodecError: the clip cannot be read.
        ValueError: a budget that the clip cannot fill, or more frames than 3 MB can show.
    """
    indices = frame_indices(frame_count(source, name=name), virtual_frames)
    thumbnails: list[Image.Image] = []
    frames = sample(_with_thumbnails(decode(source, name=name), set(indices.tolist()), thumbnails), indices)
    grid = grid or patch_grid(frames[0].height, frames[0].width)
    maps = saliency(frames, grid, config=config)
    count = budget if isinstance(budget, int) else share_of(budget, maps.size)
    types = "".join(frame.type for frame in frames)
    chosen = np.zeros(maps.shape, np.bool_)
    chosen[tuple(select(maps, count, policy, frame_types=types).T)] = True
    for side in _SIDES:
        data = _gif([_panel(picture, chosen, types, t, side) for t, picture in enumerate(thumbnails)])
        if len(data) <= MAX_BYTES:
            return data
    raise ValueError(f"{len(frames)} frames do not fit into a GIF of {MAX_BYTES} bytes: sample fewer with --frames")


def share_of(share: float, patches: int) -> int:
    """Number of patches that is nearest to a share of them.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"a budget of {share:.1%} of the patches makes no sense: give more than 0 % and at most 100 %")
    return max(1, round(share * patches))


def _with_thumbnails(
    decoded: Iterator[tuple[av.VideoFrame, FrameSignals]], wanted: set[int], thumbnails: list[Image.Image]
) -> Iterator[FrameSignals]:
    """The signals of every frame, on the way putting the wanted frames aside, small."""
    for frame, signals in decoded:
        if signals.index in wanted:
            scale = _SIDES[0] / max(frame.width, frame.height)
            width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
            thumbnails.append(frame.to_image().resize((width, height), Image.Resampling.BOX if scale < 1 else None))
        yield signals


def _panel(picture: Image.Image, chosen: npt.NDArray[np.bool_], types: str, t: int, side: int) -> Image.Image:
    """Frame `t` with its chosen patches lit, above a strip of bars for all frames."""
    scale = side / max(picture.size)
    width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    _, rows, cols = chosen.shape
    pixels = np.asarray(picture.resize((width, height)), np.float32)
    lit = chosen[t][np.arange(height)[:, None] * rows // height, np.arange(width) * cols // width]
    dark = pixels.mean(axis=-1, keepdims=True) * _DARK
    shown = np.where(lit[..., None], pixels, dark).astype(np.uint8)
    panel = Image.new("RGB", (width, height + _STRIP))
    panel.paste(Image.fromarray(shown))
    _draw_strip(ImageDraw.Draw(panel), chosen, types, t, (width, height))
    return panel


def _draw_strip(
    draw: ImageDraw.ImageDraw, chosen: npt.NDArray[np.bool_], types: str, t: int, size: tuple[int, int]
) -> None:
    width, top = size
    bottom = top + _STRIP - 1
    shares = chosen.mean(axis=(1, 2))
    # Whole frames would dwarf all others: they fill the strip, and the tallest of the others nearly does.
    partial = shares[shares < 1]
    heights = np.minimum(shares / max(partial.max(initial=0), _MIN_SHARE), 1) * (_STRIP - _CAPTION - 1)
    for frame, tall in enumerate(heights):
        left, right = frame * width // len(shares), (frame + 1) * width // len(shares) - 1
        colour = _SHOWN_BAR if frame == t else _INTRA_BAR if types[frame] == "I" else _BAR
        draw.rectangle((left, bottom - round(tall), max(left, right), bottom), fill=colour)
    caption = f"{chosen.sum()} of {chosen.size} ({chosen.mean():.1%})   t {t} {types[t]}"
    draw.text((2, top), caption, fill=_SHOWN_BAR)


def _gif(panels: list[Image.Image]) -> bytes:
    # Without dithering, dark areas compress well and pictures do not flicker.
    small = [panel.quantize(_COLOURS, dither=Image.Dither.NONE) for panel in panels]
    buffer = io.BytesIO()
    small[0].save(buffer, "GIF", save_all=True, append_images=small[1:], duration=_MILLISECONDS, loop=0, optimize=False)
    return buffer.getvalue()
