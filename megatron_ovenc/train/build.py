"""From a checked configuration to a Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_ovenc.concept_bank import BankOptimizer, ConceptBank
from megatron_ovenc.config import ConfigError, RunConfig, dump
from megatron_ovenc.data.errors import BadSampleLog
from megatron_ovenc.data.loader import HeadLoader
from megatron_ovenc.model.attention import available_kernels, choose_kernel
from megatron_ovenc.model.encoder import Encoder
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts, random_values
from megatron_ovenc.model.published import published_values
from megatron_ovenc.parallel.device import choose_device, compute_capability, device_name, prepare_device
from megatron_ovenc.parallel.fsdp import ShardedEncoder
from megatron_ovenc.parallel.requirements import resolve_recipe
from megatron_ovenc.parallel.topology import Launch, Topology, build_topology, init_world
from megatron_ovenc.train.checkpoint import Checkpointer, checkpoint_path, checkpoint_steps, finish_publishing
from megatron_ovenc.train.checkpoint_reader import CheckpointError
from megatron_ovenc.train.exit_status import ExitStatus
from megatron_ovenc.train.faults import STOP_FILE, StopRequests
from megatron_ovenc.train.metrics import MetricsWriter
from megatron_ovenc.train.profiling import StepProfiler
from megatron_ovenc.train.state import BatchSource, EncoderOptimizer, TrainState
from megatron_ovenc.train.trainer import Trainer
from megatron_ovenc.train.watchdog import Heartbeat, Watchdog
from megatron_ovenc.train.weights import read_weights


def build_state(
    config: RunConfig, topology: Topology, sources: Mapping[str, BatchSource]
) -> tuple[TrainState, ShardedEncoder]:
    """Encoder, banks and optimizers on this rank's device. The order of wrapping:

    1. build on the host, parameters empty
    2. record how tensor parallelism cut each parameter
    3. fill with values that do not depend on the layout
    4. move to the device
    5. compile blocks: after recomputation, which is part of a layer, and before sharding, whose hooks stay outside
    6. shard over the data group
    7. optimizer over the shards
    """
    encoder = Encoder(config.model, config.parallel, topology)
    layouts = parameter_layouts(encoder, topology)
    resumed = config.checkpoint.resume and bool(checkpoint_steps(Path(config.run_dir) / "checkpoints"))
    if config.model.init is None or resumed:  # what a checkpoint is about to overwrite need not be read
        values = random_values(config.train.seed, config.model.init_std)
    else:
        values = published_values(read_weights(Path(config.model.init))[1], config.model, config.model.init)
    fill_parameters(encoder, layouts, topology, values)
    encoder.to(topology.device)
    if config.parallel.compile:
        encoder.compile_blocks()
    sharding = ShardedEncoder(encoder, encoder.block.layers, topology, config.parallel.zero, config.parallel.precision)
    width, seed = config.model.hidden_size, config.train.seed
    sizes = {h.name: replace(h.bank, init=None) if resumed else h.bank for h in config.heads}
    banks = {n: ConceptBank(bank, dim=width, head=n, seed=seed, topology=topology) for n, bank in sizes.items()}
    optimizer = config.optimizer
    state = TrainState(
        encoder=encoder,
        layouts=layouts,
        encoder_optimizer=EncoderOptimizer(encoder, optimizer),
        banks=banks,
        bank_optimizer=BankOptimizer(banks, betas=optimizer.betas, eps=optimizer.eps, world_group=topology.world_group),
        sources=sources,
        topology=topology,
    )
    return state, sharding


def build_sources(config: RunConfig, topology: Topology) -> dict[str, BatchSource]:
    """A loader a head. Only tensor rank 0 of a data rank ever starts its workers."""
    log = BadSampleLog(Path(config.run_dir) / "bad_samples.jsonl")
    return {
        head.name: HeadLoader(
            head,
            config.data,
            patch_size=config.model.patch_size,
            seed=config.train.seed,
            grad_accumulation=config.train.grad_accumulation,
            data_rank=topology.data_rank,
            data_size=topology.data,
            bad_log=log,
            device=topology.device,
        )
        for head in config.heads
    }


def resume(config: RunConfig, state: TrainState, checkpointer: Checkpointer, metrics: MetricsWriter) -> None:
    """Continue from the newest checkpoint that is whole; a damaged one is named and the one before it taken."""
    agreed: list[list[int]] = [[]]
    if state.topology.is_main and config.checkpoint.resume:
        finish_publishing(checkpointer.directory)
        agreed = [checkpoint_steps(checkpointer.directory)[::-1]]
    dist.broadcast_object_list(agreed, src=0, group=state.topology.host_group)  # all ranks try the same ones
    reasons: list[str] = []
    for step in agreed[0]:
        path = checkpoint_path(checkpointer.directory, step)
        try:
            state.load_scalars(checkpointer.load(path, state.tensors()))
        except CheckpointError as error:
            reasons.append(str(error))
            metrics.say(f"{error}; trying the one before", alarm="CHECKPOINT NOT USABLE")
            continue
        metrics.say(f"resumed from {path}: data {state.topology.data} x tensor {state.topology.tensor}")
        return
    if agreed[0]:
        raise ConfigError(
            f"no checkpoint in {checkpointer.directory} can be resumed; remove them to start over. "
            + "; ".join(reasons)
        )


def describe_layers(config: RunConfig, device: torch.device) -> str:
    """What `model.layers` and `parallel.fp8` come to on this device, for the console."""
    model, parallel = config.model, config.parallel
    recipe = resolve_recipe(parallel.fp8.recipe, compute_capability(device))
    fp8 = "tensorwise" if model.layers == "fp8_torch" else recipe
    dtype = torch.bfloat16 if parallel.precision == "bf16" else torch.float32
    kernel = choose_kernel(False, device.type, dtype, available_kernels())
    attention = "Transformer Engine" if model.layers == "te" else kernel
    return f"layers {model.layers}, {parallel.precision}, FP8 {fp8 or 'off'}; attention of ragged batches: {attention}"


@contextmanager
def assemble(
    config: RunConfig,
    topology: Topology,
    sources: Mapping[str, BatchSource] | None = None,
    *,
    stop: StopRequests | None = None,
    heartbeat: Heartbeat | None = None,
) -> Iterator[Trainer]:
    """A Trainer on an existing topology, resumed if there is something to resume; closes everything on leaving.

    Args:
        config: checked by `check_run`.
        topology: ranks, groups, device.
        sources: batches by head name instead of those that the configuration's sources describe.
        stop: entered already, to know of requests that came earlier.
        heartbeat: the one that a watchdog looks at.
    """
    run_dir = Path(config.run_dir)
    heartbeat = heartbeat or Heartbeat()
    with ExitStack() as stack:
        if topology.is_main:
            (run_dir / "config.yaml").write_text(dump(config))
        if sources is None:
            sources = build_sources(config, topology)
        for source in sources.values():
            stack.callback(source.close)
        metrics = MetricsWriter(
            run_dir,
            config.log,
            total_steps=config.train.steps,
            world=topology.world,
            device=device_name(topology.device),
            enabled=topology.is_main,
        )
        stack.callback(metrics.close)
        state, sharding = build_state(config, topology, sources)
        heartbeat.note("start-up")
        checkpointer = Checkpointer(run_dir / "checkpoints", config.checkpoint, dump(config), config.parallel.timeout_s)
        stack.callback(checkpointer.close)
        heartbeat.saving = lambda: checkpointer.busy
        metrics.say(describe_layers(config, topology.device))
        resume(config, state, checkpointer, metrics)
        metrics.begin(state.step, topology)
        stop = stop or stack.enter_context(StopRequests())
        if topology.is_main:
            stop.file = run_dir / STOP_FILE
        profiler = StepProfiler(config.log.profile, run_dir, topology.rank, topology.device)
        stack.callback(profiler.close)
        yield Trainer(config, state, sharding, checkpointer, metrics, stop, heartbeat, profiler)
        heartbeat.note("end")


@contextmanager
def launch_trainer(config: RunConfig, launch: Launch, status: ExitStatus, stop: StopRequests) -> Iterator[Trainer]:
    """Join the world that the launcher started, and assemble a Trainer in it, under a watchdog."""
    device = choose_device(config.parallel.device, launch.local_rank)
    prepare_device(device)
    timeout_s = config.parallel.timeout_s
    init_world(launch, device, timeout_s)
    topology = build_topology(launch.world_size, launch.rank, config.parallel.tensor, device, timeout_s)
    status.join(topology.host_group)
    heartbeat, hang_s = Heartbeat(), config.train.hang_timeout_s
    watchdog = Watchdog(heartbeat, Path(config.run_dir), status, topology, timeout_s=hang_s, patient_s=timeout_s)
    with watchdog:
        with assemble(config, topology, stop=stop, heartbeat=heartbeat) as trainer:
            yield trainer
        # Not after an error: peers may sit in a collective that this rank will never join, and teardown would wait for them.
        dist.destroy_process_group()
