"""Everything that can be known to fail before any process group exists and any GPU is touched.

Imports no megatron-core: a wrong key is told in a second or two, on every rank alike.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ovenc.concept_bank.centres import check_centres
from megatron_ovenc.config import ConfigError, LogConfig, RunConfig, check, load
from megatron_ovenc.data.check import check_source
from megatron_ovenc.parallel.device import environment
from megatron_ovenc.parallel.requirements import Environment, requirement_problems
from megatron_ovenc.train.checkpoint import checkpoint_path, checkpoint_steps
from megatron_ovenc.train.weights import read_model

_SHAPE_KEYS = ("hidden_size", "ffn_size", "num_layers", "num_heads", "patch_size", "norm", "gelu", "rope", "rope_theta")
"""Keys of `model` by which weights fit or do not."""

_PROBE = 4096
"""Bytes that a run directory must have room for."""
_START_OVER = "to start over give another run_dir or remove its checkpoints"


def check_run(config: RunConfig, world_size: int, *, computes_here: bool = True) -> None:
    """Everything that can be known to fail, before any process group exists and any GPU is touched.

    Args:
        config: the run.
        world_size: number of ranks.
        computes_here: False on a machine that only submits the run: what its GPU lacks does not matter.

    Raises:
        ConfigError: with the key to change.
    """
    check(config, world_size)
    here = environment(config.parallel.device) if computes_here else None
    if here is not None and (
        problems := [*requirement_problems(config.model, config.parallel, here), *_log_problems(config.log, here)]
    ):
        raise ConfigError("this machine cannot run the configuration:\n" + "\n".join(f"  - {p}" for p in problems))
    for head in config.heads:
        try:
            check_source(head, config.data, patch_size=config.model.patch_size)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    run_dir = Path(config.run_dir)
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir, buffering=0) as probe:
            probe.write(bytes(_PROBE))  # a full disk takes files, but nothing into them
    except OSError as error:
        raise ConfigError(f"run_dir={config.run_dir} cannot be written: {error}") from error
    steps = checkpoint_steps(run_dir / "checkpoints")
    if steps and not config.checkpoint.resume:
        raise ConfigError(
            f"checkpoint.resume is false, but run_dir={run_dir} has checkpoints up to step {steps[-1]}, with which those of a "
            f"fresh start would mix; {_START_OVER}, or set checkpoint.resume=true to go on"
        )
    for key, last in (("steps", config.train.steps), ("stop_after", config.train.stop_after)):
        if steps and last is not None and last < steps[-1]:
            raise ConfigError(
                f"train.{key}={last} lies before step {steps[-1]}, from which run_dir={run_dir} would be resumed: "
                f"nothing would be trained; raise train.{key}, or {_START_OVER}"
            )
    if steps:
        _check_same_model(checkpoint_path(run_dir / "checkpoints", steps[-1]), config)
    else:
        _check_initial_weights(config)


def _log_problems(log: LogConfig, here: Environment) -> Iterator[str]:
    # By what is installed, not by what can be imported: wandb's own output directories are named `wandb`, too.
    if log.wandb is not None and not any(importlib.metadata.distributions(name="wandb")):
        yield "log.wandb needs the package wandb, which is not installed; `pip install wandb`, or remove the key"
    if log.profile is not None and log.profile.memory and here.capability is None:
        yield "log.profile.memory records the memory of a GPU, and this run would compute on a CPU; set it to false"


def _check_initial_weights(config: RunConfig) -> None:
    """Refuse initial weights that are not there or have another shape. A resumed run reads none."""
    for head in config.heads:
        if head.bank.init is not None:
            try:
                check_centres(head.bank.init, head.bank.num_classes, config.model.hidden_size, head.name)
            except ValueError as error:
                raise ConfigError(str(error)) from error
    if config.model.init is None:
        return
    ours, theirs = config.model, read_model(Path(config.model.init))
    for key in _SHAPE_KEYS:
        if getattr(ours, key) != getattr(theirs, key):
            raise ConfigError(
                f"model.init={ours.init} has {key}={getattr(theirs, key)}, the configuration model.{key}={getattr(ours, key)}"
            )


def _check_same_model(path: Path, config: RunConfig) -> None:
    """Refuse a checkpoint whose tensors are not this run's."""
    try:
        saved = load(path / "config.yaml")
    except ConfigError:
        return  # a damaged checkpoint; resuming names it and takes the one before
    ours, theirs = _tensor_shapes(config), _tensor_shapes(saved)
    different = [
        f"{key}: {theirs.get(key)} there, {ours.get(key)} here"
        for key in ours | theirs
        if ours.get(key) != theirs.get(key)
    ]
    if different:
        raise ConfigError(
            f"{path} belongs to another model ({'; '.join(different)}); change these keys back, or {_START_OVER}"
        )


def _tensor_shapes(config: RunConfig) -> dict[str, Any]:
    model = config.model
    shapes = {f"model.{key}": getattr(model, key) for key in _SHAPE_KEYS}
    for head in config.heads:
        shapes[f"heads.{head.name}.bank.num_classes"] = head.bank.num_classes
        shapes[f"heads.{head.name}.bank.learn_scale"] = head.bank.learn_scale
        if head.bank.learn_scale:
            shapes[f"heads.{head.name}.bank.loss"] = head.bank.loss  # only one of them learns a bias
    return shapes
