"""The frozen encoder: views in, tokens and pooled embeddings out.

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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_ovenc.data.views import View
from onevision_encoder import OneVisionEncoderConfig, OneVisionEncoderImageProcessor, OneVisionEncoderModel


class Encoder:
    """An encoder in inference mode."""

    def __init__(
        self,
        model: OneVisionEncoderModel,
        *,
        device: torch.device,
        processor: OneVisionEncoderImageProcessor | None = None,
        fingerprint: str = "",
    ) -> None:
        """
        Args:
            model: its weights are not changed.
            device: where to compute.
            processor: whose mean and standard deviation normalise pixels; CLIP's by default.
            fingerprint: changes whenever the model does.
        """
        processor = processor or OneVisionEncoderImageProcessor()
        self._model = model.to(device).eval()
        self._device = device
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (processor.image_mean, processor.image_std)
        )
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> Encoder:
        """Load a Hugging Face directory of this project or of the reference; nothing is downloaded.

        Raises:
            ValueError: no such directory, or one of another kind of model.
        """
        kind = read_model_config(directory).get("model_type")
        if kind != OneVisionEncoderConfig.model_type:
            raise ValueError(
                f"{directory} holds a model of type {kind!r}; this evaluation reads {OneVisionEncoderConfig.model_type!r}: "
                f"pack a checkpoint with tools.pack_model"
            )
        saved = (directory / "preprocessor_config.json").exists()
        return cls(
            OneVisionEncoderModel.from_pretrained(directory, local_files_only=True),
            device=device,
            processor=OneVisionEncoderImageProcessor.from_pretrained(directory) if saved else None,
            fingerprint=fingerprint(directory),
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
