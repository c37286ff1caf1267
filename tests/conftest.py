"""Fixtures shared by all rooms: golden files, real ranks, one thread a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.rank_pool import RankPool

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Triton reads this when kernels are defined: without a GPU they run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Outputs of the reference implementation; see tests/fixtures/README.md."""
    return Path(__file__).parent / "fixtures" / "golden"


@pytest.fixture(scope="session")
def rank_pool() -> Iterator[RankPool]:
    """Four gloo ranks that outlive a single test."""
    pool = RankPool(4)
    yield pool
    pool.close()
