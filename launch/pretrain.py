"""What the launcher runs on every rank: train one configuration.

    python -m launch.submit --hostfile hostfiles/sixteen_nodes --config configs/large_video.yaml   # by DeepSpeed's launcher, say
    torchrun --nproc_per_node 8 -m launch.pretrain --config configs/large_video.yaml --set train.seed=1
    python -m launch.pretrain --config configs/demo_cpu.yaml                       # one process

Exit codes: 0 finished; 75 stopped on request with a checkpoint, can be continued; 2 wrong configuration; 69 another job has the
run directory; 1 failed.
The run directory's exit_status.json says the same, because some launchers lose exit codes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ovenc.train.exit_codes import EXIT_CONFIG, EXIT_FINISHED, EXIT_IN_USE, EXIT_STOPPED
from megatron_ovenc.train.faults import StopRequests

if TYPE_CHECKING:
    from megatron_ovenc.config import RunConfig
    from megatron_ovenc.parallel.topology import Launch


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
    # Before torch is imported, which takes seconds: a run that is told to stop while it starts stops with a checkpoint, too.
    with StopRequests() as stop:
        return checked(options.config, options.overrides, stop)


def checked(path: str, overrides: Sequence[str], stop: StopRequests) -> int:
    """Train if nothing is known to be wrong; returns the exit code."""
    from eval.in_training_data import evaluation_data
    from megatron_ovenc.config import ConfigError, load
    from megatron_ovenc.parallel.topology import Launch
    from megatron_ovenc.train.preflight import check_run
    from megatron_ovenc.train.run_lock import RunInUse

    try:
        launch = Launch.from_environment()
        config = load(path, overrides)
        check_run(config, launch.world_size)
        evaluation_data(config)
    except ValueError as error:
        # On every rank: what is wrong may be wrong on one host only.
        rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
        print(f"error: {error}" if rank == "0" else f"error (rank {rank}): {error}", file=sys.stderr)
        return EXIT_CONFIG
    try:
        return train(config, launch, stop)
    except ConfigError as error:  # found only with all ranks together
        print(f"error (rank {launch.rank}): {error}", file=sys.stderr)
        return EXIT_IN_USE if isinstance(error, RunInUse) else EXIT_CONFIG


def train(config: RunConfig, launch: Launch, stop: StopRequests) -> int:
    """Train a checked configuration and leave its exit status; returns the exit code."""
    # megatron-core takes seconds to import; errors should not
    import torch.distributed as dist

    from eval.in_training import TrainingExaminer
    from megatron_ovenc.train.build import launch_trainer
    from megatron_ovenc.train.exit_status import ExitStatus
    from megatron_ovenc.train.run_lock import WAIT_S, RunLock

    run_dir = Path(config.run_dir)
    lock = RunLock(run_dir)
    if launch.rank == 0:
        lock.take(WAIT_S)
    status = ExitStatus(run_dir, launch.rank)
    status.begin()
    with (
        status.failures(),
        launch_trainer(config, launch, status, stop) as trainer,
        status.failures(lambda: trainer.state.step),
    ):
        trainer.examine = TrainingExaminer(
            config,
            trainer.state.encoder,
            trainer.sharding,
            trainer.topology,
            trainer.metrics.say,
            alive=lambda: trainer.heartbeat.note("evaluation", trainer.state.step),
        )
        outcome = trainer.train()
        if launch.rank == 0:  # all is saved; what is closed afterwards may take long, or be killed
            status.end(outcome, trainer.state.step)
        # All ranks: none ends, by which a launcher might end the others, before that is written.
        dist.barrier(group=trainer.topology.host_group)
    lock.release()
    return EXIT_FINISHED if outcome == "finished" else EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main())
