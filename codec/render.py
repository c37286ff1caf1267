"""Pictures of what selection sees: a clip as an animated GIF or an MP4, in panels side by side.

Below them, one bar per frame shows the share of its patches that were chosen, relative to the fullest frame that was not
taken whole: orange for I frames, white for the frame on show.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream
from PIL import Image

from codec import panels
from codec.saliency import DEFAULT, SaliencyConfig, patch_grid, saliency
from codec.sample import frame_indices, sample
from codec.select import Policy, select
from codec.signals import decode
from codec.source import frame_count
from codec.types import FrameSignals, Source

Panel: TypeAlias = Literal["original", "uniform", "saliency", "selected", "motion"]
Format: TypeAlias = Literal["gif", "mp4"]

MAX_BYTES = 3_000_000
"""Of a GIF."""
FOUR: tuple[Panel, ...] = ("original", "uniform", "saliency", "selected")
_SIDES = (320, 256, 192, 128, 96)
"""Longest side of one panel in pixels, tried in turn until the GIF is small enough."""
_COLOURS = 96
_MILLISECONDS = 80
_RESIDUAL_WHITE = 24.0
"""Grey levels of residual that are shown as the hottest colour."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Scene:
    """All that panels show."""

    pictures: Sequence[Image.Image]
    frames: Sequence[FrameSignals]
    saliency: npt.NDArray[np.float32]
    """[T, rows, cols]"""
    chosen: npt.NDArray[np.bool_]
    """[T, rows, cols]: by saliency."""
    uniform: npt.NDArray[np.bool_]
    """[T, rows, cols]: as many patches, as whole frames evenly spaced."""

    @property
    def types(self) -> str:
        return "".join(frame.type for frame in self.frames)


def render(
    source: Source,
    *,
    budget: int | float,
    policy: Policy,
    shown: Sequence[Panel] = FOUR,
    config: SaliencyConfig = DEFAULT,
    grid: tuple[int, int] | None = None,
    virtual_frames: int = 64,
    container: Format = "gif",
    name: str | None = None,
) -> bytes:
    """A GIF, of at most 3 MB, or an MP4 of the patches selected from a clip.

    Args:
        source: path of a clip, or its bytes.
        budget: patches to select: an int is their number, a float in (0, 1] their share of all patches.
        policy: what becomes of I frames, see `codec.select`.
        shown: the panels, from left to right. `uniform` shows as many patches as `selected`, as whole frames evenly spaced;
            `motion` shows arrows of motion over the residual's heat.
        config: how saliency is computed.
        grid: (rows, cols) of patches; by default 256 or a few less at the clip's own aspect.
        virtual_frames: the most frames to sample.
        container: gif or mp4.
        name: what error messages call the clip.

    Raises:
        CodecError: the clip cannot be read.
        ValueError: a budget that the clip cannot fill, or more frames than 3 MB can show.
    """
    scene = _scene(source, budget, policy, config, grid, virtual_frames, name)
    if container == "mp4":
        return _mp4([_row(scene, shown, t, _SIDES[0]) for t in range(len(scene.frames))])
    for side in _SIDES:
        data = _gif([_row(scene, shown, t, side) for t in range(len(scene.frames))])
        if len(data) <= MAX_BYTES:
            return data
    raise ValueError(
        f"{len(scene.frames)} frames do not fit into a GIF of {MAX_BYTES} bytes: sample fewer with --frames"
    )


def share_of(share: float, patches: int) -> int:
    """Number of patches that is nearest to a share of them.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"a budget of {share:.1%} of the patches makes no sense: give more than 0 % and at most 100 %")
    return max(1, round(share * patches))


def _scene(
    source: Source,
    budget: int | float,
    policy: Policy,
    config: SaliencyConfig,
    grid: tuple[int, int] | None,
    virtual_frames: int,
    name: str | None,
) -> _Scene:
    indices = frame_indices(frame_count(source, name=name), virtual_frames)
    pictures: list[Image.Image] = []
    frames = sample(_with_pictures(decode(source, name=name), set(indices.tolist()), pictures), indices)
    grid = grid or patch_grid(frames[0].height, frames[0].width)
    maps = saliency(frames, grid, config=config)
    count = budget if isinstance(budget, int) else share_of(budget, maps.size)
    chosen, uniform = np.zeros(maps.shape, np.bool_), np.zeros(maps.shape, np.bool_)
    chosen[tuple(select(maps, count, policy, frame_types="".join(frame.type for frame in frames)).T)] = True
    # Where nothing is salient, selection shows evenly spaced whole frames.
    uniform[tuple(select(np.zeros_like(maps), count, "free").T)] = True
    return _Scene(pictures=pictures, frames=frames, saliency=maps, chosen=chosen, uniform=uniform)


def _with_pictures(
    decoded: Iterator[tuple[av.VideoFrame, FrameSignals]], wanted: set[int], pictures: list[Image.Image]
) -> Iterator[FrameSignals]:
    """The signals of every frame, on the way putting the wanted frames aside, small."""
    for frame, signals in decoded:
        if signals.index in wanted:
            scale = _SIDES[0] / max(frame.width, frame.height)
            width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
            pictures.append(frame.to_image().resize((width, height), Image.Resampling.BOX if scale < 1 else None))
        yield signals


def _row(scene: _Scene, shown: Sequence[Panel], t: int, side: int) -> Image.Image:
    image = scene.pictures[t]
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    picture = np.asarray(image.resize(size).convert("RGB"))
    frame, share = scene.frames[t], f"{scene.chosen.mean():.1%}"

    def motion() -> npt.NDArray[np.uint8]:
        heat = panels.heated(picture, frame.residual / np.float32(_RESIDUAL_WHITE))
        return panels.with_arrows(heat, frame.motion, size[0] / frame.width)

    draw: dict[Panel, tuple[str, Callable[[], npt.NDArray[np.uint8]]]] = {
        "original": ("original", lambda: picture),
        "uniform": (f"uniform frames {share}", lambda: panels.dimmed(picture, scene.uniform[t])),
        "saliency": ("temporal saliency", lambda: panels.heated(picture, scene.saliency[t])),
        "selected": (f"selected patches {share}", lambda: panels.dimmed(picture, scene.chosen[t])),
        "motion": ("motion over residual", motion),
    }
    return panels.row([(draw[panel][0], draw[panel][1]()) for panel in shown], scene.chosen, scene.types, t)


def _gif(images: list[Image.Image]) -> bytes:
    # Without dithering, dark areas compress well and pictures do not flicker.
    small = [image.quantize(_COLOURS, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    small[0].save(buffer, "GIF", save_all=True, append_images=small[1:], duration=_MILLISECONDS, loop=0, optimize=False)
    return buffer.getvalue()


def _mp4(images: list[Image.Image]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=Fraction(1000, _MILLISECONDS), options={"crf": "20"})
        assert isinstance(stream, VideoStream)
        (stream.width, stream.height), stream.pix_fmt = images[0].size, "yuv420p"
        for image in images:
            output.mux(stream.encode(av.VideoFrame.from_image(image)))
        output.mux(stream.encode(None))
    return buffer.getvalue()
