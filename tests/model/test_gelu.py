"""Both activations are those of the published model that the configuration describes."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from megatron_ovenc.config import ConfigError, ModelConfig, ParallelConfig
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts
from megatron_ovenc.model.published import from_published_config, published_values, to_published_config
from megatron_ovenc.parallel.topology import Topology
from onevision_encoder import OneVisionEncoderConfig, OneVisionEncoderModel
from tests.rank_pool import RankPool
from tests.train.sources import image_patches

MODEL = {"hidden_size": 64, "ffn_size": 128, "num_layers": 2, "num_heads": 2}


def distance(topology: Topology, ours: Literal["erf", "tanh"], theirs: Literal["erf", "tanh"]) -> float:
    """Relative distance of embeddings between our encoder and the published model, with the same weights."""
    torch.manual_seed(0)
    model = ModelConfig(**MODEL, gelu=ours)  # type: ignore[arg-type]
    published = OneVisionEncoderModel(
        OneVisionEncoderConfig(**to_published_config(ModelConfig(**MODEL, gelu=theirs)))  # type: ignore[arg-type]
    )
    weights = {name: 10 * p if p.dim() > 1 and "probe" not in name else p for name, p in published.named_parameters()}
    published.load_state_dict({name: p.detach() for name, p in weights.items()}, strict=False)
    encoder = Encoder(model, ParallelConfig(), topology)
    values = published_values(published.state_dict(), model, "test")
    fill_parameters(encoder, parameter_layouts(encoder, topology), topology, values)
    pixels = torch.randn(2, 3, 28, 42)
    patches, positions = image_patches(pixels, 14)
    with torch.no_grad():
        pooled = encoder(patches, positions, torch.tensor([0, 6, 12], dtype=torch.int32)).pooled
        expected = published(pixels).pooler_output
        return ((pooled - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_outputs_are_the_published_models(rank_pool: RankPool, gelu: str) -> None:
    other = "tanh" if gelu == "erf" else "erf"
    assert rank_pool.run(distance, world=1, args=(gelu, gelu))[0] < 1e-5
    assert rank_pool.run(distance, world=1, args=(gelu, other))[0] > 1e-4, "the test sees the difference"


def test_published_configuration_says_which() -> None:
    for gelu, name in (("erf", "gelu"), ("tanh", "gelu_pytorch_tanh")):
        published = to_published_config(ModelConfig(gelu=gelu))  # type: ignore[arg-type]
        assert published["hidden_act"] == name
        assert from_published_config(published, "x").gelu == gelu
    with pytest.raises(
        ConfigError, match=r"x has hidden_act=relu; this encoder supports gelu and gelu_pytorch_tanh only"
    ):
        from_published_config({"hidden_act": "relu"}, "x")
