"""The frozen encoder: views in, tokens and pooled embeddings out. Other makers' encoders are `eval.other_encoders`'.

A bag of n patches goes into the Hugging Face model as one strip of n patches side by side, [3, p, n * p], with
`patch_positions` saying where each belongs: any number of patches of any frames, no padding, no special cases. The
patches of whole frames give the same tokens that way as the frames themselves.

Legend: B views, L patches of a view, D hidden size, p side of a patch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from megatron_ovenc.data.views import View
from onevision_encoder import OneVisionEncoderConfig, OneVisionEncoderImageProcessor, OneVisionEncoderModel

Precision: TypeAlias = Literal["fp32", "bf16"]
"""Type of an encoder's matrix work; `bf16` by autocast, weights staying as they are."""


class FrozenEncoder(Protocol):
    """What evaluations ask of an encoder."""

    fingerprint: str
    """Changes whenever what it computes does."""

    @property
    def kind(self) -> str:
        """Its `model_type`."""

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""

    @property
    def image_size(self) -> int:
        """Side in pixels that the model was tuned for."""

    @property
    def width(self) -> int:
        """D."""

    @property
    def takes_positions(self) -> bool:
        """Whether patches may be of any places and frames; if not, frames must be whole."""

    @property
    def frames_per_token(self) -> int:
        """Frames that one token covers: 1, or the depth of a tubelet."""

    def __call__(self, views: Sequence[View]) -> tuple[list[Tensor], Tensor]:
        """Tokens [L, D] of each view, and pooled embeddings [B, D]; float32 on the CPU."""


def load_encoder(directory: Path, device: torch.device, precision: Precision = "fp32") -> FrozenEncoder:
    """The encoder in a Hugging Face directory, of this project or of another maker; nothing is downloaded.

    Raises:
        ValueError: no such directory, or one of a model that is not known here.
    """
    if read_model_config(directory).get("model_type") == OneVisionEncoderConfig.model_type:
        return Encoder.load(directory, device, precision)
    from eval.other_encoders import load

    return load(directory, device, precision)


class Encoder:
    """An encoder of this project in inference mode."""

    takes_positions = True
    frames_per_token = 1
    kind = OneVisionEncoderConfig.model_type

    def __init__(
        self,
        model: OneVisionEncoderModel,
        *,
        device: torch.device,
        processor: OneVisionEncoderImageProcessor | None = None,
        fingerprint: str = "",
        precision: Precision = "fp32",
    ) -> None:
        """
        Args:
            model: its weights are not changed.
            device: where to compute.
            processor: whose mean and standard deviation normalise pixels; CLIP's by default.
            fingerprint: changes whenever the model does.
            precision: of matrix work.
        """
        processor = processor or OneVisionEncoderImageProcessor()
        self._model = model.to(device).eval()
        self._device = device
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (processor.image_mean, processor.image_std)
        )
        self._precision = precision
        self.fingerprint = f"{fingerprint} {precision}"

    @classmethod
    def load(cls, directory: Path, device: torch.device, precision: Precision = "fp32") -> Encoder:
        """Load a Hugging Face directory of this project or of the reference; nothing is downloaded.

        Raises:
            ValueError: no such directory, or one of another kind of model.
        """
        kind = read_model_config(directory).get("model_type")
        if kind != OneVisionEncoderConfig.model_type:
            raise ValueError(
                f"{directory} holds a model of type {kind!r}, not {OneVisionEncoderConfig.model_type!r}: "
                f"pack a checkpoint with tools.pack_model"
            )
        saved = (directory / "preprocessor_config.json").exists()
        return cls(
            OneVisionEncoderModel.from_pretrained(directory, local_files_only=True),
            device=device,
            processor=OneVisionEncoderImageProcessor.from_pretrained(directory) if saved else None,
            fingerprint=fingerprint(directory),
            precision=precision,
        )

    @property
    def patch_size(self) -> int:
        return self._model.config.patch_size

    @property
    def image_size(self) -> int:
        """Side in pixels that the model was tuned for."""
        return self._model.config.image_size

    @property
    def width(self) -> int:
        """D."""
        return self._model.config.hidden_size

    @torch.inference_mode()
    def __call__(self, views: Sequence[View]) -> tuple[list[Tensor], Tensor]:
        """Encode views of any lengths; equal lengths share a forward pass.

        Returns:
            Tokens [L, D] of each view, and pooled embeddings [B, D] (the mean of the tokens where the model has no head), both
            float32 on the CPU.
        """
        tokens: dict[int, Tensor] = {}
        pooled = torch.empty(len(views), self.width)
        for length in sorted({len(view.patches) for view in views}):
            rows = [row for row, view in enumerate(views) if len(view.patches) == length]
            patches = torch.from_numpy(np.stack([views[row].patches for row in rows])).to(self._device)
            positions = torch.from_numpy(np.stack([views[row].positions for row in rows])).to(self._device)
            with autocast(self._device, self._precision):
                output = self._model(pixel_values=self._strip(patches), patch_positions=positions)
            last, embedding = output.last_hidden_state.float(), output.pooler_output
            pooled[rows] = (last.mean(dim=1) if embedding is None else embedding.float()).cpu()
            tokens.update(zip(rows, last.cpu(), strict=True))
        return [tokens[row] for row in range(len(views))], pooled

    def _strip(self, patches: Tensor) -> Tensor:
        """uint8 [B, L, 3 * p * p] -> normalised [B, 3, p, L * p]."""
        p = self.patch_size
        strip = patches.unflatten(2, (3, p, p)).permute(0, 2, 3, 1, 4).flatten(3)
        return (strip.float() / 255 - self._mean) / self._std


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which an encoder computes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def read_model_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a Hugging Face directory.

    Raises:
        ValueError: there is none, or it is not JSON.
    """
    path = directory / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{directory} is not a Hugging Face model directory: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def fingerprint(directory: Path) -> str:
    """Changes whenever a file of the directory is written anew: a hash of names, sizes and times."""
    files = sorted(path for path in directory.iterdir() if path.suffix in (".json", ".safetensors", ".bin", ".py"))
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
