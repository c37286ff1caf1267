"""Recorded inputs of the reference as packed batches; see tests/fixtures/README.md."""

from __future__ import annotations

from collections.abc import Mapping

import torch

CASES = ("image", "image_native", "video", "codec")


def golden_batch(
    cases: Mapping[str, torch.Tensor], case: str, patch: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A recorded input as packed patches, positions and lengths."""
    pixels = cases[f"{case}.pixel_values"]
    if pixels.dim() == 4:
        pixels = pixels[:, :, None]
    batch, _, frames, height, width = pixels.shape
    rows, cols = height // patch, width // patch
    cut = pixels.unflatten(-1, (cols, patch)).unflatten(-3, (rows, patch)).permute(0, 2, 3, 5, 1, 4, 6)
    patches = cut.flatten(4).flatten(1, 3)  # [B, frames * rows * cols, 3 * patch^2]
    positions = torch.cartesian_prod(*(torch.arange(n) for n in (frames, rows, cols))).expand(batch, -1, -1)
    if f"{case}.patch_positions" in cases:
        positions = cases[f"{case}.patch_positions"]
    if f"{case}.visible_indices" in cases:
        visible = cases[f"{case}.visible_indices"].long()[..., None]
        patches = patches.gather(1, visible.expand(-1, -1, patches.shape[2]))
        positions = positions.gather(1, visible.expand(-1, -1, 3))
    lengths = torch.arange(batch + 1, dtype=torch.int32) * patches.shape[1]
    return patches.flatten(0, 1), positions.flatten(0, 1), lengths
