"""The concept bank against the reference's algorithm, on two ranks of one thread each, in one process group and one run.

    python -m benchmarks.concept_bank                    # prints the table; about three minutes and 18 GB
    python -m benchmarks.concept_bank --write            # and writes benchmarks/concept_bank.{md,json}

A step is forward, backward, global norm, clip and optimizer, its gradients freed. Both sides take turns within a case, and the
median of their steps counts. Memory is what a step adds to the resident set at its peak, on the rank where it is largest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from rich.console import Console

from benchmarks.machine import PeakMemory, machine, resident_peak
from benchmarks.reference_bank import ReferenceBank
from megatron_ovenc.concept_bank import BankOptimizer, ConceptBank
from megatron_ovenc.config.tree import BankConfig
from megatron_ovenc.parallel.topology import Topology, build_topology

RANKS, BATCH, SLOTS, DIM = 2, 256, 8, 512
OUTPUT = Path("benchmarks/concept_bank.md")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One side of one case."""

    case: str
    side: str
    seconds: float
    """Median of a step."""
    forward: float
    backward: float
    optimizer: float
    added_mb: float
    """What a step adds to the resident set, MB."""
    total_gb: float
    """Peak of the resident sets of all ranks together, GB."""


class Side:
    """Something that can take a step: three callables, timed one by one."""

    def __init__(self, name: str, forward: Callable[[int], torch.Tensor], optimize: Callable[[], None]) -> None:
        self.name, self._forward, self._optimize = name, forward, optimize
        self.times: list[tuple[float, float, float]] = []

    def step(self, number: int) -> None:
        dist.barrier()
        marks = [time.perf_counter()]
        loss = self._forward(number)
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        self._optimize()
        marks.append(time.perf_counter())
        self.times.append((marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]))


