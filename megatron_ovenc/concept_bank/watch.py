"""A closer look at a bank now and then: are its centres used, apart from each other, and hard enough to tell from the right ones?

    numbers = look(bank, embeddings, labels, step=draw)     # collective; a pass of its own over the competing rows

Reads rows as they are: one that `optimizer: rows` left for later is looked at without what it still misses.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_ovenc.concept_bank.bank import ConceptBank
from megatron_ovenc.concept_bank.chunks import NORM_EPS, Problem, chunks, row_statistics
from megatron_ovenc.concept_bank.objectives import CosFace
from megatron_ovenc.concept_bank.sampling import Competitors, draw_key, scramble

PROBES = 64
"""Centres that are compared with all others to estimate how many have a twin."""
TWIN_COSINE = 0.95
"""Centres at least this alike count as duplicates."""


@torch.no_grad()
def look(bank: ConceptBank, embeddings: Tensor, labels: Tensor, *, step: int) -> dict[str, float]:
    """Numbers about a bank and a batch. Collective over the world; waits for the device.

    Args:
        embeddings: float [B, D] of this data rank.
        labels: int64 [B, K].
        step: the draw whose competing rows are looked at.

    Returns:
        positive_cosine: mean over labels;
        hardest_negative_cosine: mean over samples of the largest that the filter leaves in;
        filtered_share: share of (sample, negative) pairs that the filter takes out;
        effective_negatives: mean over samples of exp(entropy) of the softmax over negatives: how many share its mass (those
            that the filter takes out included, at the logit 0 that it gives them); 0 where there are none;
        used_share: share of centres that some sample has named since training began; the rest are dead so far;
        use_evenness: exp(entropy) of how often centres were named, as a share of all: 1 when all are named alike;
        duplicate_share: share of centres with another at least TWIN_COSINE alike, estimated from PROBES of them.
    """
    batch = bank.gather_batch(embeddings, labels)
    units = batch.way.gather(batch.local)
    among = bank.competitors(batch.labels, step)
    scale, bias = bank.scale_and_bias()
    # A softmax with its first moment, whatever the bank's own loss is.
    objective = CosFace(replace(bank.config, loss="cosface", learn_scale=True))
    problem = Problem(
        units=units,
        weight=bank.weight,
        among=Competitors(rows=among.rows, places=among.places),
        objective=objective,
        scale=scale,
        bias=bias,
    )
    group = bank.topology.world_group
    seen, positives = objective.reduce(*row_statistics(problem), group=group)
    mean_logit = seen.tilt / seen.mass.clamp(min=torch.finfo(seen.mass.dtype).tiny)
    entropy = torch.where(seen.mass > 0, objective.level(seen) - mean_logit, -torch.inf)
    hardest, filtered, pairs = _negatives(problem)
    dist.all_reduce(hardest, op=dist.ReduceOp.MAX, group=group)  # over the WORLD: every rank saw its own rows
    counts = torch.stack([filtered, pairs])
    dist.all_reduce(counts, group=group)
    valid = batch.labels >= 0
    used, evenness = _use(bank)
    return {
        "positive_cosine": (positives * valid).sum().item() / max(int(valid.sum()), 1),
        "hardest_negative_cosine": hardest.mean().item(),
        "filtered_share": (counts[0] / counts[1].clamp(min=1)).item(),
        "effective_negatives": entropy.exp().mean().item(),
        "used_share": used,
        "use_evenness": evenness,
        "duplicate_share": _duplicates(bank, step),
    }


@torch.no_grad()
def snapshot(bank: ConceptBank, embeddings: Tensor, labels: Tensor, most: int = 256) -> dict[str, Tensor]:
    """What a picture of a bank is drawn from. Collective over the world.

    Returns:
        `embeddings` float32 [n, D] of length 1, n <= `most` samples that have a label; `labels` int64 [n], the first of each;
        `centres` float32 [m, D] of length 1, of the classes `classes` int64 [m] that these name.
    """
    batch = bank.gather_batch(embeddings, labels)
    labelled = (batch.labels >= 0).any(dim=1).nonzero().squeeze(1)[:most]
    named = batch.labels[labelled]
    first = named.gather(1, (named >= 0).int().argmax(dim=1, keepdim=True)).squeeze(1)
    classes = first.unique()
    return {
        "embeddings": batch.way.gather(batch.local)[labelled].float().cpu(),
        "labels": first.cpu(),
        "centres": _centres(bank, classes).float().cpu(),
        "classes": classes.cpu(),
    }


def _negatives(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's hardest unfiltered negative's cosine [N], its filtered pairs and its pairs of sample and negative."""
    threshold = problem.objective.config.filter_threshold or math.inf
    hardest = problem.units.new_full((len(problem.units),), -1.0)
    filtered, pairs = hardest.new_zeros(()), hardest.new_zeros(())
    for chunk in chunks(problem):
        cosines = problem.units @ chunk.units.T
        bound = torch.where(chunk.here, -torch.inf, torch.inf).to(cosines.dtype)
        cosines.scatter_reduce_(1, chunk.column, bound, "amin")
        if chunk.padding is not None:
            cosines.masked_fill_(chunk.padding, -torch.inf)
        pairs += (cosines > -torch.inf).sum()
        over = cosines > threshold
        filtered += over.sum()
        hardest = torch.maximum(hardest, cosines.masked_fill_(over, -1).amax(dim=1))
    return hardest, filtered, pairs


def _use(bank: ConceptBank) -> tuple[float, float]:
    """Share of centres ever named, and how evenly."""
    uses = bank.uses.double()
    sums = torch.stack([(uses > 0).sum().double(), uses.sum(), torch.special.xlogy(uses, uses).sum()])
    dist.all_reduce(sums, group=bank.topology.world_group)  # over the WORLD: every rank counts its own rows
    used, total, weighted = sums.tolist()
    entropy = math.log(total) - weighted / total if total else -math.inf
    return used / bank.config.num_classes, math.exp(entropy) / bank.config.num_classes


def _duplicates(bank: ConceptBank, step: int) -> float:
    """Share of some centres, others at every step, that have a twin."""
    key = draw_key(bank.seed, bank.head, "probes", step)
    device = bank.weight.device
    probes = (scramble(torch.arange(PROBES, device=device), key) % bank.config.num_classes).unique()
    units = _centres(bank, probes)
    places = torch.where((probes >= bank.lo) & (probes < bank.hi), probes - bank.lo, -1)[:, None]
    everyone = Problem(
        units=units,
        weight=bank.weight,
        among=Competitors(rows=None, places=places),
        objective=CosFace(replace(bank.config, filter_threshold=0.0)),
        scale=units.new_ones(()),
        bias=units.new_zeros(()),
    )
    nearest, _, _ = _negatives(everyone)  # a probe's only positive is itself
    dist.all_reduce(
        nearest, op=dist.ReduceOp.MAX, group=bank.topology.world_group
    )  # over the WORLD: its twin may be anywhere
    return (nearest >= TWIN_COSINE).double().mean().item()


def _centres(bank: ConceptBank, classes: Tensor) -> Tensor:
    """Unit centres [m, D] of some classes, on every rank. Collective."""
    local = (classes >= bank.lo) & (classes < bank.hi)
    rows = torch.zeros(len(classes), bank.dim, dtype=bank.weight.dtype, device=bank.weight.device)
    rows[local] = bank.weight[classes[local] - bank.lo]
    dist.all_reduce(rows, group=bank.topology.world_group)  # over the WORLD: each row is on one rank
    return F.normalize(rows, dim=1, eps=NORM_EPS)
