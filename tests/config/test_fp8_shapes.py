"""Shapes that FP8 products refuse are named before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ovenc.config import PRESETS, Fp8Config, ModelConfig, ParallelConfig
from megatron_ovenc.config.fp8_shapes import fp8_problems, token_multiple


def problems(model: dict[str, Any], parallel: dict[str, Any] | None = None, **fp8: Any) -> list[str]:
    return list(fp8_problems(ModelConfig(**model), ParallelConfig(**(parallel or {}), fp8=Fp8Config(**fp8))))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tensor", [1, 2])
def test_released_sizes_fit(preset: str, tensor: int) -> None:
    assert problems({**PRESETS[preset], "layers": "fp8_torch"}, {"tensor": tensor}) == []
    te = {**PRESETS[preset], "layers": "te"}
    for recipe in ("tensorwise", "delayed", "mxfp8", "auto"):
        assert problems(te, {"tensor": tensor, "precision": "bf16"}, recipe=recipe) == []


@pytest.mark.parametrize(
    ("model", "parallel", "fp8", "message"),
    [
        ({"layers": "sdpa"}, {}, {"recipe": "tensorwise"}, "no effect with model.layers=sdpa"),
        ({"layers": "sdpa"}, {}, {"first_last_bf16": 1}, "no effect with model.layers=sdpa"),
        ({"layers": "fp8_torch"}, {}, {"recipe": "mxfp8"}, "not one that model.layers=fp8_torch knows"),
        ({"layers": "te"}, {}, {}, "set parallel.precision=bf16"),
        ({"layers": "te"}, {"precision": "bf16"}, {"first_last_bf16": 2}, "no effect without parallel.fp8.recipe"),
        ({"layers": "fp8_torch"}, {}, {"first_last_bf16": 13}, "half of model.num_layers=24"),
        ({"layers": "fp8_torch"}, {}, {"first_last_bf16": -1}, "half of model.num_layers=24"),
        (
            {"layers": "te"},
            {"precision": "bf16"},
            {"recipe": "delayed", "first_last_bf16": 1},
            "delayed cannot leave blocks out",
        ),
        (
            {"layers": "fp8_torch", "ffn_size": 4100},
            {"tensor": 2},
            {},
            r"model.ffn_size / parallel.tensor = 2050 is no multiple of 16, .*change model.ffn_size or parallel.tensor$",
        ),
        (
            {"layers": "te", "ffn_size": 4112},
            {"precision": "bf16"},
            {"recipe": "mxfp8"},
            r"model.ffn_size / parallel.tensor = 4112 is no multiple of 32",
        ),
        (
            {**PRESETS["base"], "layers": "te"},
            {"tensor": 4, "precision": "bf16"},
            {"recipe": "blockwise"},
            r"model.hidden_size / parallel.tensor = 192 is no multiple of 128.*change model.hidden_size or parallel.tensor, or",
        ),
        (
            {**PRESETS["base"], "layers": "te"},
            {"tensor": 4, "precision": "bf16"},
            {"recipe": "blockwise"},
            r"3 x model.hidden_size / parallel.tensor = 576",
        ),
    ],
)
def test_what_does_not_fit_is_named(model: dict, parallel: dict, fp8: dict, message: str) -> None:
    import re

    assert any(re.search(message, problem) for problem in problems(model, parallel, **fp8)), problems(
        model, parallel, **fp8
    )


@pytest.mark.parametrize(
    ("layers", "parallel", "recipe", "expected"),
    [
        ("sdpa", {}, None, 1),
        ("sdpa", {"tensor": 4, "sequence_parallel": True}, None, 4),
        ("fp8_torch", {"tensor": 2, "sequence_parallel": True}, None, 2),
        ("te", {}, None, 1),
        ("te", {}, "tensorwise", 16),
        ("te", {"tensor": 2}, "mxfp8", 32),
        ("te", {"tensor": 2, "sequence_parallel": True}, "blockwise", 256),
    ],
)
def test_tokens_that_a_batch_is_filled_up_to(layers: Any, parallel: dict, recipe: Any, expected: int) -> None:
    config = ParallelConfig(**parallel, fp8=Fp8Config(recipe=recipe))
    assert token_multiple(ModelConfig(layers=layers), config) == expected
