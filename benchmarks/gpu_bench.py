"""How fast a GPU trains the encoder, against its own matmul rate and against the reference's layout, in one run.

    make gpu-bench                                              # writes benchmarks/gpu-bench.{json,md}; under ten minutes
    python -m benchmarks.gpu_bench --device cpu --tiny --output /some/where/bench      # the same code in toy sizes, anywhere

A step is forward, backward and AdamW of the encoder in bf16 with fp32 master weights, as the trainer wraps it, without data
loading and bank (which has rows of its own). MFU is against the bf16 matmul rate measured here, not a data sheet's. Cases run in
order of interest until --budget-s is spent; what was left out is listed.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu_common import VARIANTS, Variant, batch, preset, sharded_encoder, world, write_report
from megatron_ovenc.concept_bank import BankOptimizer, ConceptBank
from megatron_ovenc.config import BankConfig, ModelConfig, OptimizerConfig
from megatron_ovenc.model.flops import training_flops
from megatron_ovenc.model.published import to_published_config
from megatron_ovenc.model.rope import rotary_angles
from megatron_ovenc.parallel.device import choose_device, memory_peak_bytes, release_memory, synchronise
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.state import EncoderOptimizer

OUTPUT = Path("benchmarks/gpu-bench")
NOT_HERE = "not on this machine, see below"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How large everything is: for a GPU, or toys."""

    models: tuple[str, ...] = ("large", "base", "huge")
    workloads: tuple[tuple[str, tuple[int, int, int]], ...] = (
        ("2048-token clip", (8, 16, 16)),
        ("224 px image", (1, 16, 16)),
        ("448 px image", (1, 32, 32)),
        ("4096-token clip", (16, 16, 16)),
    )
    """Name; frames, rows and columns of patches."""
    tokens: int = 32768
    """Tokens of a step, shared out to samples."""
    warmup: int = 2
    steps: int = 5
    matmul: int = 8192
    classes: int = 250_000
    width: int = 1024
    bank_batch: int = 1024
    compiled: tuple[Variant, ...] = (VARIANTS[0], VARIANTS[-1])


TINY = Sizes(
    models=("tiny",),
    workloads=(("28 px image", (1, 2, 2)), ("8-token clip", (2, 2, 2))),
    tokens=16,
    warmup=1,
    steps=1,
    matmul=64,
    classes=500,
    width=32,
    bank_batch=8,
    compiled=(),
)


def seconds_of(action: Callable[[], object], device: torch.device, warmup: int, steps: int) -> float:
    """Mean duration of `action` on the device."""
    for _ in range(warmup):
        action()
    synchronise(device)
    begin = time.perf_counter()
    for _ in range(steps):
        action()
    synchronise(device)
    return (time.perf_counter() - begin) / steps


def matmul_rates(sizes: Sizes, device: torch.device) -> dict[str, float]:
    """TFLOP/s of square products: bf16, and FP8 where `_scaled_mm` takes it."""
    n, rates = sizes.matmul, {}
    left, right = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    one = torch.ones((), device=device)
    fp8 = [x.to(torch.float8_e4m3fn) for x in (left, right)]
    for name, product in (
        ("bf16", lambda: left @ right.t()),
        ("fp8", lambda: torch._scaled_mm(fp8[0], fp8[1].t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)),
    ):
        if name == "fp8" and VARIANTS[-1].missing(device):
            continue
        rates[name] = 2 * n**3 / seconds_of(product, device, 3, 10) / 1e12
    return rates


def row(what: str, side: str, load: str, **numbers: Any) -> dict[str, Any]:
    """A line of the table; columns that do not apply are empty."""
    columns = ("batch", "step_ms", "samples/s", "TFLOP/s", "MFU", "peak_GiB", "note")
    return {"what": what, "side": side, "load": load} | {column: numbers.get(column) for column in columns}


