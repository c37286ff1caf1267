"""From operations and bytes to seconds, on stated hardware and stated assumptions.

The encoder's sharding traffic is assumed to hide behind arithmetic, all other collectives not at all; loading hides behind both.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ovenc.config import RunConfig
from megatron_ovenc.model.flops import training_flops
from tools.plan.hardware import GPUS_A_NODE, Assumptions, Gpu
from tools.plan.step import TracedStep, head_views


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """A step of one GPU in seconds, and what it achieves."""

    seconds: dict[str, float]
    """What each part would take alone: `encoder`, `bank`, `optimizers`, `tensor`, `banks' collectives`, `sharding`, `loading`."""
    resources: dict[str, str]
    """What each part is bound by: compute, HBM, NVLink, network or host decode."""
    step_s: float
    bottleneck: str
    """The resource that the step waits for longest."""
    flops: float
    """Useful operations of the encoder on one GPU a step; recomputation not counted."""
    mfu: float
    samples_per_s: float
    """All heads and ranks."""
    frames_per_step: float
    """Frames of clips that a loading rank decodes a step."""
    pictures_per_step: float
    """Pictures that a loading rank decodes a step."""
    link_bytes: dict[str, float]
    """Bytes that a GPU receives a step over NVLink and over the network."""


def estimate(config: RunConfig, step: TracedStep, world: int, gpu: Gpu, assumed: Assumptions) -> Speed:
    """Expected time of a traced step."""
    flops = encoder_flops(config, world)
    seconds, resources = {"encoder": _encoder_seconds(config, flops, gpu, assumed)}, {"encoder": "compute"}
    seconds["banks"], resources["banks"] = _bank_seconds(config, step, gpu, assumed), "compute"
    seconds["optimizers"], resources["optimizers"] = (
        _optimizer_bytes(config, step) / (1e9 * gpu.hbm_gb_s * assumed.hbm),
        "HBM",
    )
    link_bytes = {"NVLink": 0.0, "network": 0.0}
    for (operation, group), size in step.sent.items():
        received, link, rate = message(operation, group, size, config.parallel.tensor, world, gpu, assumed)
        part = {"tensor": "tensor collectives", "sharding": "sharding"}.get(group, "banks' collectives")
        seconds[part] = seconds.get(part, 0.0) + received / rate
        resources[part] = link
        link_bytes[link] += received
    frames, pictures = decoded(config, world)
    workers = max(config.data.workers, 1)
    seconds["loading"] = (frames / assumed.frames_a_worker + pictures / assumed.pictures_a_worker) / workers
    resources["loading"] = "host decode"
    hidden = {part: seconds.get(part, 0.0) for part in ("sharding", "loading")}
    exposed = {part: value for part, value in seconds.items() if part not in hidden}
    step_s = max(sum(exposed.values()), *hidden.values())
    longest = max(hidden, key=lambda part: hidden[part])
    if hidden[longest] <= sum(exposed.values()):
        longest = max(exposed, key=lambda part: exposed[part])
    samples = sum(head.global_batch_size for head in config.heads)
    return Speed(
        seconds=seconds,
        resources=resources,
        step_s=step_s,
        bottleneck=resources[longest],
        flops=flops,
        mfu=flops / step_s / (1e12 * gpu.bf16_tflops),
        samples_per_s=samples / step_s,
        frames_per_step=frames,
        pictures_per_step=pictures,
        link_bytes=link_bytes,
    )


def encoder_flops(config: RunConfig, world: int) -> float:
    """Useful operations of the encoder on one GPU a step, all views in their shares."""
    total = 0.0
    for head in config.heads:
        views = head_views(head.source, config.model.patch_size)
        each = sum(share * training_flops(config.model, [tokens]) for share, tokens in views)
        total += each * head.global_batch_size
    return total / world


def message(
    operation: str, group: str, size: float, tensor: int, world: int, gpu: Gpu, assumed: Assumptions
) -> tuple[float, str, float]:
    """Bytes that a rank receives of a message over the slowest link of its group's ring, that link, and its bytes a second."""
    ranks = {"tensor": tensor, "world": world}.get(group, world // tensor)
    received = size * (ranks - 1) / ranks * (2 if operation == "all-reduce" else 1)
    stride = 1 if group in ("tensor", "world") else tensor
    inside = 1e9 * gpu.nvlink_gb_s * assumed.nvlink
    if ranks * stride <= GPUS_A_NODE:
        return received, "NVLink", inside
    # The group's ranks of a node take in what the other nodes have, each through its own port.
    neighbours = max(GPUS_A_NODE // stride, 1)
    outside = 1e9 * gpu.network_gb_s * assumed.network * neighbours
    return received, "network", min(inside, outside) if neighbours > 1 else outside


def decoded(config: RunConfig, world: int) -> tuple[float, float]:
    """Frames of clips and pictures that a loading rank decodes a step; of a clip all frames, whatever the view."""
    loading = world // config.parallel.tensor
    frames = sum(h.global_batch_size * h.source.clip_frames for h in config.heads if h.source.kind == "video")
    pictures = sum(h.global_batch_size for h in config.heads if h.source.kind == "image")
    return frames / loading, pictures / loading


def _encoder_seconds(config: RunConfig, flops: float, gpu: Gpu, assumed: Assumptions) -> float:
    if config.parallel.precision == "fp32":
        return flops * (4 / 3 if config.parallel.recompute else 1) / (1e12 * gpu.fp32_tflops * assumed.fp32)
    share = fp8_share(config) if gpu.fp8_tflops else 0.0
    rate = 1e12 * gpu.bf16_tflops * assumed.bf16
    seconds = (1 - share) * flops / rate
    if share:
        seconds += share * flops / (1e12 * (gpu.fp8_tflops or 0) * assumed.fp8)
    return seconds * (4 / 3 if config.parallel.recompute else 1)


def fp8_share(config: RunConfig) -> float:
    """Share of the encoder's operations that FP8 products do, on samples of 1024 patches."""
    model, fp8 = config.model, config.parallel.fp8
    if model.layers == "sdpa" or (model.layers == "te" and fp8.recipe is None):
        return 0.0
    tokens = 1024
    blocks = model.num_layers - 2 * fp8.first_last_bf16
    linear = 6 * blocks * (4 * model.hidden_size**2 + 2 * model.hidden_size * model.ffn_size) * tokens
    products = 2 / 3 if fp8.weight_gradient == "high" else 1
    return products * linear / training_flops(model, [tokens])


def _bank_seconds(config: RunConfig, step: TracedStep, gpu: Gpu, assumed: Assumptions) -> float:
    """Four products of [N, D] and [M, D] a micro-batch: statistics, and in backward the shares and two gradients."""
    total = 0.0
    for head, load in zip(config.heads, step.heads, strict=True):
        flops = 8 * load.gathered * load.competing * config.model.hidden_size * config.train.grad_accumulation
        half = head.bank.gemm == "bf16"
        total += flops / (1e12 * (gpu.bf16_tflops * assumed.bf16 if half else gpu.fp32_tflops * assumed.fp32))
    return total


def _optimizer_bytes(config: RunConfig, step: TracedStep) -> float:
    """Read and written: weight and two moments of every number, and its gradient read; of a bank the rows that are touched."""
    total = 28.0 * step.shard
    for head, load in zip(config.heads, step.heads, strict=True):
        draws = min(load.competing * config.train.grad_accumulation, load.owned)
        stepped = draws if head.bank.optimizer == "rows" else load.owned
        moment = 2 if head.bank.moments == "bf16" else 4
        total += config.model.hidden_size * (stepped * (8 + 4 * moment) + draws * 4)
    return total
