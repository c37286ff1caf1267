"""The model against outputs of the reference implementation: 1e-5 absolute in fp32."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from onevision_encoder import OneVisionEncoderConfig, OneVisionEncoderModel
from tests.onevision_encoder.conftest import TINY, largest_difference

INPUTS = ("pixel_values", "visible_indices", "patch_positions")
# Published to five decimals, hence the rounding on top of the 1e-5.
VECTOR_TOLERANCE = 1.5e-5


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", ["image", "image_native", "video", "codec"])
def test_golden_outputs(tiny_dir: Path, case: str, attn_implementation: str) -> None:
    tensors = load_file(tiny_dir / "cases.safetensors")
    case_tensors = {name.removeprefix(f"{case}."): t for name, t in tensors.items() if name.startswith(f"{case}.")}
    inputs = {name: case_tensors.pop(name) for name in INPUTS if name in case_tensors}
    model = OneVisionEncoderModel.from_pretrained(tiny_dir, attn_implementation=attn_implementation)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)

    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    compared = {
        "last_hidden_state": output.last_hidden_state,
        "pooler_output": output.pooler_output,
        "hidden_states.0": output.hidden_states[0],
        "hidden_states.1": output.hidden_states[1],
    }
    assert compared.keys() == case_tensors.keys()
    for name, ours in compared.items():
        assert largest_difference(ours, case_tensors[name]) <= 1e-5, name


def test_state_dict_has_the_names_and_shapes_of_the_reference(tiny_dir: Path) -> None:
    theirs = load_file(tiny_dir / "model.safetensors")
    ours = OneVisionEncoderModel(OneVisionEncoderConfig.from_pretrained(tiny_dir)).state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


@pytest.mark.parametrize(
    ("fields", "parameters", "tensors"),
    [
        ({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}, 92_595_456, 207),
        ({}, 315_509_760, 399),
        ({"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}, 650_110_720, 527),
    ],
    ids=["base", "large", "huge"],
)  # fmt: skip
def test_sizes_of_the_published_models(fields: dict[str, Any], parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        model = OneVisionEncoderModel(OneVisionEncoderConfig(**fields))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors


def sine_model(**fields: Any) -> OneVisionEncoderModel:
    """The model whose weights are given by a formula rather than by a file."""
    model = OneVisionEncoderModel(OneVisionEncoderConfig(**TINY, **fields, attn_implementation="eager")).eval()
    state = model.state_dict()
    assert len(state) == 47
    for k, name in enumerate(sorted(state)):
        i = torch.arange(state[name].numel(), dtype=torch.float64)
        values = (0.08 * torch.sin(0.7 * i + 1.3 * k)).float()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values *= 6
        if name.endswith("weight") and "norm" in name:
            values += 1
        state[name].copy_(values.view(state[name].shape))
    return model


def cosine_pixels(*shape: int) -> Tensor:
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.cos(0.05 * n + 0.002 * n**1.5).float().view(shape)


CLIP = (1, 3, 4, 8, 8)
SPARSE = [[1, 6, 7, 12]]
REPACKED = [[0, 3, 5, 17, 40, 41, 63, 100, 120, 121, 130, 160, 200, 201, 230, 255]]
POSITIONS = [[[3 * j, j // 4, j % 4] for j in range(16)]]
# Shape, inputs, then of last_hidden_state the first and last token's first four channels and the mean magnitude, and
# of pooler_output the first four channels and the mean magnitude.
VECTORS: dict[str, tuple] = {
    "A image": (
        (1, 3, 8, 12), {},
        [-0.33839, 0.52097, -1.39462, -0.04061], [-1.79925, 0.22055, 0.40201, -1.70120], 0.82490,
        [-0.00863, -0.30376, 0.09522, 0.19554], 0.24454,
    ),
    "B video": (
        CLIP, {},
        [0.65677, -1.27927, -0.45890, 0.50344], [0.11321, 0.03751, -1.38677, 0.35209], 0.83693,
        [-0.00114, -0.32637, 0.09669, 0.23267], 0.25635,
    ),
    "C kept patches": (
        CLIP, {"visible_indices": SPARSE},
        [0.51194, -1.52831, 0.01118, 0.23841], [0.52852, -1.52258, -0.02852, 0.23309], 0.81438,
        [0.01388, -0.36166, 0.09792, 0.28697], 0.27662,
    ),
    "D repacked patches": (
        CLIP, {"visible_indices": REPACKED},
        [0.67462, -1.26599, -0.43225, 0.52748], [0.14359, 0.05821, -1.38753, 0.33258], 0.83792,
        [0.00257, -0.33638, 0.09709, 0.24859], 0.26177,
    ),
    "E positions": (
        CLIP, {"patch_positions": POSITIONS},
        [0.67576, -1.27055, -0.42581, 0.54698], [0.10428, 0.01909, -1.39852, 0.33112], 0.83676,
        [-0.00157, -0.32495, 0.09664, 0.23035], 0.25564,
    ),
}  # fmt: skip


def summarise(model: OneVisionEncoderModel, shape: tuple[int, ...], inputs: dict[str, list]) -> Tensor:
    with torch.no_grad():
        output = model(cosine_pixels(*shape), **{name: torch.tensor(value) for name, value in inputs.items()})
    last, pooled = output.last_hidden_state, output.pooler_output
    means = torch.stack([last.abs().mean(), pooled.abs().mean()])
    return torch.cat([last[0, 0, :4], last[0, -1, :4], means[:1], pooled[0, :4], means[1:]])


@pytest.mark.parametrize("case", VECTORS)
def test_vectors_of_formula_weights(case: str) -> None:
    shape, inputs, first, last, magnitude, pooled, pooled_magnitude = VECTORS[case]
    expected = torch.tensor([*first, *last, magnitude, *pooled, pooled_magnitude])
    assert largest_difference(summarise(sine_model(), shape, inputs), expected) <= VECTOR_TOLERANCE


def test_true_rotation_is_another_model() -> None:
    shape, inputs, *_ = VECTORS["E positions"]
    reference, rotation = (summarise(sine_model(rope_type=kind), shape, inputs) for kind in ("reference", "rotation"))
    assert largest_difference(reference, rotation) > 1e-3
