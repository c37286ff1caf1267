"""A loss over a bank whose rows are split over all ranks, for K positives a sample at the price of one.

Each rank passes over its own rows (`chunks.py`, or on CUDA `kernels.py`); a few numbers a sample and K cosines then go round
the world, and what remains is a closed form on [N, K] (`objectives.py`), the same on every rank. Autograd keeps
O(N K + N D) numbers and the list of sampled rows, never a logit.

The reported loss is the mean of the slots' costs over all labels of the global batch that are not -1; a sample without any
contributes nothing, and a batch without any costs 0. The gradient is that of this mean (`mean`) or K times that (`sum`), and
knows no cap.

Shapes: B samples of this data rank, N of the global batch, K labels a sample, D width, R rows of this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ovenc.concept_bank import chunks
from megatron_ovenc.concept_bank.chunks import Problem
from megatron_ovenc.concept_bank.gather import GlobalBatch
from megatron_ovenc.concept_bank.objectives import make_objective
from megatron_ovenc.concept_bank.row_gradient import RowGradient
from megatron_ovenc.concept_bank.sampling import Competitors
from megatron_ovenc.config.tree import BankConfig


class BankLoss(torch.autograd.Function):
    """The loss as a function of this rank's unit embeddings and rows. Collective, forward and backward.

    Forward arguments:
        units: [B, D] embeddings of length 1, equal on the tensor ranks of a data rank.
        weight: [R, D] this rank's centres, of any length.
        scale, bias: scalars, equal on every rank.
        labels: int64 [N, K], -1 for none, the same on every rank.
        among: which of this rank's rows compete, and where the labels are among them.
        config: loss, margin, filter, reductions and chunk size.
        batch: where this rank's samples are in the global batch, and the way there and back.
        deposit: given the gradient of `weight` in backward, when `weight` requires one. Not returned to autograd, which could
            only add it up as a tensor of the size of the bank.

    Returns:
        Scalar, the reported loss. Backward gives this rank's embeddings, the scale and the bias the gradient of the global loss.
    """

    @staticmethod
    def forward(
        ctx: Any,
        units: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        labels: Tensor,
        among: Competitors,
        config: BankConfig,
        batch: GlobalBatch,
        deposit: Callable[[RowGradient], None],
    ) -> Tensor:
        objective = make_objective(config)
        everyone = batch.gather(units)
        problem = Problem(units=everyone, weight=weight, among=among, objective=objective, scale=scale, bias=bias)
        seen, positives = _passes(problem).row_statistics(problem)
        negatives, positives = objective.reduce(seen, positives, batch.topology.world_group)
        level = objective.level(negatives)
        # The closed form's own small graph, on [N, K].
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in (positives, level, scale, bias)]
            costs = objective.costs(inputs[0], inputs[1], labels, inputs[2], inputs[3])
            slopes = torch.autograd.grad(costs.sum(), inputs, allow_unused=True, materialize_grads=True)
        by_positives, by_level, by_scale, by_bias = slopes
        level_by_scale, level_by_bias = objective.level_slopes(negatives, scale, bias)
        count = (labels >= 0).sum().clamp(min=1)
        ctx.save_for_backward(
            everyone,
            weight,
            scale,
            bias,
            among.rows,
            among.places,
            among.log_weights,
            objective.per_sample(by_level, level),
            by_positives / scale,
            count,
            by_scale + (by_level * level_by_scale).sum(),
            by_bias + (by_level * level_by_bias).sum(),
        )
        ctx.objective, ctx.batch, ctx.deposit = objective, batch, deposit
        return objective.reported(costs.detach()).sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        everyone, weight, scale, bias, rows, places, log_weights, per_sample, pulls, count, *slopes = ctx.saved_tensors
        config = ctx.objective.config
        problem = Problem(
            units=everyone,
            weight=weight,
            among=Competitors(rows=rows, places=places, log_weights=log_weights),
            objective=ctx.objective,
            scale=scale,
            bias=bias,
        )
        factor = grad * (places.shape[1] if config.gradient == "sum" else 1) / count
        returning: list[Callable[[], Tensor]] = []
        gradient = _passes(problem).row_gradients(
            problem,
            per_sample=per_sample,
            pulls=pulls,
            factor=factor,
            weight_too=ctx.needs_input_grad[1],
            units_done=lambda parts: returning.append(ctx.batch.send_home(parts)),
        )
        if gradient is not None:
            ctx.deposit(gradient)
        by_scale, by_bias = (slope * factor for slope in slopes)
        return returning[0](), None, by_scale, by_bias, None, None, None, None, None


def _passes(problem: Problem) -> ModuleType:
    """The module whose two passes run where the problem is."""
    if not problem.weight.is_cuda:
        return chunks
    from megatron_ovenc.concept_bank import kernels  # Triton comes with torch's CUDA builds only

    return kernels