def batch(classes: int, step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's embeddings and labels."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    embeddings = torch.randn(BATCH // RANKS, DIM, generator=generator, requires_grad=True)
    return embeddings, torch.randint(classes, (BATCH // RANKS, SLOTS), generator=generator)


def our_side(name: str, config: BankConfig, topology: Topology) -> Side:
    bank = ConceptBank(config, dim=DIM, head="h", seed=0, topology=topology)
    optimizer = BankOptimizer({"h": bank}, betas=(0.9, 0.999), eps=1e-8, world_group=topology.world_group)

    def forward(step: int) -> torch.Tensor:
        optimizer.begin(step)
        return bank(*batch(config.num_classes, step, topology.rank), step=step, batch_sizes=[BATCH // RANKS] * RANKS)

    def optimize() -> None:
        optimizer.clip(optimizer.grad_norms(), 5.0)
        optimizer.step(1e-3)
        optimizer.zero_grad()

    return Side(name, forward, optimize)


def reference_side(config: BankConfig, topology: Topology) -> Side:
    owned = config.num_classes // RANKS
    weight = torch.randn(owned, DIM, generator=torch.Generator().manual_seed(topology.rank)) * 0.01
    bank = ReferenceBank(
        weight,
        sample_rate=config.sample_rate,
        margin=config.margin,
        threshold=config.filter_threshold,
        scale=config.logit_scale,
    )
    adamw = torch.optim.AdamW(bank.parameters(), lr=1e-3, weight_decay=0.05, fused=True)

    def optimize() -> None:
        torch.nn.utils.clip_grad_norm_(bank.parameters(), 5.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return Side("reference's algorithm", lambda step: bank(*batch(config.num_classes, step, topology.rank)), optimize)


def run_case(case: str, sides: Sequence[Side], steps: int) -> list[Row]:
    """Take turns; the first step of a side warms it up."""
    for number in range(steps + 1):
        for side in sides:
            side.step(number)
    rows = []
    for side in sides:
        with PeakMemory() as peak:
            side.step(steps + 1)
        added = torch.tensor([float(peak.bytes)])
        dist.all_reduce(added, op=dist.ReduceOp.MAX)
        total = torch.tensor([float(resident_peak())])
        dist.all_reduce(total)
        timed = side.times[1 : steps + 1]
        forward, backward, optimizer = (statistics.median(part) for part in zip(*timed, strict=True))
        rows.append(
            Row(
                case=case,
                side=side.name,
                seconds=statistics.median(sum(parts) for parts in timed),
                forward=forward,
                backward=backward,
                optimizer=optimizer,
                added_mb=added.item() / 1e6,
                total_gb=total.item() / 1e9,
            )
        )
    return rows


BASE = BankConfig(num_classes=200_000, sample_rate=0.1)


def against_reference(topology: Topology, steps: int) -> list[Row]:
    """The reference's algorithm and ours on the same banks."""
    rows, whole = replace(BASE, optimizer="rows"), replace(BASE, num_classes=50_000, sample_rate=1.0)
    sampled = [
        reference_side(BASE, topology),
        our_side("ours, dense", BASE, topology),
        our_side("ours, rows", rows, topology),
        our_side("ours, rows, bf16 products", replace(rows, gemm="bf16"), topology),
        our_side("ours, rows, bf16 moments", replace(rows, moments="bf16"), topology),
    ]
    results = run_case("200,000 x 512, rate 0.1", sampled, steps)
    del sampled
    everything = [
        reference_side(whole, topology),
        our_side("ours", whole, topology),
        our_side("ours, bf16 products", replace(whole, gemm="bf16"), topology),
    ]
    return results + run_case("50,000 x 512, rate 1.0", everything, steps)


def by_size(topology: Topology, steps: int, classes: int) -> list[Row]:
    """A bank of its own in fresh processes, with as many drawn rows as BASE draws."""
    rate = BASE.sample_rate * BASE.num_classes / classes
    config = replace(BASE, num_classes=classes, sample_rate=rate, optimizer="rows")
    return run_case(f"{classes:,} x 512, rate {rate:g}, alone", [our_side("ours, rows", config, topology)], steps)


def report(rows: Sequence[Row]) -> str:
    """Markdown: measured rows, each with its ratio to the first of its case."""
    lines = [
        "| bank | side | step, s | forward | backward | optimizer | a step adds, MB | time against reference | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.case, row)
        times = "" if other is row else f"{other.seconds / row.seconds:.1f} x faster"
        memory = "" if other is row else f"1/{other.added_mb / row.added_mb:.1f}"
        lines.append(
            f"| {row.case} | {row.side} | {row.seconds:.3f} | {row.forward:.3f} | {row.backward:.3f} | {row.optimizer:.3f} "
            f"| {row.added_mb:.0f} | {times} | {memory} |"
        )
    small, large = rows[-2], rows[-1]
    lines += [
        "",
        f"{large.case}: a step takes {large.seconds / small.seconds:.2f} times that of the bank with 200,000 rows, which draws as "
        f"many; both ranks together peak at {large.total_gb:.1f} GB.",
    ]
    return "\n".join(lines)


def on_rank(rank: int, store: str, part: Callable[..., list[Row]], arguments: tuple[int, ...], result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    rows = part(build_topology(RANKS, rank, 1, torch.device("cpu")), *arguments)
    if rank == 0:
        Path(result).write_text(json.dumps([asdict(row) for row in rows]))
    dist.destroy_process_group()


def on_ranks(part: Callable[..., list[Row]], *arguments: int) -> list[Row]:
    """Run a part of the table in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        result = f"{folder}/rows.json"
        multiprocessing.spawn(on_rank, (f"{folder}/store", part, arguments, result), nprocs=RANKS)
        return [Row(**row) for row in json.loads(Path(result).read_text())]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each side")
    parser.add_argument("--largest", type=int, default=2_000_000, help="rows of the large bank")
    parser.add_argument("--write", action="store_true", help=f"write {OUTPUT} and its JSON")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = on_ranks(against_reference, options.steps)
    for classes in (BASE.num_classes, options.largest):
        rows += on_ranks(by_size, options.steps, classes)
    table = report(rows)
    Console(soft_wrap=True).print(f"{machine()}\n\n{table}", markup=False, highlight=False)
    if options.write:
        head = (
            "# The concept bank against the reference's algorithm\n\n"
            f"`python -m benchmarks.concept_bank --write` on {machine()}.\n\n"
            f"{RANKS} gloo ranks of one thread, global batch {BATCH}, {SLOTS} positives a sample, fp32 unless told otherwise. "
            "What is compared and how: `benchmarks/concept_bank.py`, `benchmarks/reference_bank.py`. A CPU rounds "
            "the results of bf16 products to bf16, which a GPU does not.\n\n"
        )
        OUTPUT.write_text(head + table + "\n")
        OUTPUT.with_suffix(".json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
