"""Any vision model of transformers as a feature extractor: frame by frame, averaged over a clip or concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.other_encoders import load_vision_model, pooled_output


class FrameEncoder:
    """A frozen image model; of one that also reads text (CLIP, SigLIP), the vision half."""

    def __init__(
        self, model: torch.nn.Module, *, size: int, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> None:
        """
        Args:
            model: takes `pixel_values` [B, 3, size, size].
            size: side of its pictures.
            mean, std: per channel, of pixels in 0..1.
            device: where to compute.

        Raises:
            ValueError: the model does not take such pictures.
        """
        self._model = model.to(device).eval()
        self._device = device
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))
        self.size = size
        try:
            self.width = int(self([np.zeros((1, size, size, 3), np.uint8)]).shape[1])
        except (TypeError, RuntimeError, ValueError, AttributeError) as error:
            raise ValueError(f"the model cannot encode a picture of {size} x {size} pixels: {error}") from error

    @classmethod
    def load(cls, directory: Path, device: torch.device, size: int | None) -> FrameEncoder:
        """Load from a directory; nothing is downloaded, and no code from it is run.

        Args:
            directory: as `save_pretrained` writes it; normalisation is its preprocessor's, or else CLIP's.
            device: where to compute.
            size: side of the pictures; None takes what the configuration says, or else 224.

        Raises:
            ValueError: transformers cannot load it, or it is no vision model.
        """
        vision = load_vision_model(directory)
        return cls(
            vision.model,
            size=size or vision.image_size,
            mean=vision.mean,
            std=vision.std,
            device=device,
        )

    def __call__(self, samples: Sequence[np.ndarray]) -> np.ndarray:
        """Embed samples uint8 [T, size, size, 3] of any T >= 1: float32 [B, F], the mean over the frames."""
        parts = self._frames(samples).split([len(sample) for sample in samples])
        return torch.stack([part.mean(dim=0) for part in parts]).numpy()

    def concatenated(self, samples: Sequence[np.ndarray]) -> np.ndarray:
        """Embed samples uint8 [T, size, size, 3] of one T: float32 [B, T * F], the frames' unit vectors one after the other."""
        return torch.nn.functional.normalize(self._frames(samples), dim=1).view(len(samples), -1).numpy()

    @torch.inference_mode()
    def _frames(self, samples: Sequence[np.ndarray]) -> Tensor:
        """Of all frames of all samples: float32 [frames, F]."""
        pixels = torch.from_numpy(np.concatenate(samples)).to(self._device).permute(0, 3, 1, 2)
        output = self._model(pixel_values=(pixels.float() / 255 - self._mean) / self._std)
        return pooled_output(output).float().cpu()
