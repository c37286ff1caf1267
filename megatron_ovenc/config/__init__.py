"""Run configuration: `load(path, overrides) -> RunConfig`, `check(config, world_size)`, `dump(config)`."""

from megatron_ovenc.config.checks import check
from megatron_ovenc.config.loader import ConfigError, dump, load, parse
from megatron_ovenc.config.tree import (
    PRESETS,
    BankConfig,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    Fp8Config,
    HeadConfig,
    LogConfig,
    ModelConfig,
    ModesConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TrainConfig,
)

__all__ = [
    "PRESETS",
    "BankConfig",
    "CheckpointConfig",
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "Fp8Config",
    "HeadConfig",
    "LogConfig",
    "ModelConfig",
    "ModesConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RunConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TrainConfig",
    "check",
    "dump",
    "load",
    "parse",
]
