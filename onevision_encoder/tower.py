"""A vision tower for multimodal models: per-patch features of one layer, with positions, for any mixture of inputs.

    tower = OneVisionEncoderTower(OneVisionEncoderModel.from_pretrained("encoder/"), layer=-2)
    page = image_processor(scan, return_tensors="pt", do_center_crop=False)
    clip = video_processor("clip.mp4", return_tensors="pt")
    for features, positions in tower([page, clip]):        # [L, D] and [L, 3]: t, row, col; L differs from sample to sample
        ...

Samples of one length share a forward pass; none is padded, so a sample's features do not depend on its company.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .modeling_onevision_encoder import OneVisionEncoderModel
from .positions_onevision_encoder import resolve_positions


class PatchFeatures(NamedTuple):
    """What the tower says about one sample."""

    features: Tensor
    """[L, D], in the dtype of the model."""
    positions: Tensor
    """int64 [L, 3]: t, row, col of each patch."""


class OneVisionEncoderTower(nn.Module):
    """Per-patch features of a chosen layer.

    Args:
        model: the encoder; its weights are used as they are, and trained if the caller trains them.
        layer: which tokens: an index into the model's `hidden_states`, 0 being the input of the first block, -1 the output of the
            last block and -2 that of the one before, all without the final norm; None for `last_hidden_state`, with it.

    Raises:
        ValueError: the model has no such layer.
    """

    def __init__(self, model: OneVisionEncoderModel, layer: int | None = -2) -> None:
        super().__init__()
        states = model.config.num_hidden_layers + 1
        if layer is not None and not -states <= layer < states:
            raise ValueError(f"layer={layer}: the model has hidden states {-states} .. {states - 1}; pass one of them.")
        self.model = model
        self.layer = layer

    @property
    def hidden_size(self) -> int:
        """D, the width of a feature."""
        return self.model.config.hidden_size

    def forward(self, batches: Sequence[Mapping[str, Tensor]]) -> list[PatchFeatures]:
        """Features of every sample of every batch, in order.

        Args:
            batches: arguments of the model, as the processors make them: `pixel_values` of one or more images or videos, and where
                needed `visible_indices` or `patch_positions`. Sizes may differ from batch to batch.

        Raises:
            ValueError: as the model's `forward`.
        """
        samples = [sample for batch in batches for sample in self._samples(batch)]
        by_length: dict[int, list[int]] = {}
        for index, (patches, _) in enumerate(samples):
            by_length.setdefault(len(patches), []).append(index)
        found: dict[int, PatchFeatures] = {}
        for indices in by_length.values():
            patches, positions = (torch.stack(each) for each in zip(*(samples[i] for i in indices), strict=True))
            for index, features in zip(indices, self._encode(patches, positions), strict=True):
                found[index] = PatchFeatures(features, samples[index][1])
        return [found[index] for index in range(len(samples))]

    def _samples(self, batch: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Patches [L, C, p, p] and positions [L, 3] of each sample of a batch."""
        device, patch = self.model.device, self.model.config.patch_size
        pixels, visible, given = (batch.get(name) for name in ("pixel_values", "visible_indices", "patch_positions"))
        if pixels is None:
            raise ValueError(f"a batch has the keys {', '.join(batch) or 'none'}; it needs at least pixel_values.")
        self.model.check_pixels(pixels)
        positions, kept = resolve_positions(self.model.config, pixels, visible, given)
        if pixels.ndim == 4:
            pixels = pixels.unsqueeze(2)
        blocks = pixels.unfold(3, patch, patch).unfold(4, patch, patch)  # [B, C, T, h, w, p, p]
        patches = blocks.permute(0, 2, 3, 4, 1, 5, 6).flatten(1, 3)
        if kept is not None:
            patches = torch.stack([sample[indices] for sample, indices in zip(patches, kept, strict=True)])
        places = positions.to(device=device, dtype=torch.int64).expand(len(patches), -1, -1)
        return list(zip(patches.to(device), places, strict=True))

    def _encode(self, patches: Tensor, positions: Tensor) -> Tensor:
        """[B, L, C, p, p] and [B, L, 3] -> [B, L, D]. A strip of patches side by side gives the tokens of the frames themselves."""
        strip = patches.permute(0, 2, 3, 1, 4).flatten(3)  # [B, C, p, L * p]
        output = self.model(
            pixel_values=strip, patch_positions=positions, output_hidden_states=self.layer is not None, return_dict=True
        )
        return output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]
