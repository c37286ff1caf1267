"""CosFace over a bank whose rows are split over all ranks, for K positives a sample at the price of one.

With z the cosines of a sample to the centres, s the logit scale, m the margin, P the sample's set of positives (distinct
classes of its labels) and z~ = z, or 0 where z exceeds the filter's threshold, the label y_k of slot k costs

    T_k = log( sum over j not in P of exp(s z~_j)                          negatives: the same sum in all K slots
             + sum over i in P, i != y_k of exp(s z~_i)                    co_positives = negative only
             + exp(s (z_k - m)) ) - s (z_k - m)

(CosFace: Wang et al., arXiv 1801.09414; the filter and the role of the other positives: the released training code of
OneVision-Encoder.) A class that a sample names twice counts once in the sums, and each of its slots has its cost.

The reported loss is the mean of min(T_k, -log 1e-30) over all labels of the global batch that are not -1; a sample
without any contributes nothing, and a batch without any costs 0. The gradient is that of the mean of T_k (`mean`) or K
times that (`sum`); it knows no cap, and a filtered cosine has none.

Each rank passes over its own rows (`chunks.py`); three numbers a sample and K cosines then go round the world, and what
remains is closed form on [N, K], the same on every rank. Autograd keeps O(N K + N D) numbers and the list of sampled
rows, never a logit.

Shapes: N samples of the global batch, K labels a sample, D width, R rows of this rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ovenc.concept_bank.chunks import row_gradients, row_statistics
from megatron_ovenc.concept_bank.sampling import Competitors
from megatron_ovenc.config.tree import BankConfig

REPORT_CAP = -math.log(1e-30)
"""Largest cost of a label in the reported loss, as the reference has it (it floors probabilities at 1e-30)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotTerms:
    """The closed form: each slot's cost, and what the backward pass needs instead of logits."""

    costs: Tensor
    """[N, K] T_k, 0 for the label -1."""
    log_share: Tensor
    """[N]: a negative's logit plus this is the log of its probability summed over the slots; -inf without labels."""
    pulls: Tensor
    """[N, K]: d(sum of costs) / d(s z) of each positive, in the first slot that names it, 0 in the others."""


def slot_terms(positives: Tensor, negatives: Tensor, labels: Tensor, config: BankConfig) -> SlotTerms:
    """Costs and derivatives of all slots.

    Args:
        positives: [N, K] cosines of the labels.
        negatives: [N] logsumexp of the negatives' logits, -inf where there are none.
        labels: int64 [N, K], -1 for none.
    """
    valid = labels >= 0
    same = labels[:, :, None] == labels[:, None, :]
    first = valid & ~same.tril(-1).any(dim=2)
    target = config.logit_scale * (positives - config.margin)
    filtered = (positives > config.filter_threshold) & (config.filter_threshold > 0)
    rivals = config.logit_scale * positives.masked_fill(filtered, 0)
    # [n, k, i]: the logit of slot i's class in the softmax of slot k.
    rivals = rivals[:, None, :].masked_fill(same | ~first[:, None, :], -torch.inf)
    if config.co_positives == "ignore":
        rivals = torch.full_like(rivals, -torch.inf)
    everyone = torch.cat([rivals, negatives[:, None, None].expand_as(target[:, :, None]), target[:, :, None]], dim=2)
    log_sum = everyone.logsumexp(dim=2).masked_fill(~valid, torch.inf)  # exp(x - inf) = 0: no label, no share
    costs = torch.where(valid, log_sum - target, 0)
    times = same.sum(dim=2)
    pull = times * torch.expm1(-costs)
    push = (rivals - log_sum[:, :, None]).exp().sum(dim=1).masked_fill(filtered, 0)
    return SlotTerms(
        costs=costs,
        log_share=(-log_sum).logsumexp(dim=1),
        pulls=torch.where(first, pull + push, 0),
    )


class MarginSoftmax(torch.autograd.Function):
    """The loss as a function of unit embeddings and this rank's rows. Collective over `world_group`, forward only.

    Forward arguments:
        units: [N, D] embeddings of length 1, the same on every rank.
        weight: [R, D] this rank's centres, of any length.
        labels: int64 [N, K], -1 for none, the same on every rank.
        among: which of this rank's rows compete, and where the labels are among them.
        config: margin, filter, scale, reductions and chunk size.
        world_group: all ranks that own rows of the bank.

    Returns:
        Scalar, the reported loss. Backward gives the gradient of the whole loss with respect to `weight`, and this
        rank's part of that with respect to `units`, to be summed over the ranks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        units: Tensor,
        weight: Tensor,
        labels: Tensor,
        among: Competitors,
        config: BankConfig,
        world_group: dist.ProcessGroup,
    ) -> Tensor:
        top, mass, positives = row_statistics(units, weight, among, config)
        highest = top.clone()
        # Over the WORLD: every rank holds a slice of the classes.
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=world_group)
        mass = mass * (top - highest).exp()
        sums = torch.cat([mass[:, None], positives], dim=1)
        # Over the WORLD: negatives are spread over the ranks, and each label's cosine is on the one that owns its row.
        dist.all_reduce(sums, group=world_group)
        mass, positives = sums[:, 0], sums[:, 1:]
        terms = slot_terms(positives, highest + mass.log(), labels, config)
        count = (labels >= 0).sum().clamp(min=1)
        ctx.save_for_backward(units, weight, among.rows, among.places, terms.log_share, terms.pulls, count)
        ctx.config = config
        return terms.costs.clamp(max=REPORT_CAP).sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        units, weight, rows, places, log_share, pulls, count = ctx.saved_tensors
        config = ctx.config
        slots = places.shape[1] if config.gradient == "sum" else 1
        grad_units, grad_weight = row_gradients(
            units,
            weight,
            Competitors(rows=rows, places=places),
            config,
            log_share=log_share,
            pulls=pulls,
            factor=grad * (config.logit_scale * slots) / count,
        )
        return grad_units, grad_weight, None, None, None, None
