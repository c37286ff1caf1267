"""Frames of an HEVC clip as the bitstream describes them, in display order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from codec.source import Clip, open_clip, packets
from codec.types import CodecError, FrameType, Source, UnsupportedStream, not_compiled

try:
    from codec.hevc import _hevc
except ImportError:  # a checkout that was never built: everything but HEVC works
    _hevc = None  # type: ignore[assignment]

INTRA, INTER, SKIPPED = 1, 2, 3
"""Values of `HevcFrame.mode`. Skipped units are predicted like inter ones, with merged motion and no residual."""

_REMEMBERED = 64
"""Packets whose pictures are waited for: more than the 16 that H.265 lets a decoder hold back. Some are never shown."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HevcFrame:
    """One frame. Grids have one cell per 4x4 luma pixels: rows = ceil(height / 4), cols = ceil(width / 4) of the cropped picture.

    A conformance window that does not start on a multiple of four pixels shifts the grids by the remainder: the first cell is the
    one that the window's first pixel lies in.
    """

    index: int
    """Position in display order, from 0."""
    order: int
    """Position of its packet in decoding order, from 0."""
    poc: int
    """Picture order count: display order within a coded video sequence."""
    type: FrameType
    """B if any slice is B, else P if any is P, else I."""
    key_frame: bool
    """Whether it is an IRAP picture (IDR, BLA or CRA)."""
    height: int
    """Luma pixels."""
    width: int
    """Luma pixels."""
    qp: npt.NDArray[np.int8]
    """[rows, cols]: QpY of the coding unit."""
    log2_size: npt.NDArray[np.uint8]
    """[rows, cols]: log2 of the coding unit's side in pixels, 3 to 6."""
    mode: npt.NDArray[np.uint8]
    """[rows, cols]: INTRA, INTER or SKIPPED."""
    vectors: npt.NDArray[np.int16]
    """[rows, cols, 2, 2]: motion (list, (x, y)) in quarter pixels, from the block to where it is predicted from; 0 where unused."""
    reference_poc: npt.NDArray[np.int32]
    """[rows, cols, 2]: POC of the picture that each list's vector leads to; 0 where unused."""
    predicted: npt.NDArray[np.bool_]
    """[rows, cols, 2]: whether each list is used."""
    bits: npt.NDArray[np.float32]
    """[rows, cols]: a coding unit's bits, spread evenly over its cells in the picture: the arithmetic coder's, fractions
    included, and those of the split flags before the unit."""
    residual_energy: npt.NDArray[np.float32]
    """[rows, cols]: mean square of the coded luma residual over the cell's pixels, in squared grey levels of an 8-bit picture.

    The dequantised coefficients are transformed back exactly but for the rounding between passes, so the energy of a transform
    block falls on the cells where its residual is. For PCM blocks, which have no residual, it is the squared distance from the
    block's mean."""
    frame_bytes: int
    """Size of the frame's packet."""
    slice_data_bits: int
    """Size of all slice data, without headers and emulation prevention bytes."""
    other_bits: float
    """Part of `slice_data_bits` outside coding units: SAO parameters, ends of slices, alignment."""


@dataclass(frozen=True, slots=True)
class _Packet:
    """What is kept of a packet until its picture is shown."""

    pts: int | None
    size: int
    """Bytes."""
    hidden: bool
    """Whether an edit list of the container cuts its picture off: others may be predicted from it, but it is not shown."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A picture of the core, with what its packet says."""

    picture: Any
    """`_hevc.Picture`"""
    pts: int | None
    size: int
    """Bytes of the packet."""
    step: int
    """Picture order counts since the frame shown before: what one frame of motion is worth."""


