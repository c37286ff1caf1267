"""What the converters share: strict loading, and the forward comparison that each of them prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from megatron_ovenc.config import ConfigError
from megatron_ovenc.model import Encoder
from megatron_ovenc.train.weights import RELEASED_HEAD_DIM
from onevision_encoder import OneVisionEncoderModel


@torch.no_grad()
def largest_difference(encoder: Encoder, published: OneVisionEncoderModel, seed: int = 0) -> float:
    """Largest absolute difference, over tokens and embeddings, on random pictures and on a random clip with positions.

    Args:
        encoder: this project's encoder, fp32, on the host.
        published: the Hugging Face model, fp32, on the host.
        seed: of the random pixels and positions.
    """
    generator = torch.Generator().manual_seed(seed)
    patch, differences = encoder.config.patch_size, []
    for frames, rows, cols in ((1, 4, 6), (3, 4, 4)):
        pixels = torch.randn(2, 3, frames, rows * patch, cols * patch, generator=generator)
        positions = torch.cartesian_prod(*(torch.arange(n) for n in (frames, rows, cols))).repeat(2, 1, 1)
        if frames > 1:
            positions = torch.randint(0, 32, positions.shape, generator=generator)
        theirs = published.eval()(pixels if frames > 1 else pixels[:, :, 0], patch_positions=positions)
        cut = pixels.unflatten(-1, (cols, patch)).unflatten(-3, (rows, patch))  # [B, C, T, rows, p, cols, p]
        patches = cut.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(0, 3)
        lengths = torch.tensor([0, 1, 2], dtype=torch.int32) * (frames * rows * cols)
        ours = encoder.eval()(patches, positions.flatten(0, 1), lengths)
        differences.append((ours.last_hidden - theirs.last_hidden_state.flatten(0, 1)).abs().max())
        differences.append((ours.pooled - theirs.pooler_output).abs().max())
    return torch.stack(differences).max().item()


def load_strictly(model: OneVisionEncoderModel, published: Mapping[str, torch.Tensor], source: Path) -> None:
    """Load a published state dict; a tensor too many, too few or of another shape is a ConfigError naming `source`."""
    try:
        model.load_state_dict(published, strict=True)
    except RuntimeError as error:
        raise ConfigError(f"{source} does not make an encoder: {error}") from error


def tell_assumed_heads(source: Path, num_heads: int | None) -> None:
    """Say aloud what a bare state dict cannot tell."""
    if source.is_file() and num_heads is None:
        print(
            f"{source} does not record its attention heads; taking {RELEASED_HEAD_DIM} channels a head as in every "
            "released model (--num-heads overrides)",
            file=sys.stderr,
        )
