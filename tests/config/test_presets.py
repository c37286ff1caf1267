"""The released sizes, by parameter count."""

from __future__ import annotations

import pytest
import torch

from megatron_ovenc.config import PRESETS, ModelConfig, ParallelConfig
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.parallel.topology import Topology
from tests.rank_pool import RankPool


def count(topology: Topology, name: str) -> int:
    with torch.device("meta"):
        encoder = Encoder(ModelConfig(**PRESETS[name]), ParallelConfig(), topology)
    return sum(parameter.numel() for parameter in encoder.parameters())


@pytest.mark.parametrize(("name", "parameters"), [("base", 92_595_456), ("large", 315_509_760), ("huge", 650_110_720)])
def test_parameter_counts(rank_pool: RankPool, name: str, parameters: int) -> None:
    assert rank_pool.run(count, world=1, args=(name,)) == [parameters]
