"""A plan for a person, and for a program."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megatron_ovenc.config import RunConfig
from tools.plan.advice import Remedy, remedies
from tools.plan.fp8 import fp8_fitness
from tools.plan.hardware import GPUS, Assumptions
from tools.plan.memory import Memory, memory
from tools.plan.speed import Speed, estimate
from tools.plan.step import TracedStep, trace_step

PURPOSES = {
    "parameters": "parameters, fp32 shard",
    "gradients": "gradients, fp32",
    "moments": "AdamW moments, fp32 shard",
    "bank centres": "bank centres, fp32",
    "bank moments": "bank moments",
    "bank gradients": "bank gradients, competing rows",
    "gathered weights": "gathered weights",
    "sharding buffers": "FSDP buffers",
    "batches": "batches on the device",
    "activations": "activations kept for backward",
    "backward": "backward: recomputed, temporary",
    "bank step": "bank: logits chunk, temporary",
    "optimizer step": "optimizers: temporary",
    "other": "other",
}
"""Purposes of a trace, in the table's order."""
PHASES = ("forward", "bank", "backward", "optimizer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `python -m tools.plan` tells."""

    config: RunConfig
    world: int
    gpu: str
    assumed: Assumptions
    step: TracedStep
    memory: Memory
    other_policy: Memory
    """With the other value of parallel.recompute."""
    speed: Speed
    fp8: dict[str, str]
    remedies: tuple[Remedy, ...]
    """Where it does not fit."""

    def as_json(self) -> dict[str, Any]:
        """Bytes, seconds, counts."""
        return {
            "world": self.world,
            "gpu": self.gpu,
            "fits": self.memory.fits,
            "memory": {
                "phases": {phase: dict(purposes) for phase, purposes in self.step.phases.items()},
                "tensors": self.memory.tensors,
                "allowance": self.memory.allowance,
                "total": self.memory.total,
                "capacity": self.memory.capacity,
                f"total_with_recompute_{not self.config.parallel.recompute}".lower(): self.other_policy.total,
            },
            "messages": {f"{op}/{group}": size for (op, group), size in self.step.sent.items()},
            "speed": asdict(self.speed),
            "fp8": self.fp8,
            "assumptions": asdict(self.assumed),
            "remedies": [asdict(remedy) for remedy in self.remedies],
        }


def make_plan(config: RunConfig, world: int, gpu_name: str, assumed: Assumptions) -> Plan:
    """Plan a checked configuration."""
    gpu, parallel = GPUS[gpu_name], config.parallel
    step = trace_step(config, world)
    other = replace(config, parallel=replace(parallel, recompute=not parallel.recompute))
    needed = memory(config, step, world, gpu, assumed)
    return Plan(
        config=config,
        world=world,
        gpu=gpu_name,
        assumed=assumed,
        step=step,
        memory=needed,
        other_policy=memory(other, trace_step(other, world), world, gpu, assumed),
        speed=estimate(config, step, world, gpu, assumed),
        fp8=fp8_fitness(config, step.heads),
        remedies=() if needed.fits else tuple(remedies(config, world, gpu, assumed)),
    )


def show(plan: Plan) -> None:
    """Print tables."""
    console = Console(soft_wrap=True, highlight=False)
    parallel = plan.config.parallel
    recompute = str(parallel.recompute).lower()
    console.print(
        f"[bold]{plan.world} x {plan.gpu}[/]: data {plan.world // parallel.tensor} x tensor {parallel.tensor}, "
        f"zero {parallel.zero}, recompute {recompute}, {parallel.precision}, layers {plan.config.model.layers}"
    )
    console.print(_memory_table(plan))
    console.print(_verdict(plan))
    console.print(_speed_table(plan))
    for line in _facts(plan):
        console.print(line, markup=False)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}" if size >= 2**30 / 200 else "-" if size == 0 else "<0.01"


