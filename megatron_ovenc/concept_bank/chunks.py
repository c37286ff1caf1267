"""Two passes over the rows that a rank owns, in chunks: logits of [N, chunk] exist at a time and are never kept.

`row_statistics` is what the softmax needs of the rank's rows, `row_gradients` recomputes the same cosines and turns them
into gradients. Both are local: the collectives between them are in `loss.py`.

A sample's positives (the distinct classes of its labels) are left out of the sum over negatives as it is built. Taking
them out of a finished sum would cancel: a positive can outweigh all negatives by twenty orders of magnitude.

Shapes: N samples of the global batch, K labels a sample, D width, R rows of this rank, M competing rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ovenc.concept_bank.sampling import Competitors
from megatron_ovenc.config.tree import BankConfig

NORM_EPS = 1e-12
"""Smallest length by which a vector is divided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chunk:
    rows: Tensor | slice
    """Positions of the chunk's rows in the weight."""
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


def _chunks(weight: Tensor, among: Competitors, chunk_rows: int) -> Iterator[_Chunk]:
    count = len(weight) if among.rows is None else len(among.rows)
    for start in range(0, count, chunk_rows):
        stop = min(start + chunk_rows, count)
        rows: Tensor | slice = slice(start, stop)
        padding = None
        if among.rows is not None:
            padding = among.rows[start:stop] == len(weight)
            rows = among.rows[start:stop].clamp(max=len(weight) - 1)
        centres = weight[rows]
        norms = torch.linalg.vector_norm(centres, dim=1, keepdim=True).clamp_(min=NORM_EPS)
        yield _Chunk(
            rows=rows,
            norms=norms,
            units=centres / norms,
            here=(among.places >= start) & (among.places < stop),
            column=(among.places - start).clamp_(0, stop - start - 1),
            padding=padding,
        )


def _cosines(units: Tensor, chunk: _Chunk) -> Tensor:
    """[N, c]. The clamp only takes off rounding, so it has no derivative of its own."""
    return (units @ chunk.units.T).clamp_(-1, 1)


def _leave_out(values: Tensor, chunk: _Chunk) -> None:
    """Set positives and padding to -inf, in place."""
    # `amin` and not a plain write: slots that are not here must leave the column they point at as it is.
    bound = torch.where(chunk.here, -torch.inf, torch.inf).to(values.dtype)
    values.scatter_reduce_(1, chunk.column, bound, "amin")
    if chunk.padding is not None:
        values.masked_fill_(chunk.padding, -torch.inf)


def row_statistics(
    units: Tensor, weight: Tensor, among: Competitors, config: BankConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """What the softmax needs to know of this rank's rows.

    Args:
        units: [N, D] embeddings of length 1.
        weight: [R, D] centres of any length.

    Returns:
        `top` [N], an upper bound of the negatives' logits, near enough to be subtracted before exp;
        `mass` [N], the sum of exp(logit - top) over negatives;
        `positives` [N, K], the cosines of the labels whose rows are here, 0 for the others.
    """
    scale = config.logit_scale
    top = units.new_full((len(units),), -scale)  # the lowest logit there is: finite, also for a rank without rows
    mass = torch.zeros_like(top)
    positives = units.new_zeros(among.places.shape)
    for chunk in _chunks(weight, among, config.chunk_rows):
        logits = _cosines(units, chunk)
        positives += torch.where(chunk.here, logits.gather(1, chunk.column), 0)
        if config.filter_threshold > 0:
            logits.masked_fill_(logits > config.filter_threshold, 0)
        logits.mul_(scale)
        _leave_out(logits, chunk)
        higher = torch.maximum(top, logits.amax(dim=1))
        mass = mass * (top - higher).exp_() + logits.sub_(higher[:, None]).exp_().sum(dim=1)
        top = higher
    return top, mass, positives


def row_gradients(
    units: Tensor,
    weight: Tensor,
    among: Competitors,
    config: BankConfig,
    *,
    log_share: Tensor,
    pulls: Tensor,
    factor: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of `factor` * sum over (n, j) of G[n, j] * cosine[n, j], with G held constant.

    G is exp(logit + log_share) for a negative, 0 for a filtered one, and `pulls` for a positive.

    Args:
        log_share: [N].
        pulls: [N, K], 0 in all but one slot of a label that a sample has twice.
        factor: scalar tensor.

    Returns:
        [N, D] with respect to `units`, this rank's rows' part of the sum; [R, D] with respect to `weight`.
    """
    grad_units = torch.zeros_like(units)
    grad_weight = torch.zeros_like(weight)
    scaled = units * factor
    for chunk in _chunks(weight, among, config.chunk_rows):
        shares = _cosines(units, chunk)
        if config.filter_threshold > 0:
            shares.masked_fill_(shares > config.filter_threshold, -torch.inf)
        _leave_out(shares, chunk)
        shares.mul_(config.logit_scale).add_(log_share[:, None]).exp_()
        shares.scatter_add_(1, chunk.column, torch.where(chunk.here, pulls, 0))
        grad_units.addmm_(shares, chunk.units)
        grad_centres = shares.T @ scaled
        # Through w / |w|: the part along the unit centre changes nothing but the length.
        radial = (grad_centres * chunk.units).sum(dim=1, keepdim=True)
        grad_centres.sub_(radial * chunk.units).div_(chunk.norms)
        if isinstance(chunk.rows, slice):
            grad_weight[chunk.rows] = grad_centres
        else:
            grad_weight.index_add_(0, chunk.rows, grad_centres)  # padding adds zeros to the last row
    return grad_units.mul_(factor), grad_weight
