"""The Triton kernels against the passes of `chunks.py` in float64: on a GPU, or without one in Triton's interpreter.

Compiled for two GPUs they are here too, which needs none. What neither shows: that bfloat16 operands are right, and speed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from megatron_ovenc.concept_bank import chunks
from megatron_ovenc.concept_bank.chunks import Problem
from megatron_ovenc.concept_bank.objectives import make_objective
from megatron_ovenc.concept_bank.sampling import competitors
from megatron_ovenc.config.tree import BankConfig
from megatron_ovenc.parallel.device import choose_device

DEVICE = choose_device("auto", 0)
BFLOAT16 = pytest.mark.skipif(
    DEVICE.type == "cpu", reason="Triton's interpreter multiplies the bits of bfloat16 operands as integers"
)
kernels = pytest.importorskip("megatron_ovenc.concept_bank.kernels", reason="Triton has no build for this platform")
SAMPLES, SLOTS, WIDTH, ROWS, CLASSES, LO = 70, 3, 40, 300, 900, 200
"""More than a block of samples and of rows, neither a multiple, and a width that is none of the block's."""


class Padded(Problem):
    padded = True


def problem(config: BankConfig, dtype: torch.dtype) -> Problem:
    generator = torch.Generator().manual_seed(1)
    units = torch.nn.functional.normalize(torch.randn(SAMPLES, WIDTH, generator=generator))
    weight = torch.randn(ROWS, WIDTH, generator=generator) * torch.rand(ROWS, 1, generator=generator)
    labels = torch.randint(-1, CLASSES, (SAMPLES, SLOTS), generator=generator)
    labels[:20] = torch.randint(LO, LO + ROWS, (20, SLOTS), generator=generator)
    labels[3] = labels[3, 0]
    units[:10] = torch.nn.functional.normalize(
        units[:10] + 2 * torch.nn.functional.normalize(weight[labels[:10, 0] - LO])
    )
    among = competitors(
        labels,
        num_classes=CLASSES,
        rate=config.sample_rate,
        key=7,
        lo=LO,
        hi=LO + ROWS,
        static=True,
        correct=config.correct_sampling,
    )
    return Padded(
        units=units.to(dtype),
        weight=weight.to(dtype),
        among=among,
        objective=make_objective(config),
        scale=torch.tensor(config.logit_scale, dtype=dtype),
        bias=torch.tensor(config.logit_bias, dtype=dtype),
    )


def gradients(passes, given: Problem) -> list[torch.Tensor]:
    sent: list[torch.Tensor] = []
    # Negatives' shares as large as the positives' pulls.
    per_sample = torch.linspace(-8, -7, SAMPLES, dtype=given.units.dtype, device=given.units.device)
    gradient = passes.row_gradients(
        given,
        per_sample=per_sample if given.objective.config.loss == "cosface" else per_sample.exp(),
        pulls=given.units.new_full((SAMPLES, SLOTS), -0.3),
        factor=given.units.new_full((), 0.5),
        weight_too=True,
        units_done=lambda grad: sent.append(grad.clone()),
    )
    return [part.cpu() for part in (*sent, gradient.dense())]


def on_device(given: Problem) -> Problem:
    among = replace(
        given.among,
        **{
            name: None if value is None else value.to(DEVICE)
            for name in ("rows", "places", "log_weights")
            for value in [getattr(given.among, name)]
        },
    )
    tensors = {name: getattr(given, name).to(DEVICE) for name in ("units", "weight", "scale", "bias")}
    return replace(given, among=among, **tensors)


@pytest.mark.parametrize(("loss", "rate", "threshold"), list(product(("cosface", "sigmoid"), (1.0, 0.4), (0.0, 0.3))))
@pytest.mark.parametrize("gemm", ["fp32", pytest.param("bf16", marks=BFLOAT16)])
@pytest.mark.parametrize("programs", [512, 1])
def test_kernels_equal_float64(loss, rate, threshold, gemm, programs, monkeypatch):
    # With a single program for all blocks of rows, its running sums are rescaled from block to block.
    monkeypatch.setattr(kernels, "_PARTS_TARGET", programs)
    settings = {
        "num_classes": CLASSES,
        "sample_rate": rate,
        "loss": loss,
        "filter_threshold": threshold,
        "correct_sampling": rate < 1,
        "logit_scale": 16.0,
        "logit_bias": -2.0,
        "learn_scale": True,
        "chunk_rows": 200,
    }
    given = on_device(problem(BankConfig(gemm=gemm, **settings), torch.float32))
    exact = problem(BankConfig(**settings), torch.float64)
    tolerance = 2e-5 if gemm == "fp32" else 3e-2
    seen, positives = kernels.row_statistics(given)
    wanted, wanted_positives = chunks.row_statistics(exact)
    assert wanted_positives.abs().max() > 0.5
    np.testing.assert_allclose(positives.cpu(), wanted_positives, atol=tolerance)
    if loss == "cosface":  # tops may differ, not what stands above them
        seen.tilt, wanted.tilt = seen.tilt / seen.mass, wanted.tilt / wanted.mass
        seen.mass, wanted.mass = seen.mass.log() + seen.top, wanted.mass.log() + wanted.top
    for name in ("mass", "tilt", "lift"):
        mine, theirs = getattr(seen, name).cpu().double(), getattr(wanted, name)
        assert (mine - theirs).norm() <= 3 * tolerance * theirs.norm(), name
    for mine, theirs in zip(gradients(kernels, given), gradients(chunks, exact), strict=True):
        assert (mine.double() - theirs).norm() <= tolerance * theirs.norm()
        assert theirs.norm() > 0


def test_a_rank_without_rows():
    config = BankConfig(num_classes=CLASSES)
    given = problem(config, torch.float32)
    empty = Padded(
        units=given.units,
        weight=given.weight[:0],
        among=competitors(
            torch.zeros(SAMPLES, SLOTS, dtype=torch.int64),
            num_classes=CLASSES,
            rate=1.0,
            key=0,
            lo=0,
            hi=0,
            static=True,
        ),
        objective=given.objective,
        scale=given.scale,
        bias=given.bias,
    )
    seen, positives = kernels.row_statistics(on_device(empty))
    assert not seen.mass.any()
    assert not positives.any()


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_gpu_and_hardly_spill_registers(capability):
    """In a process of its own, where Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.concept_bank.compile_kernels", str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = done.stdout.splitlines()
    assert len(compiled) == 8
    spilled = [int(re.search(r"(\d+) bytes spill stores", line)[1]) for line in compiled]  # type: ignore[index]
    assert max(spilled) <= 64, done.stdout