def _memory_table(plan: Plan) -> Table:
    table = Table(title="Memory of a GPU at the peak of each phase, GiB", title_justify="left")
    table.add_column("what")
    for phase in PHASES:
        table.add_column(phase, justify="right")
    for purpose, name in PURPOSES.items():
        sizes = [plan.step.phases[phase][purpose] for phase in PHASES]
        if any(sizes):
            table.add_row(name, *map(_gib, sizes))
    table.add_section()
    table.add_row("all tensors", *(_gib(plan.step.phases[phase].total()) for phase in PHASES))
    return table


def _verdict(plan: Plan) -> str:
    needed = plan.memory
    allowance = ", ".join(f"{name} {_gib(size)}" for name, size in needed.allowance.items())
    other = str(not plan.config.parallel.recompute).lower()
    verdict = "[bold green]fits[/]" if needed.fits else "[bold red]does not fit[/]"
    lines = [
        f"needs [bold]{_gib(needed.total)} GiB[/] of {_gib(needed.capacity)}: {verdict}",
        f"  tensors {_gib(needed.tensors)}; assumed: {allowance}",
        f"  with parallel.recompute={other} it would need {_gib(plan.other_policy.total)} GiB",
    ]
    if not needed.fits and not plan.remedies:
        lines.append("nothing that was tried would fit: take more GPUs, larger ones, or smaller batches")
    for remedy in plan.remedies:
        words = " ".join(f"--set {setting}" for setting in remedy.settings)
        cost = remedy.step_s / plan.speed.step_s - 1
        lines.append(f"would fit: {escape(words)}    ({_gib(remedy.memory)} GiB, step {cost:+.0%})")
    return "\n".join(lines)


def _speed_table(plan: Plan) -> Table:
    table = Table(title="Time of a step, expected", title_justify="left")
    for column in ("part", "bound by", "ms"):
        table.add_column(column, justify="right" if column == "ms" else "left")
    for part, seconds in plan.speed.seconds.items():
        table.add_row(part, plan.speed.resources[part], f"{1000 * seconds:.1f}")
    table.add_section()
    table.add_row("step", plan.speed.bottleneck, f"{1000 * plan.speed.step_s:.1f}", style="bold")
    return table


def _facts(plan: Plan) -> list[str]:
    speed, steps = plan.speed, plan.config.train.steps
    days = steps * speed.step_s / 86400
    loading = speed.step_s * max(plan.config.data.workers, 1)
    messages = ", ".join(f"{op} of {group} {size / 1e6:,.1f} MB" for (op, group), size in plan.step.sent.items())
    received = ", ".join(f"{link} {size / 1e6:,.1f} MB" for link, size in speed.link_bytes.items())
    heads = ", ".join(
        f"{h.name} {h.samples} samples of up to {h.longest} patches, {h.competing} of {h.owned} centres"
        for h in plan.step.heads
    )
    assumed = ", ".join(f"{name} {value:g}" for name, value in asdict(plan.assumed).items())
    return [
        f"expected: {speed.samples_per_s:,.0f} samples/s, MFU {speed.mfu:.0%}, {speed.flops / 1e12:,.1f} TFLOP a GPU and step; "
        f"{steps:,} steps in {days:,.1f} days, {24 * days * plan.world:,.0f} GPU-hours",
        "sharding hides behind arithmetic, other collectives do not; loading hides behind both",
        f"messages a step: {messages}",
        f"received by a GPU a step: {received}",
        f"loading, a data rank: {speed.frames_per_step / speed.step_s:,.0f} frames/s and "
        f"{speed.pictures_per_step / speed.step_s:,.0f} pictures/s, "
        f"{speed.frames_per_step / loading:,.0f} and {speed.pictures_per_step / loading:,.0f} a worker",
        f"micro-batch of a rank: {heads}",
        *(f"FP8 {recipe}: {verdict}" for recipe, verdict in plan.fp8.items()),
        f"assumed (change with --assume): {assumed}",
    ]
