"""Sidecars: a clip's saliency in a few kilobytes, so that training never reads the bitstream for it again.

The bytes are a safetensors file (no pickle): tensor `packed`, uint8, is a bzip2 stream of saliency uint8 [T, rows, cols],
frame_indices little-endian int32 [T] and one letter for the type of each frame; one metadata entry, `sidecar`, holds the rest as
JSON. The same clip and settings always give the same bytes. The source is recorded by size and SHA-256, so that a sidecar left
behind by a re-encoded clip is noticed. `codec.derive` makes crops, flips, other grids and other frames from one.
"""

import bz2
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from codec.frames import Frames
from codec.saliency import DEFAULT, SaliencyConfig, patch_grid, saliency
from codec.sample import frame_indices, sample
from codec.signals import signals
from codec.types import CodecError, FrameSignals, Source, describe

VERSION = 2
"""Raised whenever the meaning of any field changes."""

_CHUNK = 1 << 20
_MAX_PATCHES = 1 << 28
_MAX_CLIP_FRAMES = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sidecar:
    """What is worth remembering of a clip."""

    saliency: npt.NDArray[np.uint8]
    """[T, rows, cols]: saliency times 255, rounded. Goes into `select` as it is."""
    frame_indices: npt.NDArray[np.int32]
    """[T]: the frame of the clip, in display order, that each t stands for."""
    clip_types: str
    """I, P or B for each frame of the clip, up to the last that is needed."""
    height: int
    """Of the clip, pixels."""
    width: int
    """Of the clip, pixels."""
    source_codec: str
    """FFmpeg's name of the clip's codec."""
    source_bytes: int
    source_sha256: str
    estimated: bool
    """True where the signals were measured on pixels, not read from the bitstream."""
    config: SaliencyConfig

    @property
    def frame_types(self) -> str:
        """I, P or B for each of the T frames."""
        return "".join(self.clip_types[index] for index in self.frame_indices)

    @property
    def is_static(self) -> bool:
        """True where no patch has any saliency: selection then falls back to evenly spaced frames."""
        return not self.saliency.any()

    def verify(self, source: Source, *, name: str | None = None) -> None:
        """Check that the sidecar was made from this clip.

        Raises:
            CodecError: it was made from another, or an earlier version of it.
        """
        size, digest = _fingerprint(source)
        if (size, digest) != (self.source_bytes, self.source_sha256):
            raise CodecError(
                f"{describe(source, name)}: the sidecar is stale: it was made from {self.source_bytes} bytes with SHA-256 "
                f"{self.source_sha256[:12]}..., the clip has {size} with {digest[:12]}...: make it again"
            )


def analyse(
    source: Source,
    grid: tuple[int, int] | None = None,
    *,
    virtual_frames: int = 64,
    config: SaliencyConfig = DEFAULT,
    name: str | None = None,
) -> Sidecar:
    """Make the sidecar of a clip.

    Args:
        source: path of a clip, or its bytes.
        grid: (rows, cols) of patches; by default 256 or a few less at the clip's own aspect.
        virtual_frames: the most frames the sidecar describes, evenly spaced over the clip.
        config: how saliency is computed.
        name: what error messages call the clip.

    Raises:
        CodecError: the clip cannot be read to its last frame that is needed.
        ValueError: an empty grid, or less than one virtual frame.
    """
    clip = Frames(source, name)
    indices = frame_indices(clip.count, virtual_frames)
    types: list[str] = []

    def noting_types() -> Iterator[FrameSignals]:
        for frame in signals(source, name=name):
            types.append(frame.type)
            yield frame

    frames = sample(noting_types(), indices)
    height, width = frames[0].height, frames[0].width
    size, digest = _fingerprint(source)
    return Sidecar(
        saliency=np.rint(saliency(frames, grid or patch_grid(height, width), config=config) * 255).astype(np.uint8),
        frame_indices=indices.astype(np.int32),
        clip_types="".join(types),
        height=height,
        width=width,
        source_codec=clip.codec,
        source_bytes=size,
        source_sha256=digest,
        estimated=frames[0].estimated,
        config=config,
    )