class Parser:
    """Feeds packets to the core and returns pictures in display order. Errors are kept in `damage`, behind the sound pictures."""

    def __init__(self, clip: Clip) -> None:
        self._name = clip.name
        self._decoder = core().Decoder()
        self._packets: dict[int, _Packet] = {}
        self._size: tuple[int, int] | None = None
        self._poc: int | None = None
        self._step = 1
        self.shown = 0
        """Pictures returned so far."""
        extradata = clip.stream.codec_context.extradata
        self._ready: list[Parsed] = []
        self.damage: CodecError | None = None
        """Why there are no more pictures than those taken."""
        if extradata:
            self._try(self._decoder.configure, bytes(extradata))

    def read(self, order: int, packet: av.Packet) -> None:
        """Read the packet at a position in decoding order; after damage it is ignored."""
        if self.damage is not None:
            return
        self._packets[order] = _Packet(packet.pts, packet.size, packet.is_discard)
        if len(self._packets) > _REMEMBERED:
            del self._packets[next(iter(self._packets))]
        self._try(self._decoder.read, bytes(packet), order)

    def end(self) -> None:
        """Read the end of the stream."""
        if self.damage is None:
            self._try(self._decoder.flush)

    def take(self) -> list[Parsed]:
        """Pictures that have become ready since the last call."""
        taken = list(self._ready)
        self._ready.clear()
        return taken

    def _try(self, act: Callable[..., None], *arguments: Any) -> None:
        try:
            act(*arguments)
            self._collect()
        except core().Unsupported as error:
            self.damage = UnsupportedStream(f"{self._name}: the HEVC reader does not support {error}")
        except core().Damage as error:
            self._decoder.abandon()
            self._collect()
            self.damage = CodecError(f"{self._name}: frame {self.shown} is damaged: {error}")

    def _collect(self) -> None:
        for picture in self._decoder.take():
            packet = self._packets.pop(picture.order)
            if packet.hidden and self.shown:
                continue  # the next frame's motion is since the frame shown before
            # Counts start anew with each coded video sequence: its first frame is taken to follow at the usual distance.
            if self._poc is not None and picture.poc > self._poc:
                self._step = picture.poc - self._poc
            self._poc = picture.poc
            if packet.hidden:
                continue
            size = picture.width, picture.height
            self._size = self._size or size
            if size != self._size:
                self.damage = CodecError(
                    f"{self._name}: the picture size changes from {self._size[0]}x{self._size[1]} to {size[0]}x{size[1]} "
                    f"at frame {self.shown}: split the clip there"
                )
                return
            self._ready.append(Parsed(picture, packet.pts, packet.size, self._step))
            self.shown += 1


def core() -> ModuleType:
    """The compiled core.

    Raises:
        UnsupportedStream: it was not built.
    """
    if _hevc is None:
        raise not_compiled("the HEVC reader")
    return _hevc


def parse(clip: Clip) -> Iterator[Parsed]:
    """The pictures of an HEVC clip in display order, without decoding it.

    Raises:
        UnsupportedStream: see there.
        CodecError: the stream is damaged, cut off or empty, or its picture size changes; sound frames are yielded first.
    """
    parser = Parser(clip)
    for order, packet in enumerate(packets(clip)):
        if packet is None:
            parser.end()
        else:
            parser.read(order, packet)
        yield from parser.take()
        if parser.damage is not None:
            raise parser.damage
    if parser.shown == 0:
        raise CodecError(f"{clip.name}: no frame could be read from its HEVC stream")


def frames(source: Source, *, name: str | None = None) -> Iterator[HevcFrame]:
    """Read an HEVC clip.

    Args:
        source: path of a clip, or its bytes.
        name: what error messages call it; by default the path.

    Yields:
        One `HevcFrame` a frame that a decoder would show, in display order.

    Raises:
        UnsupportedStream: see there.
        CodecError: not an HEVC clip; or as `parse`.
    """
    with open_clip(source, name) as clip:
        if clip.codec != "hevc":
            raise CodecError(
                f"{clip.name}: its video is {clip.codec}, not HEVC: use codec.signals, which reads any codec"
            )
        for index, parsed in enumerate(parse(clip)):
            picture = parsed.picture
            yield HevcFrame(
                index=index,
                order=picture.order,
                poc=picture.poc,
                type=picture.type,
                key_frame=picture.key_frame,
                height=picture.height,
                width=picture.width,
                qp=picture.qp(),
                log2_size=picture.log2_size(),
                mode=picture.mode(),
                vectors=picture.vectors(),
                reference_poc=picture.reference_pocs(),
                predicted=picture.predicted(),
                bits=picture.bits(),
                residual_energy=picture.energy(),
                frame_bytes=parsed.size,
                slice_data_bits=picture.slice_data_bits,
                other_bits=picture.other_bits,
            )
