"""Votes of neighbours that lie on many ranks are those of neighbours in one place, and no rank is silent for long."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch

from eval import shared_knn
from eval.knn import neighbour_votes, unit
from eval.shared_knn import Share, shared_votes
from megatron_ovenc.parallel.topology import Topology
from tests.rank_pool import RankPool

CLASSES, WIDTH = 3, 8


def data(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, WIDTH)).astype(np.float32), rng.integers(0, CLASSES, count)


def share(vectors: np.ndarray, topology: Topology, lost: tuple[int, ...]) -> Share:
    """Every n-th sample but for those that cannot be read; tensor ranks but the first have none."""
    rows = [row for row in range(len(vectors)) if row % topology.data == topology.data_rank and row not in lost]
    rows = rows if topology.tensor_rank == 0 else []
    return Share(torch.tensor(rows, dtype=torch.int64), torch.from_numpy(unit(vectors[rows])))


def on_ranks(
    topology: Topology, sizes: tuple[int, int], lost: tuple[int, ...], k: int
) -> tuple[np.ndarray | None, int]:
    beats: list[int] = []
    train, labels = data(sizes[0], 0)
    mine = share(train, topology, lost)
    queries = share(data(sizes[1], 1)[0], topology, ())
    with patch.object(shared_knn, "_MOST_QUERIES", 4):
        votes = shared_votes(
            mine,
            torch.from_numpy(labels)[mine.rows],
            queries,
            counts=sizes,
            classes=CLASSES,
            k=k,
            topology=topology,
            alive=lambda: beats.append(1),
        )
    return votes, len(beats)


@pytest.mark.parametrize(("world", "tensor"), [(1, 1), (3, 1), (4, 2)])
@pytest.mark.parametrize("sizes", [(20, 11), (2, 3)])
def test_ranks_find_what_one_finds(rank_pool: RankPool, world: int, tensor: int, sizes: tuple[int, int]) -> None:
    """Also where ranks have fewer samples than k, or none."""
    lost, k = (0,), min(5, sizes[0] - 1)
    (votes, beats), *others = rank_pool.run(on_ranks, world=world, tensor=tensor, args=(sizes, lost, k))
    (train, labels), (val, _) = data(sizes[0], 0), data(sizes[1], 1)
    kept = np.arange(sizes[0]) != 0
    expected = neighbour_votes(train[kept], labels[kept], val, classes=CLASSES, k=k)
    np.testing.assert_allclose(votes, expected, rtol=1e-4, atol=1e-9)
    # All ranks meet for every four queries: the main one does not compute while the others wait.
    assert beats == -(-sizes[1] // 4)
    assert all(found == (None, beats) for found in others)
