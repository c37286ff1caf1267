"""The tower: a sample's features do not depend on what else is in the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from onevision_encoder import OneVisionEncoderModel, OneVisionEncoderTower
from tests.onevision_encoder.conftest import largest_difference

Build = Callable[..., OneVisionEncoderModel]


def mixture() -> list[dict[str, Tensor]]:
    """Images and clips of several sizes (the odd ones drop pixels), positions given in every way, some lengths alike."""
    torch.manual_seed(0)
    return [
        {"pixel_values": torch.randn(2, 3, 8, 12)},
        {"pixel_values": torch.randn(1, 3, 13, 10)},
        {"pixel_values": torch.randn(2, 3, 2, 8, 8), "patch_positions": torch.randint(0, 64, (2, 8, 3))},
        {
            "pixel_values": torch.randn(2, 3, 4, 8, 8),
            "visible_indices": torch.tensor([[0, 2, 5, 7, 11, 13], [1, 2, 3, 4, 14, 15]]),
        },
        {
            "pixel_values": torch.randn(1, 3, 2, 8, 8),
            "visible_indices": torch.tensor([[0, 3, 9, 77, 78, 100, 101, 255]]),
        },
        {"pixel_values": torch.randn(1, 3, 3, 8, 8)},
    ]


def one_by_one(model: OneVisionEncoderModel, batch: Mapping[str, Tensor], layer: int | None) -> list[Tensor]:
    """The model itself, on one sample of the batch at a time."""
    features = []
    for row in range(len(batch["pixel_values"])):
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        output = model(**alone, output_hidden_states=True)
        features.append((output.last_hidden_state if layer is None else output.hidden_states[layer])[0])
    return features


@pytest.mark.parametrize("layer", [-2, -1, 0, None])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_mixed_batch_equals_one_by_one(build: Build, attn_implementation: str, layer: int | None) -> None:
    model, batches = build(attn_implementation), mixture()
    with torch.no_grad():
        found = OneVisionEncoderTower(model, layer)(batches)
        expected = [features for batch in batches for features in one_by_one(model, batch, layer)]
    assert [len(each.features) for each in found] == [6, 6, 6, 8, 8, 6, 6, 8, 12]
    for given, wanted in zip(found, expected, strict=True):
        assert largest_difference(given.features, wanted) < 1e-5


def test_positions(build: Build) -> None:
    batches = mixture()
    image, _, odd, clip, _, kept, _, repacked, _ = OneVisionEncoderTower(build())(batches)
    assert image.positions.tolist() == [[0, row, col] for row in range(2) for col in range(3)]
    assert odd.positions.tolist() == [[0, row, col] for row in range(3) for col in range(2)]
    assert torch.equal(clip.positions, batches[2]["patch_positions"][0])
    assert kept.positions[:3].tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert repacked.positions[-1].tolist() == [63, 1, 1]


def test_gradients_reach_the_model(build: Build) -> None:
    tower = OneVisionEncoderTower(build().train())
    sum(each.features.sum() for each in tower(mixture())).backward()
    assert float(tower.model.embeddings.patch_embedding.weight.grad.abs().sum()) > 0
    assert tower.hidden_size == 64


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"pixels": torch.zeros(1, 3, 8, 8)}, "keys pixels.*pixel_values"),
        ({"pixel_values": torch.zeros(3, 8, 8)}, r"shape \(3, 8, 8\)"),
        ({"pixel_values": torch.zeros(1, 3, 8, 8), "visible_indices": torch.tensor([[4]])}, "visible_indices"),
    ],
)
def test_wrong_batches_are_refused(build: Build, batch: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneVisionEncoderTower(build())([batch])


def test_wrong_layers_are_refused(build: Build) -> None:
    with pytest.raises(ValueError, match=r"layer=3.*-3 \.\. 2"):
        OneVisionEncoderTower(build(), layer=3)
