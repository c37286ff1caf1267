"""Other makers' encoders, so that the same command probes them on the same frames: what transformers knows under FAMILIES.

An image encoder sees each frame by itself; a fixed sine of the frame's number is added to its tokens, because a probe would else
not know their order. Only tokens of patches are handed out (no class or register tokens), so that budgets are equal: frames x
patches of a frame. A video encoder sees the whole clip; a token of its covers `tubelet_size` frames, so that a budget buys as many
times more frames.

Legend: B clips, F frames, n patches of a frame, S side of a frame, D width.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from eval.encoder import Precision, autocast, fingerprint, read_model_config
from megatron_ovenc.data.views import View

Forward: TypeAlias = Callable[["OtherEncoder", Tensor], tuple[Tensor, Tensor]]
"""Normalised frames [B, F, 3, S, S] -> tokens of patches [B, tokens, D] and pooled [B, D]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionModel:
    """The vision half of a model from transformers, and what it wants its pixels to be."""

    model: torch.nn.Module
    config: Any
    mean: Sequence[float]
    std: Sequence[float]

    @property
    def image_size(self) -> int:
        """Side of its pictures; 224 where it takes any."""
        size = getattr(self.config, "image_size", None) or getattr(self.config, "crop_size", None) or 224
        return size if isinstance(size, int) else size[0]


def load_vision_model(directory: Path) -> VisionModel:
    """Load from a directory; nothing is downloaded, and no code from it is run.

    Args:
        directory: as `save_pretrained` writes it; normalisation is its preprocessor's, or else CLIP's.

    Raises:
        ValueError: transformers cannot load it.
    """
    try:
        model = AutoModel.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ValueError(f"{directory} cannot be loaded by transformers: {error}") from error
    processor: dict[str, Any] = {}
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (directory / name).exists():
            processor |= json.loads((directory / name).read_text(encoding="utf-8"))
    vision = getattr(model, "vision_model", model)
    return VisionModel(
        model=vision,
        config=getattr(model.config, "vision_config", model.config),
        mean=processor.get("image_mean", OPENAI_CLIP_MEAN),
        std=processor.get("image_std", OPENAI_CLIP_STD),
    )


class OtherEncoder:
    """An encoder of another maker in inference mode; see `eval.encoder.FrozenEncoder`."""

    takes_positions = False

    def __init__(
        self,
        vision: VisionModel,
        *,
        kind: str,
        device: torch.device,
        fingerprint: str = "",
        precision: Precision = "fp32",
    ) -> None:
        """
        Args:
            vision: its weights are not changed.
            kind: a key of FAMILIES.
            device: where to compute.
            fingerprint: changes whenever the model does.
            precision: of matrix work.
        """
        self.kind = kind
        self.model = vision.model.to(device).eval()
        self.config = vision.config
        self.image_size = vision.image_size
        self._device, self._precision = device, precision
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (vision.mean, vision.std)
        )
        self.fingerprint = f"{fingerprint} {precision}"

    @property
    def patch_size(self) -> int:
        return self.config.patch_size

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @property
    def frames_per_token(self) -> int:
        return getattr(self.config, "tubelet_size", 1)

    @torch.inference_mode()
    def __call__(self, views: Sequence[View]) -> tuple[list[Tensor], Tensor]:
        """Encode views of whole frames, all of one size and number."""
        pixels = torch.stack([self._frames(view) for view in views])
        try:
            with autocast(self._device, self._precision):
                tokens, pooled = FAMILIES[self.kind](self, pixels)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                f"the {self.kind} model cannot encode {pixels.shape[1]} frames of {pixels.shape[-1]} x {pixels.shape[-1]} pixels "
                f"(it was made for {self.image_size}; see --size): {error}"
            ) from error
        return list(tokens.float().cpu()), pooled.float().cpu()

    def _frames(self, view: View) -> Tensor:
        """Patches in raster order -> normalised [F, 3, S, S]."""
        p, side = self.patch_size, int(view.positions[:, 1].max()) + 1
        patches = torch.from_numpy(np.ascontiguousarray(view.patches)).to(self._device)
        frames = patches.view(-1, side, side, 3, p, p).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return (frames.float() / 255 - self._mean) / self._std


