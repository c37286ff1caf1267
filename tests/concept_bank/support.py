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
    grad_scalars: tuple[float, float] = (0.0, 0.0)
    """By the logarithm of the scale, and by the bias."""


def uneven_split(samples: int, ranks: int) -> list[int]:
    """Batch sizes that differ between ranks: the first gets what the others, with one sample less each, leave."""
    share = max(samples // ranks - 1, 0) if ranks > 1 else samples
    return [samples - share * (ranks - 1)] + [share] * (ranks - 1)


def make_bank(topology: Topology, case: Case) -> ConceptBank:
    bank = ConceptBank(case.config, dim=case.weight.shape[1], head="h", seed=5, topology=topology)
    bank.to(torch.from_numpy(case.weight).dtype)
    bank.weight.data.copy_(torch.from_numpy(case.weight[bank.lo : bank.hi]))
    if bank.log_scale is not None:
        bank.log_scale.data.fill_(np.log(case.config.logit_scale))  # to the digits of its new type
    return bank


def row_gradient(bank: ConceptBank) -> Tensor:
    """The gradient that backward left behind, as [R, D]."""
    assert bank.weight.grad is None
    assert bank.gradient is not None
    return bank.gradient.dense()


def run_on_rank(topology: Topology, cases: list[Case], sizes: list[list[int]]) -> list[Outcome]:
    """Loss and this rank's gradients of each case, whose samples are dealt out to data ranks as `sizes` says."""
    outcomes = []
    for case, split in zip(cases, sizes, strict=True):
        bank = make_bank(topology, case)
        own = slice(sum(split[: topology.data_rank]), sum(split[: topology.data_rank + 1]))
        embeddings = torch.from_numpy(case.embeddings[own]).requires_grad_()
        labels = torch.from_numpy(case.labels[own])
        loss = bank(embeddings, labels, step=case.step, batch_sizes=split if case.tell_sizes else None)
        loss.backward()
        grad_weight, grad_embeddings = row_gradient(bank), embeddings.grad
        scalars = tuple(
            0.0 if scalar is None or scalar.grad is None else scalar.grad.item()
            for scalar in (bank.log_scale, bank.bias)
        )
        outcomes.append(
            Outcome(
                loss=loss.item(),
                grad_weight=grad_weight.numpy(),
                grad_embeddings=grad_embeddings.numpy(),
                grad_scalars=scalars,
            )
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
            assert share.grad_scalars == shares[0].grad_scalars
            np.testing.assert_array_equal(share.grad_embeddings, shares[rank - rank % tensor].grad_embeddings)
        together.append(
            Outcome(
                loss=shares[0].loss,
                grad_weight=np.concatenate([share.grad_weight for share in shares]),
                grad_embeddings=np.concatenate([share.grad_embeddings for share in shares[::tensor]]),
                grad_scalars=shares[0].grad_scalars,
            )
        )
    return together


def slot_cost(
    cosines: Tensor, target: int, positives: set[int], weights: Tensor, scale: Tensor, config: BankConfig
) -> Tensor:
    """CosFace: cost of one label of one sample, from all its cosines [C] and how many rows each stands for."""
    threshold = config.filter_threshold if config.filter_threshold > 0 else 2.0
    logits = torch.where(cosines > threshold, torch.zeros_like(cosines), cosines)
    logits[target] = cosines[target] - config.margin
    weights = weights.clone()
    for positive in positives:
        weights[positive] = float(positive == target or config.co_positives == "negative")
    logits = scale * logits + weights.log()
    return torch.logsumexp(logits, 0) - logits[target]


def question_costs(
    cosines: Tensor, positives: set[int], weights: Tensor, scale: Tensor, bias: Tensor, config: BankConfig
) -> list[Tensor]:
    """Sigmoid: costs of one sample with labels."""
    threshold = config.filter_threshold if config.filter_threshold > 0 else 2.0
    asked = torch.tensor(sorted(positives))
    counted = weights * (cosines <= threshold)
    counted[asked] = 0
    yes = torch.log1p(torch.exp(-(scale * (cosines[asked] - config.margin) + bias)))
    no = counted * torch.log1p(torch.exp(scale * cosines + bias))
    return [yes.sum(), no.sum()]


def brute_force(case: Case, weights: Tensor | None = None) -> Outcome:
    """The definition: one rank, float64, every class of every sample, autograd.

    Args:
        weights: [C] how many rows each class stands for, 0 for those that do not compete; all 1 by default.
    """
    config = case.config
    weight = torch.from_numpy(case.weight).double().requires_grad_()
    embeddings = torch.from_numpy(case.embeddings).double().requires_grad_()
    log_scale = torch.tensor(config.logit_scale).double().log().requires_grad_()
    bias = torch.tensor(config.logit_bias).double().requires_grad_()
    cosines = (F.normalize(embeddings) @ F.normalize(weight).T).clamp(-1, 1)
    weights = torch.ones(len(weight)) if weights is None else weights
    costs, count = [cosines.sum().view(1)[0] * 0], 0
    for row, labels in zip(cosines, case.labels.tolist(), strict=True):
        named = [label for label in labels if label >= 0]
        count += len(named)
        if config.loss == "cosface":
            costs += [slot_cost(row, label, set(named), weights.double(), log_scale.exp(), config) for label in named]
        elif named:
            costs += question_costs(row, set(named), weights.double(), log_scale.exp(), bias, config)
    stacked = torch.stack(costs)
    factor = (case.labels.shape[1] if config.gradient == "sum" else 1) / max(count, 1)
    inputs = (weight, embeddings, log_scale, bias)
    gradients = torch.autograd.grad(stacked.sum() * factor, inputs, allow_unused=True, materialize_grads=True)
    learned = [config.learn_scale, config.learn_scale and config.loss == "sigmoid"]
    reported = stacked.clamp(max=CAP) if config.loss == "cosface" else stacked
    return Outcome(
        loss=reported.sum().item() / max(count, 1),
        grad_weight=gradients[0].numpy(),
        grad_embeddings=gradients[1].numpy(),
        grad_scalars=tuple(g.item() * on for g, on in zip(gradients[2:], learned, strict=True)),
    )


def assert_close(got: Outcome, wanted: Outcome, relative: float) -> None:
    """Loss, and gradients by the norm of their difference, to a relative tolerance."""
    assert abs(got.loss - wanted.loss) <= relative * max(abs(wanted.loss), 1e-30), (got.loss, wanted.loss)
    for name in ("grad_weight", "grad_embeddings"):
        mine, theirs = getattr(got, name), getattr(wanted, name)
        assert mine.shape == theirs.shape
        error = np.linalg.norm(mine - theirs)
        assert error <= relative * np.linalg.norm(theirs), f"{name}: {error} of {np.linalg.norm(theirs)}"
    mine, theirs = np.array(got.grad_scalars), np.array(wanted.grad_scalars)
    np.testing.assert_allclose(mine, theirs, rtol=relative * 100, atol=relative * np.linalg.norm(wanted.grad_weight))
