"""A small model and its reference weights, shared by the tests of the Hugging Face package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onevision_encoder import OneVisionEncoderConfig, OneVisionEncoderModel

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 8,
}


@pytest.fixture(scope="session")
def tiny_dir(golden: Path) -> Path:
    """The checkpoint that the reference wrote."""
    return golden / "tiny"


@pytest.fixture
def build() -> Callable[..., OneVisionEncoderModel]:
    """Builds a tiny model (2 blocks, 2 heads of 32, patches of 4 pixels) with seeded weights, in eval mode."""

    def make(attn_implementation: str = "sdpa", seed: int = 0, **fields: Any) -> OneVisionEncoderModel:
        torch.manual_seed(seed)
        config = OneVisionEncoderConfig(**(TINY | fields), attn_implementation=attn_implementation)
        model = OneVisionEncoderModel(config).eval()
        # Weights large enough that every part of the model shows in the output.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    return make


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape."""
    assert a.shape == b.shape
    return float((a.double() - b.double()).abs().max())
