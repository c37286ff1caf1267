"""Pixels to tokens: normalisation on the device, then one linear map (the convolution of a ViT, on patches already cut)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics that CLIP, and every model that inherits its preprocessing, normalises by."""


class PatchEmbedding(torch.nn.Module):
    """Linear map of flattened patches without bias. Raw uint8 pixels are normalised here, so that 8 bits cross the bus."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.pixels = patch_size * patch_size
        # On the device with the weight: numbers sent from the host would make it wait for all that is queued.
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None], persistent=False)
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, 3 * self.pixels))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Embed.

        Args:
            patches: [N, 3 * patch * patch]; uint8 raw pixels or floats already normalised.

        Returns:
            [N, D] in the weight's type.
        """
        if patches.dtype == torch.uint8:
            patches = ((patches.float().unflatten(1, (3, self.pixels)) / 255 - self.mean) / self.std).flatten(1)
        return F.linear(patches.to(self.weight.dtype), self.weight)
