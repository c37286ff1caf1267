"""Two passes over the rows that a rank owns, in chunks: logits of [N, chunk] exist at a time and are never kept.

`row_statistics` is what an objective needs of the rank's rows, `row_gradients` recomputes the same cosines and turns them
into gradients. Both are local: the collectives between them are in `loss.py`. On CUDA the part that makes and reads logits is
one Triton kernel a pass (`kernels.py`); this file is the same arithmetic for any device, and the kernels' yardstick.

A sample's positives (the distinct classes of its labels) are left out of the sum over negatives as it is built. Taking
them out of a finished sum would cancel: a positive can outweigh all negatives by twenty orders of magnitude.

Shapes: N samples of the global batch, K labels a sample, D width, R rows of this rank, M competing rows, c rows of a chunk.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ovenc.concept_bank.objectives import Negatives, Objective
from megatron_ovenc.concept_bank.row_gradient import RowGradient
from megatron_ovenc.concept_bank.sampling import Competitors

NORM_EPS = 1e-12
"""Smallest length by which a vector is divided."""
_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 25, "meta": 1 << 25}
"""Most logits, and most numbers of centres, of a chunk where `chunk_rows` leaves it open: what a core's cache holds, and 128 MiB
of a GPU's memory (and of the GPU that a plan without one is made for)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What both passes look at. Nothing in it is copied or changed."""

    units: Tensor
    """[N, D] embeddings of length 1."""
    weight: Tensor
    """[R, D] centres of any length."""
    among: Competitors
    objective: Objective
    scale: Tensor
    """Scalar: factor on the cosines."""
    bias: Tensor
    """Scalar: added to the logits of `sigmoid`."""

    @property
    def padded(self) -> bool:
        """Whether the list of rows may end in padding. On a host it never does."""
        return self.units.device.type != "cpu"

    @property
    def rows(self) -> int:
        """M."""
        return len(self.weight) if self.among.rows is None else len(self.among.rows)

    @property
    def chunk_rows(self) -> int:
        """Most rows of a chunk."""
        chosen = self.objective.config.chunk_rows
        return chosen or max(_NUMBERS.get(self.units.device.type, 1 << 20) // max(*self.units.shape, 1), 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Rows `start` to `stop` of the M that compete."""

    start: int
    stop: int
    norms: Tensor
    """[c, 1] lengths of the centres."""
    units: Tensor
    """[c, D] centres of length 1."""
    here: Tensor
    """bool [N, K]: the label's row is in this chunk."""
    column: Tensor
    """int64 [N, K]: its column in the chunk; any valid one where `here` is false."""
    padding: Tensor | None
    """bool [c]: columns that stand for no row."""
    log_weights: Tensor | None
    """[c], see `Competitors`."""


def chunks(problem: Problem) -> Iterator[Chunk]:
    """All competing rows, in order."""
    weight, among = problem.weight, problem.among
    for start in range(0, problem.rows, problem.chunk_rows):
        stop = min(start + problem.chunk_rows, problem.rows)
        padding = None
        if among.rows is None:
            centres = weight[start:stop]
        else:
            rows = among.rows[start:stop]
            if problem.padded:
                padding = rows == len(weight)
                rows = rows.clamp(max=len(weight) - 1)
            centres = weight.index_select(0, rows)
        norms = torch.linalg.vector_norm(centres, dim=1, keepdim=True).clamp_(min=NORM_EPS)
        yield Chunk(
            start=start,
            stop=stop,
            norms=norms,
            units=centres / norms,
            here=(among.places >= start) & (among.places < stop),
            column=(among.places - start).clamp_(0, stop - start - 1),
            padding=padding,
            log_weights=None if among.log_weights is None else among.log_weights[start:stop].to(weight.dtype),
        )


def row_statistics(problem: Problem) -> tuple[Negatives, Tensor]:
    """What this rank's rows say.

    Returns:
        The objective's numbers of the negatives, and [N, K] the cosines of the labels whose rows are here, 0 for others.
    """
    seen = problem.objective.start(len(problem.units), problem.scale)
    positives = problem.units.new_zeros(problem.among.places.shape)
    opposite = _operand(-problem.units, problem)
    for chunk in chunks(problem):
        opposed = _product(opposite, _operand(chunk.units, problem).T)
        positives -= torch.where(chunk.here, opposed.gather(1, chunk.column), 0)
        logits = _negative_logits(opposed, chunk, problem, problem.objective.filtered_logit)
        problem.objective.absorb(seen, logits, chunk.log_weights)
    return seen, positives.clamp_(-1, 1)


def shares(problem: Problem, chunk: Chunk, per_sample: Tensor, pulls: Tensor) -> Tensor:
    """Derivatives G [N, c] of the costs by a chunk's logits: what the objective's `shares_` says for a negative, 0 for a filtered
    one, `pulls` for a positive. In the type that matrices are multiplied in.

    Args:
        per_sample: [N], for `shares_`.
        pulls: [N, K], of all slots; those of one class add up.
    """
    opposed = _product(_operand(-problem.units, problem), _operand(chunk.units, problem).T)
    logits = _negative_logits(opposed, chunk, problem, -math.inf)  # no pull on the filtered
    made = problem.objective.shares_(logits, per_sample, chunk.log_weights)
    made.scatter_add_(1, chunk.column, torch.where(chunk.here, pulls, 0))
    return _operand(made, problem)


def row_gradients(
    problem: Problem,
    *,
    per_sample: Tensor,
    pulls: Tensor,
    factor: Tensor,
    weight_too: bool,
    units_done: Callable[[Tensor], None],
    make_shares: Callable[[Problem, Chunk, Tensor, Tensor], Tensor] | None = None,
) -> RowGradient | None:
    """Gradients of `factor` * sum over (n, j) of G[n, j] * logit[n, j], with G held constant.

    Args:
        per_sample, pulls: as in `shares`.
        factor: scalar tensor.
        weight_too: whether the centres' gradient is wanted.
        units_done: called with [N, D], the gradient with respect to `units` (this rank's rows' part of the sum), as soon as it
            is whole: before the last chunk's centres get theirs, so that sending it can overlap with that.
        make_shares: how a chunk's G [N, c] is made; `shares` by default.

    Returns:
        The gradient with respect to `weight`, if wanted.
    """
    make_shares = make_shares or shares
    units, total = problem.units, problem.rows
    grad_units = torch.zeros_like(units)
    force = factor * problem.scale
    if weight_too:
        values = units.new_empty(total, units.shape[1])
        pulled = _operand(units * force, problem)
    for chunk in chunks(problem):
        centres = _operand(chunk.units, problem)
        made = make_shares(problem, chunk, per_sample, pulls)
        if made.dtype == grad_units.dtype:
            grad_units.addmm_(made, centres)
        else:
            grad_units += _product(made, centres)
        if chunk.stop == total:
            units_done(grad_units.mul_(force))
        if weight_too:
            grad = _product(made.T, pulled)
            # Through w / |w|: the part along the unit centre changes nothing but the length.
            radial = (grad * chunk.units).sum(dim=1, keepdim=True)
            torch.div(grad.addcmul_(chunk.units, radial, value=-1), chunk.norms, out=values[chunk.start : chunk.stop])
    if total == 0:
        units_done(grad_units)
    return RowGradient(rows=problem.among.rows, values=values, total=len(problem.weight)) if weight_too else None


def _negative_logits(opposed: Tensor, chunk: Chunk, problem: Problem, filtered: float) -> Tensor:
    """Negated cosines [N, c] to logits, `filtered` for what the filter takes out, -inf for positives and padding; in place."""
    config = problem.objective.config
    if config.filter_threshold > 0:
        # One pass, where a comparison and a fill would be two: keeps what is above a bound, that is cosines up to the threshold.
        torch.threshold_(opposed, _just_below(-config.filter_threshold, opposed.dtype), -filtered)
    logits = opposed.mul_(-problem.scale)
    if config.loss == "sigmoid":
        logits.add_(problem.bias)
    # `amin` and not a plain write: slots that are not here must leave the column they point at as it is.
    bound = torch.where(chunk.here, -torch.inf, torch.inf).to(logits.dtype)
    logits.scatter_reduce_(1, chunk.column, bound, "amin")
    if chunk.padding is not None:
        logits.masked_fill_(chunk.padding, -torch.inf)
    return logits


def _operand(matrix: Tensor, problem: Problem) -> Tensor:
    """In the type that matrices are multiplied in."""
    return matrix.bfloat16() if problem.objective.config.gemm == "bf16" else matrix


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product. Of bfloat16 operands a GPU makes float32; a CPU sums in float32, and rounds the result to bfloat16."""
    if left.dtype != torch.bfloat16:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


@functools.cache
def _just_below(value: float, dtype: torch.dtype) -> float:
    return torch.nextafter(torch.tensor(value, dtype=dtype), torch.tensor(-math.inf, dtype=dtype)).item()
