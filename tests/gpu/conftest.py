"""Tests of this folder need a CUDA device, and skip without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megatron_ovenc.parallel.device import choose_device
from megatron_ovenc.parallel.topology import Topology


@pytest.fixture(scope="session")
def topology() -> Iterator[Topology]:
    """This process alone on the first GPU, over NCCL."""
    device = choose_device("auto", 0)
    if device.type != "cuda":
        pytest.skip("torch sees no CUDA device")
    from benchmarks.gpu_common import world

    torch.set_float32_matmul_precision("highest")
    with world(device) as topology:
        yield topology
