"""What the launcher runs on every rank: train one configuration.

    deepspeed --hostfile hostfiles/two_nodes --master_addr 10.0.0.1 --no_local_rank \\
        --module launch.pretrain --config configs/large.yaml
    torchrun --nproc_per_node 8 -m launch.pretrain --config configs/large.yaml --set train.seed=1
    python -m launch.pretrain --config configs/demo_cpu.yaml                       # one process

Exit codes: 0 finished; 75 stopped on request with a checkpoint, can be continued; 2 wrong configuration; 1 failed.
The run directory's exit_status.json says the same, because some launchers lose exit codes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.in_training_data import evaluation_data
from megatron_ovenc.config import ConfigError, load
from megatron_ovenc.parallel.topology import Launch
from megatron_ovenc.train.faults import EXIT_STOPPED, write_exit_status
from megatron_ovenc.train.preflight import check_run


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train an encoder against its concept banks.")
    parser.add_argument("--config", required=True, help="YAML run configuration")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key"
    )
    parser.add_argument("--local_rank", type=int, help="accepted because deepspeed passes it; LOCAL_RANK counts")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    options = arguments(argv)
    try:
        launch = Launch.from_environment()
        config = load(options.config, options.overrides)
        check_run(config, launch.world_size)
        evaluation_data(config)
    except ValueError as error:
        # On every rank: what is wrong may be wrong on one host only.
        rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
        print(f"error: {error}" if rank == "0" else f"error (rank {rank}): {error}", file=sys.stderr)
        return 2
    # megatron-core takes seconds to import; errors should not
    from eval.in_training import TrainingExaminer
    from megatron_ovenc.train.build import launch_trainer

    run_dir, trainer = Path(config.run_dir), None
    if launch.rank == 0:
        write_exit_status(run_dir, "running", 0)  # whoever kills this run leaves the truth behind
    try:
        with launch_trainer(config, launch) as trainer:
            trainer.examine = TrainingExaminer(
                config, trainer.state.encoder, trainer.sharding, trainer.topology, trainer.metrics.say
            )
            outcome = trainer.train()
    except BaseException as error:
        step = trainer.state.step if trainer else 0
        write_exit_status(run_dir, "failed", step, launch.rank, f"{type(error).__name__}: {error}")
        if isinstance(error, ConfigError):
            print(f"error (rank {launch.rank}): {error}", file=sys.stderr)
            return 2
        raise
    if launch.rank == 0:
        write_exit_status(run_dir, outcome, trainer.state.step)
    return 0 if outcome == "finished" else EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main())
