"""This project's encoder in a process of its own, for tools that have no launcher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from megatron_ovenc.config import ModelConfig, ParallelConfig
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts
from megatron_ovenc.model.published import published_values
from megatron_ovenc.parallel.device import prepare_device
from megatron_ovenc.parallel.topology import Topology, build_topology


@contextmanager
def solo_topology() -> Iterator[Topology]:
    """A world of this process alone on the CPU, for tools."""
    device = torch.device("cpu")
    prepare_device(device)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield build_topology(1, 0, 1, device)
    finally:
        dist.destroy_process_group()


def build_encoder(model: ModelConfig, published: dict[str, torch.Tensor], source: str, topology: Topology) -> Encoder:
    """This project's encoder with published weights, unsharded, on the host."""
    # Other layers hold the same weights, but want a GPU or round.
    encoder = Encoder(replace(model, layers="sdpa"), ParallelConfig(), topology)
    layouts = parameter_layouts(encoder, topology)
    fill_parameters(encoder, layouts, topology, published_values(published, model, source))
    return encoder
