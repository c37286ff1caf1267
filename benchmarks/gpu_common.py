"""What the check and the benchmark of a GPU share: kinds of layers, a world of one rank, batches, reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from benchmarks.machine import versions
from megatron_ovenc.config import PRESETS, Fp8Config, ModelConfig, ParallelConfig
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts, random_values
from megatron_ovenc.parallel.device import environment, prepare_device
from megatron_ovenc.parallel.fsdp import ShardedEncoder
from megatron_ovenc.parallel.requirements import requirement_problems
from megatron_ovenc.parallel.topology import Launch, Topology, build_topology, init_world


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A way to compute the same encoder."""

    name: str
    layers: Literal["sdpa", "te", "fp8_torch"]
    recipe: Literal["auto"] | None = None
    compile: bool = False

    def model(self, model: ModelConfig) -> ModelConfig:
        """`model` with this variant's layers."""
        return replace(model, layers=self.layers)

    def parallel(self) -> ParallelConfig:
        """bf16, one rank."""
        return ParallelConfig(precision="bf16", fp8=Fp8Config(recipe=self.recipe), compile=self.compile)

    def missing(self, device: torch.device) -> str | None:
        """Why it cannot run here, in a sentence; None if it can."""
        problems = requirement_problems(self.model(ModelConfig()), self.parallel(), environment(device.type))
        return next(iter(problems), None)


BF16 = Variant(name="sdpa bf16", layers="sdpa")
VARIANTS = (
    BF16,
    Variant(name="te bf16", layers="te"),
    Variant(name="te FP8", layers="te", recipe="auto"),
    Variant(name="fp8_torch", layers="fp8_torch"),
)


def preset(name: str) -> ModelConfig:
    """A named size."""
    sizes: dict[str, Any] = {**PRESETS[name]}
    return ModelConfig(**sizes)


@contextmanager
def world(device: torch.device) -> Iterator[Topology]:
    """A world of this process alone, over NCCL on a GPU."""
    prepare_device(device)
    init_world(Launch(rank=0, world_size=1, local_rank=0), device, 600)
    try:
        yield build_topology(1, 0, 1, device)
    finally:
        dist.destroy_process_group()


def sharded_encoder(model: ModelConfig, variant: Variant, topology: Topology) -> Encoder:
    """An encoder as the trainer wraps it, with random weights."""
    encoder = Encoder(variant.model(model), variant.parallel(), topology)
    fill_parameters(encoder, parameter_layouts(encoder, topology), topology, random_values(0, model.init_std))
    encoder.to(topology.device)
    if variant.compile:
        encoder.compile_blocks()
    ShardedEncoder(encoder, encoder.block.layers, topology, zero=2, precision="bf16")
    return encoder


def batch(
    samples: int, grid: Sequence[int], patch: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pictures or clips, raw, as packed patches, positions and offsets.

    Args:
        grid: frames, rows and columns of patches.
    """
    positions = torch.cartesian_prod(*(torch.arange(n, device=device) for n in grid)).repeat(samples, 1).int()
    patches = torch.randint(0, 256, (len(positions), 3 * patch**2), device=device, dtype=torch.uint8)
    tokens = len(positions) // samples
    return patches, positions, torch.arange(samples + 1, dtype=torch.int32) * tokens


def write_report(
    stem: Path, title: str, command: str, device: torch.device, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> str:
    """Write `<stem>.json` and `<stem>.md`; returns the Markdown.

    Args:
        rows: alike in their keys, which become columns.
    """
    facts = versions(device)
    columns = list(rows[0]) if rows else []
    lines = [
        f"# {title}",
        "",
        f"`{command}`",
        "",
        ", ".join(f"{key} {value}" for key, value in facts.items()),
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(_show(row[column]) for column in columns) + " |" for row in rows),
        "",
        *notes,
    ]
    text = "\n".join(lines).rstrip() + "\n"
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".json").write_text(
        json.dumps({"versions": facts, "rows": list(rows), "notes": list(notes)}, indent=1)
    )
    return text


def _show(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
