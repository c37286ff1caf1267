"""What the concept bank's tests share: the loss written down slot by slot in float64, and a bank run on real ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ovenc.concept_bank import ConceptBank
from megatron_ovenc.config.tree import BankConfig
from megatron_ovenc.parallel.topology import Topology

LAYOUTS = [(1, 1), (2, 1), (2, 2), (3, 1), (4, 1), (4, 2)]
"""(world, tensor) of the ranks that tests run on."""

CAP = -np.log(1e-30)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A global batch and a bank."""

    config: BankConfig
    weight: np.ndarray
    embeddings: np.ndarray
    labels: np.ndarray
    tell_sizes: bool = True
    step: int = 3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Loss and gradients, of a rank's share or put together."""

    loss: float
    grad_weight: np.ndarray
    grad_embeddings: np.ndarray


def uneven_split(samples: int, ranks: int) -> list[int]:
    """Batch sizes that differ between ranks: the first gets what the others, with one sample less each, leave."""
    share = max(samples // ranks - 1, 0) if ranks > 1 else samples
    return [samples - share * (ranks - 1)] + [share] * (ranks - 1)


def make_bank(topology: Topology, case: Case) -> ConceptBank:
    bank = ConceptBank(case.config, dim=case.weight.shape[1], head="h", seed=5, topology=topology)
    bank.to(torch.from_numpy(case.weight).dtype)
    bank.weight.data.copy_(torch.from_numpy(case.weight[bank.lo : bank.hi]))
    return bank


def run_on_rank(topology: Topology, cases: list[Case], sizes: list[list[int]]) -> list[Outcome]:
    """Loss and this rank's gradients of each case, whose samples are dealt out to data ranks as `sizes` says."""
    outcomes = []
    for case, split in zip(cases, sizes, strict=True):
        bank = make_bank(topology, case)
        own = slice(sum(split[: topology.data_rank]), sum(split[: topology.data_rank + 1]))
        embeddings = torch.from_numpy(case.embeddings[own]).requires_grad_()
        labels = torch.from_numpy(case.labels[own])
        loss = bank(embeddings, labels, step=case.step, batch_sizes=split if case.tell_sizes else None)
        grad_weight, grad_embeddings = torch.autograd.grad(loss, (bank.weight, embeddings))
        outcomes.append(
            Outcome(loss=loss.item(), grad_weight=grad_weight.numpy(), grad_embeddings=grad_embeddings.numpy())
        )
    return outcomes


def run_cases(rank_pool, cases: list[Case], world: int, tensor: int, sizes: list[list[int]] | None = None):
    """Run on real ranks and put the shares together; ranks that must agree are checked to."""
    data = world // tensor
    sizes = sizes or [uneven_split(len(case.labels), data) for case in cases]
    by_rank = rank_pool.run(run_on_rank, world=world, tensor=tensor, args=(cases, sizes))
    together = []
    for shares in zip(*by_rank, strict=True):
        for rank, share in enumerate(shares):
            assert share.loss == shares[0].loss
            np.testing.assert_array_equal(share.grad_embeddings, shares[rank - rank % tensor].grad_embeddings)
        together.append(
            Outcome(
                loss=shares[0].loss,
                grad_weight=np.concatenate([share.grad_weight for share in shares]),
                grad_embeddings=np.concatenate([share.grad_embeddings for share in shares[::tensor]]),
            )
        )
    return together


def slot_cost(cosines: Tensor, target: int, positives: set[int], competing: Tensor, config: BankConfig) -> Tensor:
    """Cost of one label of one sample, from all its cosines [C]."""
    threshold = config.filter_threshold if config.filter_threshold > 0 else 2.0
    logits = torch.where(cosines > threshold, torch.zeros_like(cosines), cosines)
    logits[target] = cosines[target] - config.margin
    included = competing.clone()
    for positive in positives:
        included[positive] = positive == target or config.co_positives == "negative"
    logits = config.logit_scale * logits
    return torch.logsumexp(logits[included], 0) - logits[target]


def brute_force(case: Case, competing: Tensor | None = None) -> Outcome:
    """The definition: one rank, float64, a softmax for each label, autograd."""
    config = case.config
    weight = torch.from_numpy(case.weight).double().requires_grad_()
    embeddings = torch.from_numpy(case.embeddings).double().requires_grad_()
    cosines = (F.normalize(embeddings) @ F.normalize(weight).T).clamp(-1, 1)
    if competing is None:
        competing = torch.ones(len(weight), dtype=torch.bool)
    costs = []
    for row, labels in zip(cosines, case.labels.tolist(), strict=True):
        positives = {label for label in labels if label >= 0}
        costs += [slot_cost(row, label, positives, competing, config) for label in labels if label >= 0]
    stacked = torch.stack(costs) if costs else cosines.sum().view(1) * 0
    factor = case.labels.shape[1] if config.gradient == "sum" else 1
    grad_weight, grad_embeddings = torch.autograd.grad(stacked.mean() * factor, (weight, embeddings))
    return Outcome(
        loss=stacked.clamp(max=CAP).mean().item(),
        grad_weight=grad_weight.numpy(),
        grad_embeddings=grad_embeddings.numpy(),
    )


def assert_close(got: Outcome, wanted: Outcome, relative: float) -> None:
    """Loss, and gradients by the norm of their difference, to a relative tolerance."""
    assert abs(got.loss - wanted.loss) <= relative * max(abs(wanted.loss), 1e-30), (got.loss, wanted.loss)
    for name in ("grad_weight", "grad_embeddings"):
        mine, theirs = getattr(got, name), getattr(wanted, name)
        assert mine.shape == theirs.shape
        error = np.linalg.norm(mine - theirs)
        assert error <= relative * np.linalg.norm(theirs), f"{name}: {error} of {np.linalg.norm(theirs)}"