def load(directory: Path, device: torch.device, precision: Precision = "fp32") -> OtherEncoder:
    """The encoder in a directory.

    Raises:
        ValueError: a family that is not known here, or transformers cannot load it.
    """
    kind = str(read_model_config(directory).get("model_type"))
    if kind not in FAMILIES:
        raise ValueError(
            f"{directory} holds a model of type {kind!r}; evaluations know this project's and {', '.join(FAMILIES)}"
        )
    vision = load_vision_model(directory)
    return OtherEncoder(vision, kind=kind, device=device, fingerprint=fingerprint(directory), precision=precision)


def frame_by_frame(encoder: OtherEncoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Of models that take pictures [B, 3, S, S]."""
    size = {}
    if pixels.shape[-1] != encoder.image_size and "interpolate_pos_encoding" in _parameters(encoder.model):
        size = {"interpolate_pos_encoding": True}
    return _assembled(encoder, encoder.model(pixel_values=pixels.flatten(0, 1), **size), pixels)


def patch_by_patch(encoder: OtherEncoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Of SigLIP 2 with native aspect ratios, which takes patches, channels last."""
    flat, p = pixels.flatten(0, 1), encoder.patch_size
    side = flat.shape[-1] // p
    patches = flat.unflatten(3, (side, p)).unflatten(2, (side, p)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=flat.device)
    shapes = torch.tensor([[side, side]], device=flat.device).expand(len(flat), 2)
    output = encoder.model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)
    return _assembled(encoder, output, pixels)


def whole_clip(encoder: OtherEncoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Of V-JEPA 2, which takes clips [B, F, 3, S, S]; a picture is shown as a clip that stands still."""
    depth = encoder.frames_per_token
    if missing := -pixels.shape[1] % depth:
        pixels = torch.cat([pixels, pixels[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    tokens = encoder.model(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
    return tokens, tokens.mean(dim=1)


FAMILIES: Mapping[str, Forward] = {
    "clip": frame_by_frame,
    "clip_vision_model": frame_by_frame,
    "metaclip_2": frame_by_frame,
    "siglip": frame_by_frame,
    "siglip_vision_model": frame_by_frame,
    "siglip2": patch_by_patch,
    "siglip2_vision_model": patch_by_patch,
    "dinov2": frame_by_frame,
    "dinov2_with_registers": frame_by_frame,
    "dinov3_vit": frame_by_frame,
    "aimv2": frame_by_frame,
    "aimv2_vision_model": frame_by_frame,
    "vjepa2": whole_clip,
}
"""How to call a model, by the `model_type` of its configuration. SigLIP 2 of fixed size calls itself `siglip`."""


def _assembled(encoder: OtherEncoder, output: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of patches with the time of their frame, and the mean of the frames' pooled embeddings."""
    clips, frames = pixels.shape[:2]
    count = (pixels.shape[-1] // encoder.patch_size) ** 2
    # Class and register tokens come first in all of these families.
    tokens = output.last_hidden_state[:, -count:].unflatten(0, (clips, frames))
    pooled = pooled_output(output).unflatten(0, (clips, frames)).mean(dim=1)
    times = frame_times(frames, tokens.shape[-1]).to(tokens.device)
    return (tokens + times[:, None]).flatten(1, 2), pooled


def frame_times(frames: int, width: int) -> Tensor:
    """float32 [F, D]: sine and cosine in turn of the frame's number, at wavelengths from 2 pi up to 10000 times that.

    One frame has no order: zeros.
    """
    if frames == 1:
        return torch.zeros(1, width)
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(frames)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


def pooled_output(output: Any) -> Tensor:
    """One vector a picture: what the model pools, or the mean of its tokens or feature map."""
    pooled = getattr(output, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    last = output.last_hidden_state
    return last.mean(dim=1) if last.ndim == 3 else last.flatten(2).mean(dim=2)


def _parameters(model: torch.nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters
