"""From a configuration to a Trainer: what is checked before any process group exists, and what is built after."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_ovenc.concept_bank import BankOptimizer, ConceptBank
from megatron_ovenc.config import ConfigError, RunConfig, check, dump, load
from megatron_ovenc.data.check import check_source
from megatron_ovenc.data.errors import BadSampleLog
from megatron_ovenc.data.loader import HeadLoader
from megatron_ovenc.model import Encoder
from megatron_ovenc.model.parameters import fill_parameters, parameter_layouts, random_values
from megatron_ovenc.model.published import published_values
from megatron_ovenc.parallel.device import choose_device, device_name, prepare_device
from megatron_ovenc.parallel.fsdp import ShardedEncoder
from megatron_ovenc.parallel.topology import Launch, Topology, build_topology, init_world
from megatron_ovenc.train.checkpoint import Checkpointer, CheckpointError, checkpoint_path, checkpoint_steps
from megatron_ovenc.train.faults import StopSignals
from megatron_ovenc.train.metrics import MetricsWriter
from megatron_ovenc.train.state import BatchSource, EncoderOptimizer, TrainState
from megatron_ovenc.train.trainer import Trainer
from megatron_ovenc.train.weights import read_model, read_weights

_SHAPE_KEYS = ("hidden_size", "ffn_size", "num_layers", "num_heads", "patch_size", "norm", "rope", "rope_theta")
"""Keys of `model` by which weights fit or do not."""


def check_run(config: RunConfig, world_size: int) -> None:
    """Everything that can be known to fail, before any process group exists and any GPU is touched.

    Raises:
        ConfigError: with the key to change.
    """
    check(config, world_size)
    for head in config.heads:
        try:
            check_source(head, patch_size=config.model.patch_size)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if head.bank.init is not None and not Path(head.bank.init).is_file():
            raise ConfigError(f"heads.{head.name}.bank.init={head.bank.init}: there is no such file")
    if config.model.init is not None:
        _check_init(config)
    run_dir = Path(config.run_dir)
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = run_dir / f".writable.{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"run_dir={config.run_dir} cannot be written: {error}") from error
    if config.checkpoint.resume:
        for step in checkpoint_steps(run_dir / "checkpoints")[-1:]:
            _check_same_model(checkpoint_path(run_dir / "checkpoints", step), config)


def _check_init(config: RunConfig) -> None:
    """Refuse initial weights of another shape."""
    ours, theirs = config.model, read_model(Path(str(config.model.init)))
    for key in _SHAPE_KEYS:
        if getattr(ours, key) != getattr(theirs, key):
            raise ConfigError(
                f"model.init={ours.init} has {key}={getattr(theirs, key)}, the configuration model.{key}={getattr(ours, key)}"
            )


def _check_same_model(path: Path, config: RunConfig) -> None:
    """Refuse a checkpoint whose tensors are not this run's."""
    saved = load(path / "config.yaml")
    ours, theirs = _tensor_shapes(config), _tensor_shapes(saved)
    different = [
        f"{key}: {theirs.get(key)} there, {ours.get(key)} here"
        for key in ours | theirs
        if ours.get(key) != theirs.get(key)
    ]
    if different:
        raise ConfigError(
            f"{path} belongs to another model ({'; '.join(different)}); change these keys back, give another run_dir, "
            "or set checkpoint.resume=false to start over"
        )


def _tensor_shapes(config: RunConfig) -> dict[str, Any]:
    model = config.model
    shapes = {f"model.{key}": getattr(model, key) for key in _SHAPE_KEYS}
    return shapes | {f"heads.{head.name}.bank.num_classes": head.bank.num_classes for head in config.heads}


def build_state(
    config: RunConfig, topology: Topology, sources: Mapping[str, BatchSource]
) -> tuple[TrainState, ShardedEncoder]:
    """Encoder, banks and optimizers on this rank's device. The order of wrapping:

    1. build on the host, parameters empty
    2. record how tensor parallelism cut each parameter
    3. fill with values that do not depend on the layout
    4. move to the device
    5. shard over the data group
    6. optimizer over the shards
    """
    encoder = Encoder(config.model, config.parallel, topology)
    layouts = parameter_layouts(encoder, topology)
    if config.model.init is None:
        values = random_values(config.train.seed, config.model.init_std)
    else:
        values = published_values(read_weights(Path(config.model.init))[1], config.model, config.model.init)
    fill_parameters(encoder, layouts, topology, values)
    encoder.to(topology.device)
    sharding = ShardedEncoder(encoder, encoder.block.layers, topology, config.parallel.zero, config.parallel.precision)
    width, seed = config.model.hidden_size, config.train.seed
    banks = {h.name: ConceptBank(h.bank, dim=width, head=h.name, seed=seed, topology=topology) for h in config.heads}
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
        )
        for head in config.heads
    }


def resume(config: RunConfig, state: TrainState, checkpointer: Checkpointer, metrics: MetricsWriter) -> None:
    """Continue from the newest checkpoint that is whole; a damaged one is named and the one before it taken."""
    steps = checkpoint_steps(checkpointer.directory)[::-1] if config.checkpoint.resume else []
    agreed = [steps]
    dist.broadcast_object_list(agreed, src=0, group=state.topology.host_group)  # all ranks try the same ones
    for step in agreed[0]:
        path = checkpoint_path(checkpointer.directory, step)
        try:
            state.load_scalars(checkpointer.load(path, state.tensors()))
        except CheckpointError as error:
            metrics.say(f"[bold red]DAMAGED CHECKPOINT[/] {error}; trying the one before")
            continue
        metrics.say(f"resumed from {path}: data {state.topology.data} x tensor {state.topology.tensor}")
        return
    if agreed[0]:
        raise ConfigError(
            f"no checkpoint in {checkpointer.directory} can be read; set checkpoint.resume=false to start over"
        )


@contextmanager
def assemble(
    config: RunConfig, topology: Topology, sources: Mapping[str, BatchSource] | None = None
) -> Iterator[Trainer]:
    """A Trainer on an existing topology, resumed if there is something to resume; closes everything on leaving.

    Args:
        config: checked by `check_run`.
        topology: ranks, groups, device.
        sources: batches by head name instead of those that the configuration's sources describe.
    """
    run_dir, save = Path(config.run_dir), config.checkpoint
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
        checkpointer = Checkpointer(run_dir / "checkpoints", save.keep_last, save.asynchronous, dump(config))
        stack.callback(checkpointer.close)
        resume(config, state, checkpointer, metrics)
        stop = stack.enter_context(StopSignals())
        yield Trainer(config, state, sharding, checkpointer, metrics, stop)


@contextmanager
def launch_trainer(config: RunConfig, launch: Launch) -> Iterator[Trainer]:
    """Join the world that the launcher started, and assemble a Trainer in it."""
    device = choose_device(config.parallel.device, launch.local_rank)
    prepare_device(device)
    init_world(launch, device, config.parallel.timeout_s)
    try:
        topology = build_topology(launch.world_size, launch.rank, config.parallel.tensor, device)
        with assemble(config, topology) as trainer:
            yield trainer
    finally:
        dist.destroy_process_group()