def largest_that_fits(samples: int, measure: Callable[[int], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """`measure` with `samples`, or half as many, and again, until they fit into memory."""
    while True:
        try:
            return measure(samples)
        except torch.OutOfMemoryError:
            if samples == 1:
                return {"note": "out of memory with one sample"}
        release_memory(device)
        samples //= 2


Grid = tuple[int, int, int]
Stepper = Callable[[int, Grid], Callable[[], object]]
"""From a number of samples and their frames, rows and columns of patches: a training step."""


def training(
    model: ModelConfig, grid: Grid, sizes: Sizes, device: torch.device, peak_tflops: float, build: Callable[[], Stepper]
) -> dict[str, Any]:
    """Numbers of a training step with as many samples as `sizes.tokens` allows, or as fit."""
    stepper = build()
    tokens = grid[0] * grid[1] * grid[2]

    def measure(samples: int) -> dict[str, Any]:
        step = stepper(samples, grid)
        memory_peak_bytes(device)  # from here on
        seconds = seconds_of(step, device, sizes.warmup, sizes.steps)
        rate = training_flops(model, [tokens] * samples) / seconds / 1e12
        return {
            "batch": samples,
            "step_ms": 1000 * seconds,
            "samples/s": samples / seconds,
            "TFLOP/s": rate,
            "MFU": rate / peak_tflops,
            "peak_GiB": memory_peak_bytes(device) / 2**30,
        }

    return largest_that_fits(max(sizes.tokens // tokens, 1), measure, device)


def our_stepper(model: ModelConfig, variant: Variant, topology: Topology) -> Stepper:
    """An encoder and its optimizer as the trainer has them."""
    encoder = sharded_encoder(model, variant, topology)
    optimizer = EncoderOptimizer(encoder, OptimizerConfig())

    def stepper(samples: int, grid: Grid) -> Callable[[], None]:
        inputs = batch(samples, grid, model.patch_size, topology.device)

        def step() -> None:
            encoder(*inputs).pooled.square().mean().backward()
            optimizer.step(1e-4)
            optimizer.zero_grad()

        return step

    return stepper


def reference_stepper(model: ModelConfig, attention: str, device: torch.device) -> Stepper:
    """The Hugging Face model as the reference trains it: fp32 weights under bf16 autocast, padded layout, fused AdamW."""
    from onevision_encoder import OneVisionEncoderConfig, OneVisionEncoderModel

    config = OneVisionEncoderConfig(**to_published_config(model), attn_implementation=attention)
    encoder = OneVisionEncoderModel(config).to(device)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-4, fused=device.type == "cuda")

    def stepper(samples: int, grid: Grid) -> Callable[[], None]:
        frames, rows, columns = grid
        shape = [samples, 3, frames, rows * model.patch_size, columns * model.patch_size]
        pixels = torch.randn([n for i, n in enumerate(shape) if i != 2 or n > 1], device=device)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                pooled = encoder(pixels).pooler_output
            pooled.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return stepper


Case = tuple[str, Callable[[], dict[str, Any]]]
"""`what, side, load`, and its measurement."""


def cases(sizes: Sizes, topology: Topology, peak: float) -> Iterator[Case]:
    """Everything to measure, the most interesting first."""
    for name in sizes.models:
        model, first = preset(name), name == sizes.models[0]
        for variant in VARIANTS:
            build = functools.cache(partial(our_stepper, model, variant, topology))  # one encoder for all its loads
            for load, grid in sizes.workloads:
                measure: Callable[[], dict[str, Any]] = partial(
                    training, model, grid, sizes, topology.device, peak, build
                )
                if variant.missing(topology.device):
                    measure = partial(dict, note=NOT_HERE)
                yield f"{name}, {variant.name}, {load}", measure
        for attention in ("eager", "sdpa"):
            build = functools.cache(partial(reference_stepper, model, attention, topology.device))
            for load, grid in sizes.workloads:
                measure = partial(training, model, grid, sizes, topology.device, peak, build)
                yield f"{name}, reference layout {attention}, {load}", measure
        if first:
            for rate in (0.1, 1.0):
                measure = partial(bank_step, rate, sizes, topology)
                yield f"bank {sizes.classes} x {sizes.width}, cosface, rate {rate}", measure
            yield from rope_cases(model, sizes, topology.device)
            yield from compiled_cases(model, name, sizes, topology, peak)


def compiled_cases(model: ModelConfig, name: str, sizes: Sizes, topology: Topology, peak: float) -> Iterator[Case]:
    """Compiled blocks on the first load only: a minute of compilation each."""
    load, grid = sizes.workloads[0]
    for variant in sizes.compiled:
        compiled = replace(variant, name=f"{variant.name} compiled", compile=True)
        build = partial(our_stepper, model, compiled, topology)
        if compiled.missing(topology.device) is None:
            measure = partial(training, model, grid, sizes, topology.device, peak, build)
            yield f"{name}, {compiled.name}, {load}", measure


def bank_step(rate: float, sizes: Sizes, topology: Topology) -> dict[str, Any]:
    """A step of a bank: forward, backward, norm, clip, optimizer."""
    config = BankConfig(
        num_classes=sizes.classes, sample_rate=rate, gemm="bf16", optimizer="rows" if rate < 1 else "dense"
    )
    bank = ConceptBank(config, dim=sizes.width, head="bench", seed=0, topology=topology)
    optimizer = BankOptimizer({"bench": bank}, betas=(0.9, 0.999), eps=1e-8, world_group=topology.world_group)
    embeddings = torch.randn(sizes.bank_batch, sizes.width, device=topology.device, requires_grad=True)
    labels = torch.randint(sizes.classes, (sizes.bank_batch, 8), device=topology.device)
    numbers = iter(range(1_000_000))

    def step() -> None:
        number = next(numbers)
        optimizer.begin(number)
        bank(embeddings, labels, step=number, batch_sizes=[sizes.bank_batch]).backward()
        optimizer.clip(optimizer.grad_norms(), 5.0)
        optimizer.step(1e-3)
        optimizer.zero_grad()

    memory_peak_bytes(topology.device)
    seconds = seconds_of(step, topology.device, sizes.warmup, sizes.steps)
    return {
        "batch": sizes.bank_batch,
        "step_ms": 1000 * seconds,
        "samples/s": sizes.bank_batch / seconds,
        "peak_GiB": memory_peak_bytes(topology.device) / 2**30,
    }


def rope_cases(model: ModelConfig, sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Rotating a query, forward and backward: megatron-core's plain formula, and Transformer Engine's fused kernel.

    The fused kernel knows one angle a position of the sequence: the tokens of all samples as one sequence give it one each.
    """
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    head = model.hidden_size // model.num_heads
    angles = rotary_angles(torch.randint(0, 16, (sizes.tokens, 3), device=device), head, 1e4, "rotation")
    shape = (sizes.tokens, 1, model.num_heads, head)
    query = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)

    def unfused() -> dict[str, Any]:
        def rotate() -> None:
            _apply_rotary_pos_emb_bshd(query, angles[:, None, None], rotary_interleaved=True).sum().backward()

        return {"step_ms": 1000 * seconds_of(rotate, device, 3, 10)}

    def fused() -> dict[str, Any]:
        if VARIANTS[1].missing(device):
            return {"note": NOT_HERE}
        from megatron.core.extensions.transformer_engine import fused_apply_rotary_pos_emb

        def rotate() -> None:
            fused_apply_rotary_pos_emb(query, angles[:, None, None], interleaved=True).sum().backward()

        return {"step_ms": 1000 * seconds_of(rotate, device, 3, 10)}

    yield f"rotary positions, unfused, {sizes.tokens} tokens", unfused
    yield f"rotary positions, fused, {sizes.tokens} tokens", fused


def run(
    device: torch.device, sizes: Sizes, budget_s: float, say: Callable[[str], None]
) -> tuple[list[dict], list[str]]:
    """Measure until the budget is spent: rows of the table, and notes."""
    begin, rows, left_out = time.monotonic(), [], []
    with world(device) as topology:
        rates = matmul_rates(sizes, device)
        for kind, rate in rates.items():
            rows.append(row("matmul", kind, f"{sizes.matmul} squared", **{"TFLOP/s": rate}))
        for name, measure in cases(sizes, topology, rates["bf16"]):
            if time.monotonic() - begin > budget_s:
                left_out.append(name)
                continue
            what, side, load = name.split(", ", 2)
            try:
                numbers = measure()
            except Exception as error:  # one broken case must not cost the others their turn on a rented machine
                numbers = {"note": f"FAILED {type(error).__name__}: {str(error).splitlines()[0]}"}
            rows.append(row(what, side, load, **numbers))
            release_memory(device)
            say(f"{time.monotonic() - begin:5.0f} s  {name}: {rows[-1]}")
    missing = {variant.name: variant.missing(device) for variant in VARIANTS}
    notes = [f"{name}: {reason}." for name, reason in missing.items() if reason]
    notes += [f"Left out, for want of time: {'; '.join(left_out)}."] if left_out else []
    return rows, notes


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs")
    parser.add_argument("--budget-s", type=float, default=540, help="start no case after this many seconds")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="report without its ending")
    options = parser.parse_args()
    device = choose_device(options.device, 0)
    console = Console(soft_wrap=True)
    sizes = TINY if options.tiny else Sizes()
    rows, notes = run(device, sizes, options.budget_s, lambda line: console.print(line, markup=False, highlight=False))
    command = f"python -m benchmarks.gpu_bench --device {options.device}{' --tiny' if options.tiny else ''}"
    text = write_report(options.output, "Training speed", command, device, rows, notes)
    console.print(text, markup=False, highlight=False)
    sys.exit(any(str(row["note"]).startswith("FAILED") for row in rows))


if __name__ == "__main__":
    main()
