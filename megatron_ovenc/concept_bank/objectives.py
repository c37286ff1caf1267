"""The two losses, each as what it needs to know of the negatives, and a closed form on [N, K].

With z the cosine of a sample to a centre, s the logit scale, b the bias, m the margin, P the sample's set of positives
(distinct classes of its labels), z~ = z but 0 where z exceeds the filter's threshold, and w the number of rows that a drawn
row stands for (1 unless `correct_sampling`):

`cosface` (Wang et al., arXiv 1801.09414; the filter and the role of the other positives: the released training code of
OneVision-Encoder). The label y_k of slot k costs

    T_k = log( sum over j not in P of w_j exp(s z~_j)                      negatives: the same sum in all K slots
             + sum over i in P, i != y_k of exp(s z~_i)                    co_positives = negative only
             + exp(s (z_k - m)) ) - s (z_k - m)

A class that a sample names twice counts once in the sums, and each of its slots has its cost.

`sigmoid` (equation 9 of OneVision-Encoder, arXiv 2602.08683; SigLIP's bias, arXiv 2303.15343). Every class is a question of
its own; the first slot that names class y costs log(1 + exp(-(s (z_y - m) + b))), and the sample costs besides

    sum over j not in P of w_j log(1 + exp(s z_j + b))                     without those that the filter takes out

An objective sees negatives in chunks of logits [N, c] and keeps a few numbers a sample of them (`start`, `absorb`); these and
the positives' cosines go round the world (`reduce`); `costs` is the closed form, and `shares_` turns a chunk of logits into
the derivatives of all costs with respect to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_ovenc.config.tree import BankConfig

REPORT_CAP = -math.log(1e-30)
"""Largest cost of a label in the reported loss, as the reference has it (it floors probabilities at 1e-30)."""
_NOTHING = -1e30
"""Logit of what is not there: finite, so that its exponential is 0 and its gradient not NaN."""


@dataclass(slots=True)
class Negatives:
    """What an objective knows of the negatives that it has seen: float [N] each."""

    top: Tensor
    """Upper bound of the logits so far, near enough to be subtracted before exp; 0 for `sigmoid`."""
    mass: Tensor
    """Sum of w exp(logit - top), or of w softplus(logit)."""
    tilt: Tensor
    """Sum of the derivatives of `mass` by the logits, each times its logit: only kept for a learned scale."""
    lift: Tensor
    """Sum of the same derivatives alone: only kept for a learned scale of `sigmoid`."""


class CosFace:
    """Softmax over the competing rows with an additive margin on the positive's cosine."""

    filtered_logit = 0.0
    """What the filter makes of a logit."""

    def __init__(self, config: BankConfig) -> None:
        self.config = config

    def start(self, samples: int, scale: Tensor) -> Negatives:
        """Before any chunk. The top is the lowest logit there is: finite, also for a rank without rows."""
        zeros = scale.new_zeros(samples)
        return Negatives(top=zeros - scale, mass=zeros.clone(), tilt=zeros.clone(), lift=zeros)

    def absorb(self, seen: Negatives, logits: Tensor, log_weights: Tensor | None) -> None:
        """Add a chunk of logits [N, c], -inf where there is no negative; overwrites it. log_weights: [c]."""
        plain = logits.clone() if self.config.learn_scale else None
        if log_weights is not None:
            logits.add_(log_weights)
        higher = torch.maximum(seen.top, logits.amax(dim=1))
        fade = (seen.top - higher).exp_()
        masses = logits.sub_(higher[:, None]).exp_()
        seen.mass = seen.mass * fade + masses.sum(dim=1)
        if plain is not None:
            seen.tilt = seen.tilt * fade + (masses * plain.clamp_(min=_NOTHING)).sum(dim=1)  # 0 * -inf would be NaN
        seen.top = higher

    def reduce(self, seen: Negatives, positives: Tensor, group: dist.ProcessGroup) -> tuple[Negatives, Tensor]:
        """The same of all rows of the bank. Two all-reduces over `group`, the WORLD: every rank has a slice of the classes."""
        top = seen.top.clone()
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        fade = (seen.top - top).exp()
        columns = [seen.mass * fade] + ([seen.tilt * fade] if self.config.learn_scale else [])
        # Negatives are spread over the ranks, and each label's cosine is on the one that owns its row.
        sums = torch.cat([torch.stack(columns, dim=1), positives], dim=1)
        dist.all_reduce(sums, group=group)
        tilt = sums[:, 1] if self.config.learn_scale else seen.tilt
        return Negatives(top=top, mass=sums[:, 0], tilt=tilt, lift=seen.lift), sums[:, len(columns) :]

    def level(self, negatives: Negatives) -> Tensor:
        """Logsumexp of the negatives [N]."""
        return (negatives.top + negatives.mass.log()).clamp(min=_NOTHING)

    def level_slopes(self, negatives: Negatives, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives [N] of `level` with respect to the scale and the bias."""
        mean = negatives.tilt / negatives.mass.clamp(min=torch.finfo(negatives.mass.dtype).tiny)
        return mean / scale, negatives.lift

    def costs(self, positives: Tensor, level: Tensor, labels: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """Cost of every slot [N, K], 0 for the label -1. Differentiable in all but `labels`.

        Args:
            positives: [N, K] cosines of the labels.
            level: [N], see `level`.
            labels: int64 [N, K].
        """
        config = self.config
        valid, first, same = _slots(labels)
        target = scale * (positives - config.margin)
        others = level[:, None].expand_as(target)
        if config.co_positives == "negative":
            kept = positives
            if config.filter_threshold > 0:
                kept = torch.where(positives > config.filter_threshold, 0, positives)
            # [n, k, i]: the logit of slot i's class in the softmax of slot k.
            rivals = (scale * kept)[:, None, :].masked_fill(same | ~first[:, None, :], _NOTHING)
            others = torch.cat([rivals, others[:, :, None]], dim=2).logsumexp(dim=2)
        # log(exp(others) + exp(target)) - target, exact for costs near 0 too.
        return torch.where(valid, _softplus(others - target), 0)

    def per_sample(self, pull: Tensor, level: Tensor) -> Tensor:
        """What `shares_` needs of each sample [N], from the derivative `pull` [N] of the costs by `level`."""
        return pull.log() - level

    def shares_(self, logits: Tensor, per_sample: Tensor, log_weights: Tensor | None) -> Tensor:
        """Logits [N, c], -inf where there is no negative, to the costs' derivatives by them, in place."""
        logits.add_(per_sample[:, None])
        if log_weights is not None:
            logits.add_(log_weights)
        return logits.exp_()

    def reported(self, costs: Tensor) -> Tensor:
        """Costs as the log shows them."""
        return costs.clamp(max=REPORT_CAP)


class Sigmoid:
    """A yes-or-no question for every class. Methods as in `CosFace`."""

    filtered_logit = -math.inf

    def __init__(self, config: BankConfig) -> None:
        self.config = config

    def start(self, samples: int, scale: Tensor) -> Negatives:
        zeros = scale.new_zeros(samples)
        return Negatives(top=zeros, mass=zeros.clone(), tilt=zeros.clone(), lift=zeros.clone())

    def absorb(self, seen: Negatives, logits: Tensor, log_weights: Tensor | None) -> None:
        weights = None if log_weights is None else log_weights.exp()
        if self.config.learn_scale:
            slopes = logits.sigmoid()
            slopes = slopes if weights is None else slopes * weights
            seen.lift = seen.lift + slopes.sum(dim=1)
            seen.tilt = seen.tilt + (slopes * logits.clamp(min=_NOTHING)).sum(dim=1)
        terms = _softplus(logits)
        seen.mass = seen.mass + (terms.sum(dim=1) if weights is None else terms @ weights)

    def reduce(self, seen: Negatives, positives: Tensor, group: dist.ProcessGroup) -> tuple[Negatives, Tensor]:
        """One all-reduce over `group`, the WORLD: every rank has a slice of the classes."""
        columns = [seen.mass] + ([seen.tilt, seen.lift] if self.config.learn_scale else [])
        sums = torch.cat([torch.stack(columns, dim=1), positives], dim=1)
        dist.all_reduce(sums, group=group)
        tilt, lift = (sums[:, 1], sums[:, 2]) if self.config.learn_scale else (seen.tilt, seen.lift)
        return Negatives(top=seen.top, mass=sums[:, 0], tilt=tilt, lift=lift), sums[:, len(columns) :]

    def level(self, negatives: Negatives) -> Tensor:
        return negatives.mass

    def level_slopes(self, negatives: Negatives, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return (negatives.tilt - bias * negatives.lift) / scale, negatives.lift

    def costs(self, positives: Tensor, level: Tensor, labels: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """The negatives' cost of a sample stands in its first valid slot."""
        valid, first, _ = _slots(labels)
        logits = scale * (positives - self.config.margin) + bias
        costs = torch.where(first, _softplus(-logits), 0)
        leading = valid & (valid.cumsum(dim=1) == 1)
        return costs + torch.where(leading, level[:, None], 0)

    def per_sample(self, pull: Tensor, level: Tensor) -> Tensor:
        return pull

    def shares_(self, logits: Tensor, per_sample: Tensor, log_weights: Tensor | None) -> Tensor:
        logits.sigmoid_().mul_(per_sample[:, None])
        return logits if log_weights is None else logits.mul_(log_weights.exp())

    def reported(self, costs: Tensor) -> Tensor:
        return costs


Objective = CosFace | Sigmoid


def make_objective(config: BankConfig) -> Objective:
    """The objective that `loss` names."""
    return CosFace(config) if config.loss == "cosface" else Sigmoid(config)


def _slots(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which slots have a label [N, K], which name its class first [N, K], and which pairs name the same one [N, K, K]."""
    valid = labels >= 0
    same = labels[:, :, None] == labels[:, None, :]
    return valid, valid & ~same.tril(-1).any(dim=2), same


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact at both ends (F.softplus stops at a threshold of 20)."""
    return -F.logsigmoid(-x)
