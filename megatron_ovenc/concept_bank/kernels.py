"""The two passes of `chunks.py` on CUDA, with everything between the centres and what is kept of them in one Triton kernel each.

`row_statistics`: rows are gathered, normalised, multiplied, filtered and summed up in one kernel; no logit reaches memory.
`row_gradients`: one kernel turns a chunk of centres into the chunk's shares, the derivatives by its logits; the two products with
them are plain matrix products, which cuBLAS does best and in the same order every time.

Numbers are float32, sums of products too; with `gemm: bf16` the operands of the products are bfloat16. The kernels run on a CPU
under TRITON_INTERPRET=1, which is how they are tested against float64.

Shapes: N samples, K labels a sample, D width, R rows of this rank, M competing rows, c rows of a chunk, P parts of the M rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_ovenc.concept_bank import chunks
from megatron_ovenc.concept_bank.chunks import NORM_EPS, Chunk, Problem
from megatron_ovenc.concept_bank.objectives import Negatives
from megatron_ovenc.concept_bank.row_gradient import RowGradient

_BLOCK_N, _BLOCK_M, _BLOCK_D, _WARPS = 64, 64, 32, 8
"""Chosen so that registers hardly spill on sm_80 and sm_90 (tests/concept_bank/compile_kernels.py); not yet tuned on a GPU."""
_PARTS_TARGET = 512
"""Programs that a pass should have, to keep every multiprocessor of a large GPU busy."""


def row_statistics(problem: Problem) -> tuple[Negatives, Tensor]:
    """As `chunks.row_statistics`."""
    samples, slots = problem.among.places.shape
    rows, config = problem.rows, problem.objective.config
    seen = problem.objective.start(samples, problem.scale)
    positives = torch.zeros_like(problem.among.places, dtype=problem.units.dtype)
    if rows == 0 or samples == 0:
        return seen, positives
    blocks_n, blocks_m = triton.cdiv(samples, _BLOCK_N), triton.cdiv(rows, _BLOCK_M)
    parts = max(1, min(blocks_m, _PARTS_TARGET // blocks_n))
    partial = problem.units.new_empty(4, parts, samples)
    everything = problem.among.rows is None
    _statistics[(blocks_n, parts)](
        problem.units,
        problem.weight,
        problem.units if everything else problem.among.rows,
        problem.among.places,
        problem.units if problem.among.log_weights is None else problem.among.log_weights,
        problem.scale,
        problem.bias,
        partial,
        positives,
        samples,
        rows,
        len(problem.weight),
        triton.cdiv(blocks_m, parts),
        WIDTH=problem.units.shape[1],
        SLOTS=slots,
        THRESHOLD=config.filter_threshold,
        SAMPLED=not everything,
        WEIGHTED=problem.among.log_weights is not None,
        SIGMOID=config.loss == "sigmoid",
        SLOPES=config.learn_scale,
        HALF=config.gemm == "bf16",
        EPS=NORM_EPS,
        BLOCK_N=_BLOCK_N,
        BLOCK_M=_BLOCK_M,
        BLOCK_D=_BLOCK_D,
        num_warps=_WARPS,
    )
    top, mass, tilt, lift = partial
    if config.loss == "cosface":
        seen.top = torch.maximum(seen.top, top.amax(dim=0))
        fade = (top - seen.top).exp_()
        mass, tilt = mass * fade, tilt * fade
    seen.mass = mass.sum(dim=0)
    if config.learn_scale:
        seen.tilt, seen.lift = tilt.sum(dim=0), lift.sum(dim=0)
    return seen, positives.clamp_(-1, 1)


def row_gradients(
    problem: Problem,
    *,
    per_sample: Tensor,
    pulls: Tensor,
    factor: Tensor,
    weight_too: bool,
    units_done: Callable[[Tensor], None],
) -> RowGradient | None:
    """As `chunks.row_gradients`."""
    return chunks.row_gradients(
        problem,
        per_sample=per_sample,
        pulls=pulls,
        factor=factor,
        weight_too=weight_too,
        units_done=units_done,
        make_shares=shares,
    )


def shares(problem: Problem, chunk: Chunk, per_sample: Tensor, pulls: Tensor) -> Tensor:
    """As `chunks.shares`, in the type that matrices are multiplied in."""
    config = problem.objective.config
    (samples, slots), rows = problem.among.places.shape, chunk.stop - chunk.start
    half = config.gemm == "bf16"
    out = problem.units.new_empty(samples, rows, dtype=torch.bfloat16 if half else problem.units.dtype)
    if samples == 0:
        return out
    _shares[(triton.cdiv(samples, _BLOCK_N), triton.cdiv(rows, _BLOCK_M))](
        problem.units,
        chunk.units,
        problem.among.places - chunk.start,
        problem.units if chunk.log_weights is None else chunk.log_weights,
        problem.units if chunk.padding is None else chunk.padding,
        problem.scale,
        problem.bias,
        per_sample,
        pulls,
        out,
        samples,
        rows,
        WIDTH=problem.units.shape[1],
        SLOTS=slots,
        THRESHOLD=config.filter_threshold,
        PADDED=chunk.padding is not None,
        WEIGHTED=chunk.log_weights is not None,
        SIGMOID=config.loss == "sigmoid",
        HALF=half,
        BLOCK_N=_BLOCK_N,
        BLOCK_M=_BLOCK_M,
        BLOCK_D=_BLOCK_D,
        num_warps=_WARPS,
    )
    return out


@triton.jit
def _statistics(
    units,  # [N, D]
    weight,  # [R, D]
    row_list,  # [M]
    places,  # [N, K]
    log_weights,  # [M]
    scale_at,
    bias_at,
    partial,  # [4, P, N]: top, mass, tilt, lift
    positives,  # [N, K]
    samples,
    rows,
    owned,
    blocks_a_part,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SAMPLED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SIGMOID: tl.constexpr,
    SLOPES: tl.constexpr,
    HALF: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    sample = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    real_sample = sample < samples
    scale, bias = tl.load(scale_at), tl.load(bias_at)
    top = tl.zeros([BLOCK_N], tl.float32) - scale
    mass = tl.zeros([BLOCK_N], tl.float32)
    tilt = tl.zeros([BLOCK_N], tl.float32)
    lift = tl.zeros([BLOCK_N], tl.float32)
    first = tl.program_id(1) * blocks_a_part * BLOCK_M
    for block in range(blocks_a_part):
        place = first + block * BLOCK_M + tl.arange(0, BLOCK_M)
        real = place < rows
        row = place
        if SAMPLED:
            row = tl.load(row_list + place, mask=real, other=owned)
            real = real & (row < owned)
        row = row.to(tl.int64)
        products = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        squares = tl.zeros([BLOCK_M], tl.float32)
        for start in range(0, WIDTH, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            inside = column < WIDTH
            centre = tl.load(
                weight + row[:, None] * WIDTH + column[None, :], mask=real[:, None] & inside[None, :], other=0.0
            )
            unit = tl.load(
                units + sample[:, None] * WIDTH + column[None, :],
                mask=real_sample[:, None] & inside[None, :],
                other=0.0,
            )
            squares += tl.sum(centre * centre, axis=1)
            if HALF:
                products = tl.dot(unit.to(tl.bfloat16), tl.trans(centre).to(tl.bfloat16), products)
            else:
                products = tl.dot(unit, tl.trans(centre), products, input_precision="ieee")
        cosines = products / tl.maximum(tl.sqrt(squares), EPS)[None, :]
        negative = real[None, :] & real_sample[:, None]
        for slot in range(SLOTS):
            label = tl.load(places + sample * SLOTS + slot, mask=real_sample, other=-1)
            hit = label[:, None] == place[None, :]
            value = tl.sum(tl.where(hit, cosines, 0.0), axis=1)
            tl.store(positives + sample * SLOTS + slot, value, mask=tl.max(hit.to(tl.int32), axis=1) > 0)
            negative = negative & (hit == 0)
        filtered = cosines > THRESHOLD
        if THRESHOLD > 0 and not SIGMOID:
            cosines = tl.where(filtered, 0.0, cosines)
        if THRESHOLD > 0 and SIGMOID:
            negative = negative & (filtered == 0)
        plain = cosines * scale
        log_weight = tl.zeros([BLOCK_M], tl.float32)
        if WEIGHTED:
            log_weight = tl.load(log_weights + place, mask=place < rows, other=0.0)
        if SIGMOID:
            logits = plain + bias
            stands_for = tl.where(negative, tl.exp(log_weight)[None, :], 0.0)
            size = tl.exp(-tl.abs(logits))
            mass += tl.sum(stands_for * (tl.maximum(logits, 0.0) + _log1p(size)), axis=1)
            if SLOPES:
                slope = stands_for * tl.where(logits >= 0, 1.0, size) / (1.0 + size)
                lift += tl.sum(slope, axis=1)
                tilt += tl.sum(slope * logits, axis=1)
        else:
            logits = tl.where(negative, plain + log_weight[None, :], -float("inf"))
            higher = tl.maximum(top, tl.max(logits, axis=1))
            fade = tl.exp(top - higher)
            masses = tl.exp(logits - higher[:, None])
            mass = mass * fade + tl.sum(masses, axis=1)
            if SLOPES:
                tilt = tilt * fade + tl.sum(masses * plain, axis=1)
            top = higher
    parts = tl.num_programs(1)
    at = partial + tl.program_id(1) * samples + sample
    tl.store(at, top, mask=real_sample)
    tl.store(at + parts * samples, mass, mask=real_sample)
    tl.store(at + 2 * parts * samples, tilt, mask=real_sample)
    tl.store(at + 3 * parts * samples, lift, mask=real_sample)


@triton.jit
def _shares(
    units,  # [N, D]
    centres,  # [c, D], of length 1
    places,  # [N, K], columns of the chunk where they are in [0, c)
    log_weights,  # [c]
    padding,  # [c]
    scale_at,
    bias_at,
    per_sample,  # [N]
    pulls,  # [N, K]
    out,  # [N, c]
    samples,
    rows,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    PADDED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SIGMOID: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    sample = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    real_sample, real = sample < samples, place < rows
    products = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = column < WIDTH
        centre = tl.load(
            centres + place[:, None].to(tl.int64) * WIDTH + column[None, :],
            mask=real[:, None] & inside[None, :],
            other=0.0,
        )
        unit = tl.load(
            units + sample[:, None] * WIDTH + column[None, :], mask=real_sample[:, None] & inside[None, :], other=0.0
        )
        if HALF:
            products = tl.dot(unit.to(tl.bfloat16), tl.trans(centre).to(tl.bfloat16), products)
        else:
            products = tl.dot(unit, tl.trans(centre), products, input_precision="ieee")
    pulling = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    negative = real[None, :] & real_sample[:, None]
    if PADDED:
        negative = negative & (tl.load(padding + place, mask=real, other=1)[None, :] == 0)
    if THRESHOLD > 0:
        negative = negative & (products <= THRESHOLD)
    for slot in range(SLOTS):
        label = tl.load(places + sample * SLOTS + slot, mask=real_sample, other=-1)
        pull = tl.load(pulls + sample * SLOTS + slot, mask=real_sample, other=0.0)
        hit = label[:, None] == place[None, :]
        pulling += tl.where(hit, pull[:, None], 0.0)
        negative = negative & (hit == 0)
    logits = products * tl.load(scale_at)
    own = tl.load(per_sample + sample, mask=real_sample, other=0.0)[:, None]
    log_weight = tl.zeros([BLOCK_M], tl.float32)
    if WEIGHTED:
        log_weight = tl.load(log_weights + place, mask=real, other=0.0)
    if SIGMOID:
        logits += tl.load(bias_at)
        size = tl.exp(-tl.abs(logits))
        share = tl.exp(log_weight)[None, :] * own * tl.where(logits >= 0, 1.0, size) / (1.0 + size)
    else:
        share = tl.exp(tl.where(negative, logits + own + log_weight[None, :], -float("inf")))
    result = tl.where(negative, share, 0.0) + pulling
    at = out + sample[:, None].to(tl.int64) * rows + place[None, :]
    tl.store(at, result.to(out.dtype.element_ty), mask=real_sample[:, None] & real[None, :])


@triton.jit
def _log1p(x):
    # For x in [0, 1]: log(1 + x) loses x below 1e-7; the correction term brings it back (Kahan).
    y = 1.0 + x
    return tl.log(y) - ((y - 1.0) - x) / y
