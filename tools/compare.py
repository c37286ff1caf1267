"""What the converters share: strict building, and the forward comparison that each of them prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from megatron_ovenc.config import ConfigError, ModelConfig
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.published import to_published_config
from megatron_ovenc.train.weights import RELEASED_HEAD_DIM
from onevision_encoder import OneVisionEncoderConfig, OneVisionEncoderModel

LARGEST_ROUNDING = 1e-3
"""Difference of outputs up to which two fp32 implementations of the largest released size may be called equal."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of weights that are read and written unchanged."""


def random_inputs(patch_size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A picture and a clip with scattered positions: `<case>.pixels` and `<case>.positions`, as Hugging Face models take them."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(6)).expand(2, -1, -1)
    return {
        "picture.pixels": torch.randn(2, 3, 4 * patch_size, 6 * patch_size, generator=generator),
        "picture.positions": picture.contiguous(),
        "clip.pixels": torch.randn(2, 3, 3, 4 * patch_size, 4 * patch_size, generator=generator),
        "clip.positions": torch.randint(0, 32, (2, 48, 3), generator=generator),
    }


@torch.no_grad()
def forward(encoder: Encoder, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs of this project's encoder for `random_inputs`: `<case>.tokens` [2, n, D] and `<case>.pooled` [2, D]."""
    outputs, patch = {}, encoder.config.patch_size
    for case in ("picture", "clip"):
        pixels, positions = inputs[f"{case}.pixels"], inputs[f"{case}.positions"]
        if pixels.dim() == 4:
            pixels = pixels[:, :, None]
        cut = pixels.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # [B, C, T, rows, p, cols, p]
        patches = cut.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(0, 3)
        samples, tokens = positions.shape[:2]
        lengths = torch.arange(samples + 1, dtype=torch.int32) * tokens
        output = encoder.eval()(patches, positions.flatten(0, 1), lengths)
        outputs[f"{case}.tokens"] = output.last_hidden.unflatten(0, (samples, tokens))
        outputs[f"{case}.pooled"] = output.pooled
    return outputs


@torch.no_grad()
def forward_published(model: OneVisionEncoderModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As `forward`, by the Hugging Face model."""
    outputs = {}
    for case in ("picture", "clip"):
        output = model.eval()(inputs[f"{case}.pixels"], patch_positions=inputs[f"{case}.positions"])
        outputs[f"{case}.tokens"], outputs[f"{case}.pooled"] = output.last_hidden_state, output.pooler_output
    return outputs


def largest_difference(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference over all outputs."""
    assert ours.keys() == theirs.keys()
    return max((ours[key] - theirs[key]).abs().max().item() for key in ours)


def published_model(
    model: ModelConfig, published: Mapping[str, torch.Tensor], source: Path, image_size: int = 448
) -> OneVisionEncoderModel:
    """The Hugging Face model of a published state dict, in the types of its tensors, which it takes over.

    Raises:
        ConfigError: the sizes make no encoder, or a tensor is too many, too few, of another shape or no float of 16 or 32 bits.
    """
    try:
        config = OneVisionEncoderConfig(**to_published_config(model), image_size=image_size)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{source} does not make an encoder: {error}") from error
    with torch.device("meta"):
        made = OneVisionEncoderModel(config)
    if problems := _differences(made.state_dict(), published):
        more = f"; and {len(problems) - 3} more such tensors" if problems[3:] else ""
        raise ConfigError(f"{source} does not make an encoder: {'; '.join(problems[:3])}{more}")
    made.load_state_dict(published, strict=True, assign=True)
    return made.eval()


def _differences(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[str]:
    """How tensors differ from what a model has, a phrase each."""
    problems = [f"`{name}` is missing" for name in wanted.keys() - given.keys()]
    problems += [f"`{name}` is no tensor of it" for name in given.keys() - wanted.keys()]
    for name in wanted.keys() & given.keys():
        shape, expected = tuple(given[name].shape), tuple(wanted[name].shape)
        if shape != expected:
            problems.append(f"`{name}` has shape {shape} instead of {expected}")
        elif given[name].dtype not in DTYPES:
            problems.append(f"`{name}` is {given[name].dtype}, not {', '.join(map(str, DTYPES))}")
    return sorted(problems)


def tell_assumed_heads(source: Path, num_heads: int | None) -> None:
    """Say aloud what a bare state dict cannot tell."""
    if source.suffix in (".pt", ".pth") and num_heads is None:
        print(
            f"{source} does not record its attention heads; taking {RELEASED_HEAD_DIM} channels a head as in every "
            "released model (--num-heads overrides)",
            file=sys.stderr,
        )