def dumps(sidecar: Sidecar) -> bytes:
    """Serialise a sidecar; equal sidecars give equal bytes."""
    packed = bz2.compress(_content(sidecar))
    header = {
        "version": VERSION,
        "shape": list(sidecar.saliency.shape),
        "height": sidecar.height,
        "width": sidecar.width,
        "source_codec": sidecar.source_codec,
        "source_bytes": sidecar.source_bytes,
        "source_sha256": sidecar.source_sha256,
        "estimated": sidecar.estimated,
        "config": asdict(sidecar.config),
        "digest": _digest(packed),
    }
    # A single entry: safetensors does not promise the order of several.
    metadata = {"sidecar": json.dumps(header, sort_keys=True)}
    return save_tensors({"packed": np.frombuffer(packed, np.uint8)}, metadata)


def loads(data: bytes, *, name: str = "sidecar") -> Sidecar:
    """Read what `dumps` wrote.

    Raises:
        CodecError: damaged or foreign bytes, or another version of the format; `name` is what the message calls them.
    """
    try:
        header = _header(data)
        if header["version"] != VERSION:
            raise CodecError(
                f"{name}: the sidecar has version {header['version']}, this program reads version {VERSION}: make it again"
            )
        packed = load_tensors(data)["packed"].tobytes()
        if header["digest"] != _digest(packed):
            raise CodecError(f"{name}: damaged: its contents do not match their checksum")
        content = _unpacked(packed, header["shape"], name)
        frames, rows, cols = header["shape"]
        types_begin = frames * (rows * cols + 4)
        sidecar = Sidecar(
            saliency=np.frombuffer(content, np.uint8, frames * rows * cols).reshape(frames, rows, cols),
            frame_indices=np.frombuffer(content, "<i4", frames, frames * rows * cols).astype(np.int32),
            clip_types=content[types_begin:].decode("ascii"),
            height=header["height"],
            width=header["width"],
            source_codec=header["source_codec"],
            source_bytes=header["source_bytes"],
            source_sha256=header["source_sha256"],
            estimated=header["estimated"],
            config=SaliencyConfig(**header["config"]),
        )
    except CodecError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError, EOFError) as error:
        raise CodecError(f"{name}: not a sidecar, or a damaged one: {error!r}") from error
    if not 0 <= sidecar.frame_indices.min() <= sidecar.frame_indices.max() < len(sidecar.clip_types):
        raise CodecError(
            f"{name}: damaged: its frames are not all among the {len(sidecar.clip_types)} whose types it has"
        )
    return sidecar


def _content(sidecar: Sidecar) -> bytes:
    maps, indices = sidecar.saliency, sidecar.frame_indices
    if maps.dtype != np.uint8 or maps.ndim != 3 or indices.shape != (len(maps),):
        raise ValueError(
            f"a sidecar holds uint8 [T, rows, cols] and T frame indices; got {maps.dtype} {maps.shape} and {indices.shape}"
        )
    return maps.tobytes() + indices.astype("<i4").tobytes() + sidecar.clip_types.encode("ascii")


def _unpacked(packed: bytes, shape: list[int], name: str) -> bytes:
    """The content of at most _MAX_CLIP_FRAMES frames: a damaged or hostile stream must not unpack to anything larger."""
    frames, rows, cols = shape
    if not 0 < frames * rows * cols <= _MAX_PATCHES:
        raise CodecError(f"{name}: damaged: {shape} patches are none or too many")
    unpacker = bz2.BZ2Decompressor()
    content = unpacker.decompress(packed, frames * (rows * cols + 4) + _MAX_CLIP_FRAMES)
    if not unpacker.eof:
        raise CodecError(f"{name}: damaged: its packed content is cut off or too long")
    return content


def _header(data: bytes) -> dict[str, Any]:
    """The JSON under `sidecar` in a safetensors file: 8 bytes of length, then a JSON header."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["sidecar"])


def _digest(packed: bytes) -> str:
    return hashlib.sha256(packed).hexdigest()[:16]


def _fingerprint(source: Source) -> tuple[int, str]:
    """Size and SHA-256 of a clip."""
    if isinstance(source, bytes):
        return len(source), hashlib.sha256(source).hexdigest()
    digest, size = hashlib.sha256(), 0
    try:
        with open(source, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise CodecError(f"{describe(source)}: cannot be read: {error.strerror}") from error
    return size, digest.hexdigest()
