"""Nearest neighbours among embeddings that lie on many ranks: each searches its own, the main rank merges what they found.

No rank ever holds more than its share of the training samples, some queries, and k candidates a query of every rank. Ranks meet
for every few queries, so that none of them waits for long and each can say that it is alive.

Legend: Q queries, N training samples, n of a rank, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from eval.knn import TEMPERATURE
from megatron_ovenc.parallel.topology import Topology

_MOST_QUERIES = 256
"""Of a meeting: 20 candidates of each on 1024 ranks are 63 MB."""
_COSINES = 2**25
"""That a rank computes at a time."""


class Share(NamedTuple):
    """The samples of a data set that this rank has embedded; every sample is at most one rank's."""

    rows: Tensor
    """int64 [n]: their places in the data set."""
    vectors: Tensor
    """float32 [n, D], of length 1, on the host."""


def shared_votes(
    train: Share,
    labels: Tensor,
    queries: Share,
    *,
    counts: tuple[int, int],
    classes: int,
    k: int,
    topology: Topology,
    alive: Callable[[], None],
) -> np.ndarray | None:
    """Votes float32 [Q, classes] as `eval.knn.neighbour_votes` gives on the main rank, None on the others. Collective.

    Args:
        train: this rank's training samples.
        labels: int64 [n], theirs.
        queries: this rank's queries; one that no rank has gets votes that mean nothing.
        counts: samples of both data sets, N and Q.
        classes: number of them.
        k: neighbours; at most the training samples of all ranks together.
        topology: the ranks. Training samples are searched on its device.
        alive: called before each meeting.
    """
    vectors, own_labels = train.vectors.to(topology.device), labels.to(topology.device)
    votes = torch.zeros(counts[1], classes) if topology.is_main else None
    # The same on all ranks, whatever share of their samples can be read.
    step = max(1, min(_MOST_QUERIES, _COSINES // -(-counts[0] // topology.data)))
    for start in range(0, counts[1], step):
        alive()
        asked = _asked(queries, range(start, min(start + step, counts[1])), topology)
        candidates = _nearest(asked.to(topology.device), vectors, own_labels, k)
        everyone = [_gather(part.cpu(), topology) for part in candidates]
        if votes is not None:
            cosines, whose = (torch.cat(parts, dim=1) for parts in everyone)
            best, places = cosines.topk(k, dim=1)
            votes[start : start + step].scatter_add_(1, whose.gather(1, places), ((best - 1) / TEMPERATURE).exp())
    return None if votes is None else votes.numpy()


def _asked(queries: Share, rows: range, topology: Topology) -> Tensor:
    """The queries of these rows, float32 [len(rows), D], on every rank; zeros for those that no rank has."""
    asked = torch.zeros(len(rows), queries.vectors.shape[1])
    mine = (queries.rows >= rows.start) & (queries.rows < rows.stop)
    asked[queries.rows[mine] - rows.start] = queries.vectors[mine]
    dist.all_reduce(asked, group=topology.host_group)  # over all ranks, on the host: each row is one rank's
    return asked


def _nearest(asked: Tensor, vectors: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and labels [len(asked), k] of the nearest of `vectors`; -inf where there are fewer than k."""
    values, places = (asked @ vectors.T).topk(min(k, len(vectors)), dim=1)
    missing = (0, k - values.shape[1])
    return (
        torch.nn.functional.pad(values, missing, value=-torch.inf),
        torch.nn.functional.pad(labels[places], missing),
    )


def _gather(part: Tensor, topology: Topology) -> list[Tensor]:
    """Every rank's, on the main rank; nothing on the others."""
    parts = [torch.empty_like(part) for _ in range(topology.world)] if topology.is_main else None
    dist.gather(part, parts, dst=0, group=topology.host_group)  # over all ranks, on the host, to the one that counts
    return parts or []
