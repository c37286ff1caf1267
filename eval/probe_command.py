"""What the two commands that train probes have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from eval import cli

if TYPE_CHECKING:
    # Processes that decode clips import the command's module; they have no use for torch.
    import torch

    from eval.features import Features
    from eval.probe_training import ProbeConfig, ProbeKind, ProbeRun


def evaluate(
    train: Features, val: Features, config: ProbeConfig, *, device: torch.device, console: Console | None = None
) -> tuple[ProbeRun, ...]:
    """`train_probes` with a progress bar.

    Args:
        train, val: from `eval.features.extract`, same encoder and view.
        config: how to train.
        device: where to compute.
        console: where progress is shown.

    Raises:
        ValueError: no training sample has features.
    """
    from eval.probe_training import train_probes

    with Progress(console=console, disable=console is None) as progress:
        task = progress.add_task("probe epochs", total=config.epochs)
        return train_probes(train, val, config, device=device, on_epoch=lambda: progress.advance(task))


def add_options(parser: argparse.ArgumentParser, learning_rates: Sequence[float]) -> None:
    """How probes are trained."""
    parser.add_argument("--lr", type=float, nargs="+", default=list(learning_rates), help="peak learning rates")
    parser.add_argument(
        "--weight-decay", type=float, nargs="+", default=[0.0], help="one probe for every pair of rate and decay"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--probe-batch-size", type=int, default=16, help="clips of a step of the probes, over all ranks"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the probes' weights and the order of clips")


def build(options: argparse.Namespace, kind: ProbeKind) -> cli.Measure:
    """What the command measures. Raises ValueError where an option cannot be used."""
    from eval.probe_training import ProbeConfig

    config = ProbeConfig(
        kind=kind,
        learning_rates=tuple(options.lr),
        weight_decays=tuple(options.weight_decay),
        epochs=options.epochs,
        batch_size=options.probe_batch_size,
        seed=options.seed,
    )

    def measure(train: Features, val: Features, device: torch.device) -> tuple[dict[str, object], list[cli.Row]]:
        console = Console(stderr=True) if train.ranks.is_main else None
        return _report(evaluate(train, val, config, device=device, console=console), config)

    return measure


def _report(runs: tuple[ProbeRun, ...], config: ProbeConfig) -> tuple[dict[str, object], list[cli.Row]]:
    """The JSON and the lines of the table."""
    from eval.probe_training import select

    described, rows = [], []
    for run in runs:
        name = f"lr {run.lr:g}, decay {run.weight_decay:g}"
        last = cli.Row(name=f"{name}, last epoch", scores=run.last)
        best = cli.Row(name=f"{name}, best epoch ({run.best_epoch})", scores=run.best)
        rows += [last, best]
        described.append(
            {
                "lr": run.lr,
                "weight_decay": run.weight_decay,
                "last_epoch": {"epoch": len(run.epochs), **last.as_json()},
                "best_epoch": {"epoch": run.best_epoch, **best.as_json()},
                "top1_by_epoch": [scores.top1 for scores in run.epochs],
            }
        )
    chosen = described[runs.index(select(runs))]
    return {"selected": chosen, "runs": described, "probe": asdict(config)}, rows
