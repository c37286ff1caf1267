"""Whether a GPU computes what the CPU computes, before anything is trained on it.

    make gpu-check                                              # writes benchmarks/gpu-check.{json,md}; under ten minutes
    python -m benchmarks.gpu_check --device cpu --tiny --output /some/where/check      # the same code in toy sizes, anywhere

    golden       recorded outputs of the reference, in fp32, bf16 and FP8, of every kind of layers
    ragged       samples of unequal lengths, every attention kernel, against the block-wise one in fp32 on the CPU
    loss         200 steps of the real trainer on a small noisy task, equal and ragged: FP8 ends within 2 % of bf16
    resume       an asynchronous checkpoint over NCCL, resumed by other layers
    waiting      forward, bank and backward of a step without a host synchronisation
    tests        tests/gpu, and the bank's Triton kernels against float64

Exits with 1 if something failed. What the machine cannot run is listed as such, not passed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from benchmarks.gpu_common import BF16, VARIANTS, Variant, preset, world, write_report
from benchmarks.synthetic import CLASSES, NoisyClasses
from megatron_ovenc.config import (
    BankConfig,
    CheckpointConfig,
    HeadConfig,
    LogConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TrainConfig,
)
from megatron_ovenc.model.attention import Segments, attend, attend_in_blocks, available_kernels
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts
from megatron_ovenc.model.published import published_values
from megatron_ovenc.parallel.device import choose_device, refuse_synchronisation
from megatron_ovenc.parallel.fsdp import ShardedEncoder
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.build import assemble
from megatron_ovenc.train.weights import read_weights
from tests.model.golden import CASES, golden_batch

OUTPUT = Path("benchmarks/gpu-check")
GOLDEN = Path("tests/fixtures/golden")


class NotHereError(Exception):
    """A check that ran, and can say nothing on this machine."""


Outcome = tuple[float | None, float | None, str]
"""A measured number, its limit, and words."""
FP32_ERROR, BF16_ERROR, FP8_ERROR = 1e-4, 0.03, 0.12
"""Largest distance from the recorded outputs, relative to their norm."""


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance over length, on the host."""
    actual, expected = actual.float().cpu(), expected.float().cpu()
    return ((actual - expected).norm() / expected.norm()).item()


def golden(variant: Variant, precision: str, limit: float, topology: Topology) -> Outcome:
    """Worst distance of tokens and embeddings over all recorded inputs."""
    model, published = read_weights(GOLDEN / "tiny")
    parallel = ParallelConfig(precision=precision, fp8=variant.parallel().fp8)  # type: ignore[arg-type]
    encoder = Encoder(variant.model(model), parallel, topology)
    layouts = parameter_layouts(encoder, topology)
    fill_parameters(encoder, layouts, topology, published_values(published, model, str(GOLDEN)))
    encoder.to(topology.device)
    ShardedEncoder(encoder, encoder.block.layers, topology, 2, parallel.precision)
    cases, worst = load_file(GOLDEN / "tiny" / "cases.safetensors"), 0.0
    for case in CASES:
        patches, positions, offsets = golden_batch(cases, case, model.patch_size)
        with torch.no_grad():
            output = encoder(patches.to(topology.device), positions.to(topology.device), offsets)
        tokens = relative(output.last_hidden, cases[f"{case}.last_hidden_state"].flatten(0, 1))
        worst = max(worst, tokens, relative(output.pooled, cases[f"{case}.pooler_output"]))
    return worst, limit, "distance from the reference"


def ragged_attention(device: torch.device) -> Outcome:
    """The kernel that this machine chooses for ragged batches, forward and backward, in bf16."""
    generator = torch.Generator().manual_seed(0)
    lengths = (100, 257, 33, 512)
    offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    exact = [torch.randn(sum(lengths), 4, 64, generator=generator).requires_grad_() for _ in range(3)]
    ours = [x.detach().to(device, torch.bfloat16).requires_grad_() for x in exact]
    segments = Segments.of(offsets, device)
    q, k, v = exact
    expected, actual = attend_in_blocks(q, k, v, lengths, lengths), attend(*ours, segments, segments)
    expected.square().sum().backward()
    actual.float().square().sum().backward()
    pairs = [(actual, expected), *((a.grad, e.grad) for a, e in zip(ours, exact, strict=True))]
    worst = max(relative(a, e) for a, e in pairs)  # type: ignore[arg-type]
    return worst, 0.02, f"kernels here: {', '.join(sorted(available_kernels())) or 'blocks only'}"


def run_config(run_dir: Path, variant: Variant, steps: int, asynchronous: bool = False) -> RunConfig:
    """A small run of the real trainer."""
    bank = BankConfig(num_classes=CLASSES, positives=1, logit_scale=16.0, gradient="mean")
    return RunConfig(
        run_dir=str(run_dir),
        model=variant.model(preset("tiny")),
        heads=(
            HeadConfig(name="image", global_batch_size=32, bank=bank, source=SourceConfig(kind="image", shards=())),
        ),
        train=TrainConfig(steps=steps, seed=3),
        parallel=variant.parallel(),
        optimizer=OptimizerConfig(lr=2e-3),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=min(10, steps)),
        checkpoint=CheckpointConfig(every=10_000, asynchronous=asynchronous),
        log=LogConfig(every=1_000_000, tensorboard=False, bank_every=0),
    )


