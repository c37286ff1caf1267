"""Sidecars: a clip's saliency in a few kilobytes, so that training never reads the bitstream for it again.

The bytes are a safetensors file (no pickle): tensor `saliency`, uint8 [T, rows, cols]; tensor `frame_indices`, int32 [T]; and
one metadata entry, `sidecar`, with the rest as JSON. The same clip and settings always give the same bytes. The source is
recorded by size and SHA-256, so that a sidecar left behind by a re-encoded clip is noticed.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from codec.saliency import REFERENCE, SaliencyConfig, saliency
from codec.sample import frame_indices, sample
from codec.signals import signals
from codec.source import frame_count, open_clip
from codec.types import CodecError, Source, describe

VERSION = 1
"""Raised whenever the meaning of any field changes."""

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sidecar:
    """What is worth remembering of a clip."""

    saliency: npt.NDArray[np.uint8]
    """[T, rows, cols]: saliency times 255, rounded. Goes into `select` as it is."""
    frame_indices: npt.NDArray[np.int32]
    """[T]: the frame of the clip, in display order, that each t stands for."""
    frame_types: str
    """I, P or B for each of the T frames."""
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
    grid: tuple[int, int],
    *,
    virtual_frames: int = 64,
    config: SaliencyConfig = REFERENCE,
    name: str | None = None,
) -> Sidecar:
    """Make the sidecar of a clip.

    Args:
        source: path of a clip, or its bytes.
        grid: (rows, cols) of patches.
        virtual_frames: the most frames the sidecar describes, evenly spaced over the clip.
        config: how saliency is computed.
        name: what error messages call the clip.

    Raises:
        CodecError: the clip cannot be read to its last frame that is needed.
        ValueError: an empty grid, or less than one virtual frame.
    """
    with open_clip(source, name) as clip:
        source_codec = clip.codec
    indices = frame_indices(frame_count(source, name=name), virtual_frames)
    frames = sample(signals(source, name=name), indices)
    size, digest = _fingerprint(source)
    return Sidecar(
        saliency=np.rint(saliency(frames, grid, config=config) * 255).astype(np.uint8),
        frame_indices=indices.astype(np.int32),
        frame_types="".join(frame.type for frame in frames),
        height=frames[0].height,
        width=frames[0].width,
        source_codec=source_codec,
        source_bytes=size,
        source_sha256=digest,
        estimated=frames[0].estimated,
        config=config,
    )


def dumps(sidecar: Sidecar) -> bytes:
    """Serialise a sidecar; equal sidecars give equal bytes."""
    header = {
        "version": VERSION,
        "frame_types": sidecar.frame_types,
        "height": sidecar.height,
        "width": sidecar.width,
        "source_codec": sidecar.source_codec,
        "source_bytes": sidecar.source_bytes,
        "source_sha256": sidecar.source_sha256,
        "estimated": sidecar.estimated,
        "config": asdict(sidecar.config),
        "digest": _digest(sidecar.saliency, sidecar.frame_indices),
    }
    # A single entry: safetensors does not promise the order of several.
    metadata = {"sidecar": json.dumps(header, sort_keys=True)}
    tensors: dict[str, np.ndarray] = {
        "saliency": np.ascontiguousarray(sidecar.saliency),
        "frame_indices": np.ascontiguousarray(sidecar.frame_indices),
    }
    return save_tensors(tensors, metadata)


def loads(data: bytes, *, name: str = "sidecar") -> Sidecar:
    """Read what `dumps` wrote.

    Raises:
        CodecError: damaged or foreign bytes, or another version of the format; `name` is what the message calls them.
    """
    try:
        tensors = load_tensors(data)
        header = _header(data)
        if header["version"] != VERSION:
            raise CodecError(
                f"{name}: sidecar version {header['version']}, but this program reads {VERSION}: make the sidecar again"
            )
        sidecar = Sidecar(
            saliency=tensors["saliency"],
            frame_indices=tensors["frame_indices"],
            frame_types=header["frame_types"],
            height=header["height"],
            width=header["width"],
            source_codec=header["source_codec"],
            source_bytes=header["source_bytes"],
            source_sha256=header["source_sha256"],
            estimated=header["estimated"],
            config=SaliencyConfig(**header["config"]),
        )
        digest = header["digest"]
    except CodecError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CodecError(f"{name}: not a sidecar, or a damaged one: {error!r}") from error
    _check(sidecar, digest, name)
    return sidecar


def _header(data: bytes) -> dict[str, Any]:
    """The JSON under `sidecar` in a safetensors file: 8 bytes of length, then a JSON header."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["sidecar"])


def _check(sidecar: Sidecar, digest: str, name: str) -> None:
    maps, indices = sidecar.saliency, sidecar.frame_indices
    if maps.dtype != np.uint8 or maps.ndim != 3 or not maps.size or indices.dtype != np.int32 or indices.ndim != 1:
        raise CodecError(
            f"{name}: damaged: saliency is {maps.dtype} {maps.shape}, frame_indices {indices.dtype} {indices.shape}"
        )
    if not len(maps) == len(indices) == len(sidecar.frame_types):
        raise CodecError(
            f"{name}: damaged: {len(maps)} maps, {len(indices)} frame indices and {len(sidecar.frame_types)} frame types"
        )
    if digest != _digest(maps, indices):
        raise CodecError(f"{name}: damaged: its contents do not match their checksum")


def _digest(maps: npt.NDArray[np.uint8], indices: npt.NDArray[np.int32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(maps).tobytes() + np.ascontiguousarray(indices).tobytes()).hexdigest()[
        :16
    ]


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
