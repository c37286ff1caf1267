"""Configuration: defaults, reading the reference's file, and errors that name the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from onevision_encoder import OneVisionEncoderConfig, OneVisionEncoderModel


def test_defaults_are_the_large_model() -> None:
    config = OneVisionEncoderConfig()
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (1024, 4096, 24)
    assert (config.num_attention_heads, config.head_dim, config.patch_size, config.image_size) == (16, 64, 14, 448)
    assert (config.hidden_act, config.layer_norm_eps, config.layer_norm_type) == ("gelu", 1e-6, "layer_norm")
    assert (config.rope_type, config.rope_theta, config.rope_temporal_size) == ("reference", 10000.0, 64)
    assert (config.attention_dropout, config.initializer_range, config.use_head) == (0.0, 0.02, True)


def test_reads_the_file_of_the_reference(tiny_dir: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_dir)
    assert type(config) is OneVisionEncoderConfig
    assert (config.hidden_size, config.num_attention_heads, config.image_size) == (128, 4, 56)
    assert config.rope_type == "reference"


def test_every_field_survives_saving(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 100,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_channels": 1,
        "image_size": 32,
        "patch_size": 8,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-5,
        "layer_norm_type": "rms_norm",
        "attention_dropout": 0.1,
        "initializer_range": 0.01,
        "rope_theta": 100.0,
        "rope_type": "rotation",
        "rope_temporal_size": None,
        "use_head": False,
    }
    OneVisionEncoderConfig(**fields).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_size": 100}, "hidden_size=100"),
        ({"hidden_size": 256, "num_attention_heads": 16}, "multiple of 32"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"intermediate_size": -1}, "intermediate_size=-1"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_channels": 0}, "num_channels=0"),
        ({"image_size": 0}, "image_size=0"),
        ({"patch_size": True}, "patch_size=True"),
        ({"rope_temporal_size": 0}, "rope_temporal_size=0"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ({"initializer_range": -0.02}, "initializer_range"),
        ({"attention_dropout": 1.0}, "attention_dropout"),
        ({"layer_norm_type": "rmsnorm"}, "layer_norm_type='rmsnorm'.*rms_norm"),
        ({"rope_type": "interleaved"}, "rope_type='interleaved'.*rotation"),
        ({"hidden_act": "geluu"}, "hidden_act='geluu'"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        OneVisionEncoderConfig(**fields)


def test_overrides_while_loading_are_checked_too(tiny_dir: Path) -> None:
    with pytest.raises(ValueError, match="rope_type='rotatoin'"):
        OneVisionEncoderModel.from_pretrained(tiny_dir, rope_type="rotatoin")