def train(
    config: RunConfig, topology: Topology, steps: int, *, ragged: bool = False, save: bool = False
) -> list[float]:
    """Losses of a run's next steps."""
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    with assemble(config, topology, {"image": NoisyClasses(32, (2, 3), 14, ragged=ragged)}) as trainer:
        for _ in range(steps):
            trainer.step()
        if save:
            trainer.saver.save(final=True)
    lines = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss/image"] for line in lines][-steps:]


def loss_curve(variant: Variant, ragged: bool, steps: int, topology: Topology, baseline: dict[bool, float]) -> Outcome:
    """Distance of the mean of the last tenth of the losses from that of bf16, which runs first."""
    with tempfile.TemporaryDirectory() as folder:
        losses = train(run_config(Path(folder), variant, steps), topology, steps, ragged=ragged)
    tail = max(steps // 10, 1)
    last = sum(losses[-tail:]) / tail
    expected = baseline.setdefault(ragged, last)
    return abs(last / expected - 1), 0.02, f"loss {losses[0]:.3f} -> {last:.4f}, bf16 {expected:.4f}"


def resume(first: Variant, second: Variant, topology: Topology) -> Outcome:
    """A run saved by one kind of layers goes on with another: distance of the next loss."""
    with tempfile.TemporaryDirectory() as folder:
        train(run_config(Path(folder), first, 20, asynchronous=True), topology, 10, save=True)
        as_first = train(run_config(Path(folder), first, 20), topology, 1)[0]
        as_second = train(run_config(Path(folder), second, 20), topology, 1)[0]
    return abs(as_second / as_first - 1), 0.05, f"next loss {as_first:.4f} and {as_second:.4f}"


def waiting(variant: Variant, topology: Topology) -> Outcome:
    """Forward, bank and backward of a step; a synchronisation raises on a GPU, and cannot be seen on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        config = run_config(Path(folder), variant, 20)
        with assemble(config, topology, {"image": NoisyClasses(32, (2, 3), 14, ragged=True)}) as trainer:
            trainer.step()
            trainer.state.bank_optimizer.begin(trainer.state.step)
            with refuse_synchronisation(topology.device):
                trainer._forward_backward()
    if topology.device.type == "cpu":
        raise NotHereError("a host synchronisation cannot be seen on a CPU")
    return None, None, "no host synchronisation"


def tests() -> Outcome:
    """Tests that want a GPU, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/gpu", "tests/concept_bank/test_kernels.py"]
    answer = subprocess.run(command, capture_output=True, text=True)
    last = (answer.stdout.strip().splitlines() or ["no output"])[-1]
    if answer.returncode:
        raise AssertionError(f"{last}: {answer.stdout[-1500:]}")
    return None, None, last


def checks(topology: Topology, tiny: bool) -> Iterator[tuple[str, str | None, Callable[[], Outcome]]]:
    """(name, why it cannot run here or None, check)."""
    device, steps = topology.device, 12 if tiny else 200
    yield "golden, sdpa fp32", None, partial(golden, BF16, "fp32", FP32_ERROR, topology)
    for variant in VARIANTS:
        limit = BF16_ERROR if variant.name.endswith("bf16") else FP8_ERROR
        yield f"golden, {variant.name}", variant.missing(device), partial(golden, variant, "bf16", limit, topology)
    yield "ragged attention", None, partial(ragged_attention, device)
    baseline: dict[bool, float] = {}
    for ragged, ending in ((False, ""), (True, ", ragged")):
        for variant in VARIANTS:
            curve = partial(loss_curve, variant, ragged, steps, topology, baseline)
            yield f"loss, {variant.name}{ending}", variant.missing(device), curve
    for variant in VARIANTS:
        missing = variant.missing(device)
        yield f"resume, sdpa bf16 then {variant.name}", missing, partial(resume, BF16, variant, topology)
        yield f"waiting, {variant.name}", missing, partial(waiting, variant, topology)
    if not tiny:
        yield "tests", None, tests


def run(device: torch.device, tiny: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """All checks: rows of the table."""
    rows = []
    # fp32 means fp32 here, not TF32.
    torch.set_float32_matmul_precision("highest")
    with world(device) as topology:
        for name, missing, check in checks(topology, tiny):
            begin = time.monotonic()
            value: float | None = None
            limit: float | None = None
            detail, outcome = missing, "not on this machine"
            if missing is None:
                try:
                    value, limit, detail = check()
                    outcome = "ok" if value is None or limit is None or value <= limit else "FAILED"
                except NotHereError as error:
                    detail = str(error)
                except Exception as error:  # the other checks are worth having, too
                    detail, outcome = f"{type(error).__name__}: {error}".replace("\n", " ")[:800], "FAILED"
            seconds = time.monotonic() - begin
            rows.append(
                {
                    "check": name,
                    "outcome": outcome,
                    "value": value,
                    "limit": limit,
                    "seconds": seconds,
                    "detail": detail,
                }
            )
            say(f"{outcome:20} {name} ({seconds:.1f} s) {detail}")
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="few steps and no tests, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="report without its ending")
    options = parser.parse_args()
    device = choose_device(options.device, 0)
    console = Console(soft_wrap=True)
    rows = run(device, options.tiny, lambda line: console.print(line, markup=False, highlight=False))
    command = f"python -m benchmarks.gpu_check --device {options.device}{' --tiny' if options.tiny else ''}"
    write_report(options.output, "What a GPU computes", command, device, rows, [])
    console.print(f"{options.output}.md", markup=False, highlight=False)
    sys.exit(any(row["outcome"] == "FAILED" for row in rows))


if __name__ == "__main__":
    main()
