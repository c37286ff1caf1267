"""Feature spaces that samples can be clustered in, by the name that `--features` takes.

    descriptor    training-free (tools.bank.descriptors)
    hf:DIR        pooled embeddings of a Hugging Face vision model in DIR; of clips, of several evenly spaced frames, their mean or
                  one after the other. Our own encoder sees all frames at once and gives one embedding.

A space has two halves: `prepare` turns one stored file into an array or a view, in a decoding process; `finish` turns a batch
of these into vectors, where the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from eval.views import UniformFrames, uniform_frames
from megatron_ovenc.data.images import image_pixels
from megatron_ovenc.data.views import View, whole
from tools.bank.descriptors import CLIP_WIDTH, PICTURE_WIDTH, clip_descriptor, picture_descriptor

DESCRIPTOR = "descriptor"
HUGGING_FACE = "hf:"
DESCRIPTOR_VERSION = 1
"""Raised whenever descriptors of the same file change, so that old features are not continued with new ones."""

Kind: TypeAlias = Literal["image", "video"]
Pool: TypeAlias = Literal["mean", "concat"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpace:
    """How samples become vectors."""

    identity: str
    """Changes whenever the vectors of the same files would."""
    width: int
    """F."""
    prepare: Callable[[bytes], Any]
    """A file's content -> what `finish` takes; picklable; raises BadSample."""
    finish: Callable[[Sequence[Any]], np.ndarray]
    """Prepared samples -> float [B, F]; runs in the main process."""


def open_space(
    name: str, kind: Kind, *, frames: int, size: int | None, device: str, pool: Pool = "mean"
) -> FeatureSpace:
    """Make a feature space ready.

    Args:
        name: `descriptor` or `hf:DIR`.
        kind: what the samples are.
        frames: frames of a clip that a model sees.
        size: side in pixels that a model sees; None takes the model's own.
        device: auto, cpu or cuda, for models.
        pool: how the features of a clip's frames become one vector, for models of single pictures.

    Raises:
        ValueError: an unknown name, a directory without a usable model, or `concat` for what has one vector a sample.
    """
    if name == DESCRIPTOR:
        _check_pool(pool, kind, "descriptors describe a sample as a whole")
        width, describe = (PICTURE_WIDTH, picture_descriptor) if kind == "image" else (CLIP_WIDTH, clip_descriptor)
        identity = f"{DESCRIPTOR} {DESCRIPTOR_VERSION} {kind}"
        return FeatureSpace(identity=identity, width=width, prepare=describe, finish=np.stack)
    if not name.startswith(HUGGING_FACE):
        raise ValueError(f"--features is {name!r}; give {DESCRIPTOR} or {HUGGING_FACE}DIRECTORY")
    if frames < 1 or (size is not None and size < 1):
        raise ValueError(f"--frames is {frames} and --size is {size}; both must be at least 1")
    # Torch is imported no earlier: descriptors and decoding processes do without.
    from eval.encoder import fingerprint, read_model_config
    from megatron_ovenc.parallel.device import choose_device
    from onevision_encoder import OneVisionEncoderConfig

    directory = Path(name.removeprefix(HUGGING_FACE))
    ours = read_model_config(directory).get("model_type") == OneVisionEncoderConfig.model_type
    if ours:
        _check_pool(pool, kind, "this encoder embeds all frames of a clip at once")
        prepare, finish, width, side = _our_model(directory, kind, frames, size, choose_device(device, 0))
    else:
        _check_pool(pool, kind, None)
        prepare, finish, width, side = _any_model(directory, kind, frames, size, choose_device(device, 0), pool)
    identity = f"{directory.absolute()} {fingerprint(directory)} {kind} frames={frames} size={side} pool={pool}"
    return FeatureSpace(identity=identity, width=width, prepare=prepare, finish=finish)


def _check_pool(pool: Pool, kind: Kind, objection: str | None) -> None:
    objection = "a picture is one frame" if kind == "image" else objection
    if pool == "concat" and objection:
        raise ValueError(f"--pool is concat, but {objection}; leave it out")


_Model: TypeAlias = tuple[Callable[[bytes], Any], Callable[[Sequence[Any]], np.ndarray], int, int]
"""prepare, finish, width and side of the pictures"""


def _our_model(directory: Path, kind: Kind, frames: int, size: int | None, device: Any) -> _Model:
    from eval.encoder import Encoder

    encoder = Encoder.load(directory, device)
    side = size or encoder.image_size
    # Also checks that the side is a multiple of the patch.
    clip_view = UniformFrames(size=side, patch_size=encoder.patch_size, frames=frames)
    prepare = clip_view if kind == "video" else partial(_picture_view, size=side, patch_size=encoder.patch_size)
    return prepare, lambda views: encoder(views)[1].numpy(), encoder.width, side


def _any_model(directory: Path, kind: Kind, frames: int, size: int | None, device: Any, pool: Pool) -> _Model:
    from tools.bank.frame_encoder import FrameEncoder

    encoder = FrameEncoder.load(directory, device, size)
    if kind == "video":
        prepare = partial(_clip_pixels, count=frames, size=encoder.size)
        if pool == "concat":
            return prepare, encoder.concatenated, frames * encoder.width, encoder.size
        return prepare, encoder, encoder.width, encoder.size
    return partial(_picture_pixels, size=encoder.size), encoder, encoder.width, encoder.size


def _picture_view(content: bytes, size: int, patch_size: int) -> View:
    return whole(_picture_pixels(content, size), patch_size)


def _picture_pixels(content: bytes, size: int) -> np.ndarray:
    return image_pixels(content, size, None)[None]


def _clip_pixels(content: bytes, count: int, size: int) -> np.ndarray:
    return uniform_frames(content, count, size)[0]
