"""Attentive probe on a frozen encoder: train on one folder of clips, judge on another.

    python -m eval.attentive_probe --model output/packed_model --train clips/train --val clips/val --output probe.json
    python -m eval.attentive_probe ... --view codec --tokens 256 --epochs 30 --lr 1e-4 1e-3 --cache output/features

Clips are decoded and encoded once; then one probe a learning rate is trained on the same features. The JSON and the table
give each rate's last and best epoch. `selected` is the rate with the highest top-1 after the last epoch: among several,
it was chosen on the held-out clips. Clips that cannot be read are named: held-out ones count as wrong, training ones are skipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from eval import cli

if TYPE_CHECKING:
    # Processes that decode clips import the command's module; they have no use for torch.
    from eval.features import Features
    from eval.probe_training import ProbeConfig, ProbeRun


def evaluate(
    train: Features, val: Features, config: ProbeConfig, *, device: str = "auto", console: Console | None = None
) -> tuple[ProbeRun, ...]:
    """Train and judge one probe a learning rate, in the order of `config.learning_rates`.

    Args:
        train, val: from `eval.features.extract`, same encoder and view.
        config: how to train.
        device: auto, cpu or cuda.
        console: where progress is shown.

    Raises:
        ValueError: no training clip has features, or there is no such device.
    """
    from eval.probe_training import train_probes
    from megatron_ovenc.parallel.device import choose_device

    with Progress(console=console, disable=console is None) as progress:
        task = progress.add_task("probe epochs", total=config.epochs)
        return train_probes(
            train, val, config, device=choose_device(device, 0), on_epoch=lambda: progress.advance(task)
        )


def select(runs: Sequence[ProbeRun]) -> ProbeRun:
    """The run with the highest top-1 after its last epoch; the first among equals."""
    return max(runs, key=lambda run: run.last.correct1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.attentive_probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_options(parser)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3], help="peak rates, one probe each")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--probe-batch-size", type=int, default=16, help="clips of a step of the probes")
    parser.add_argument("--seed", type=int, default=0, help="of the probes' weights and the order of clips")
    return cli.run(parser.parse_args(arguments), "attentive probe", _build)


def _build(options: argparse.Namespace) -> cli.Measure:
    from eval.probe_training import ProbeConfig

    config = ProbeConfig(
        learning_rates=tuple(options.lr),
        epochs=options.epochs,
        batch_size=options.probe_batch_size,
        seed=options.seed,
    )

    def measure(train: Features, val: Features) -> tuple[dict[str, object], list[cli.Row]]:
        runs = evaluate(train, val, config, device=options.device, console=Console(stderr=True))
        return _report(runs, config)

    return measure


def _report(runs: Sequence[ProbeRun], config: ProbeConfig) -> tuple[dict[str, object], list[cli.Row]]:
    """The JSON and the lines of the table."""
    described, rows = [], []
    for run in runs:
        last = cli.Row(name=f"lr {run.lr:g}, last epoch", scores=run.last)
        best = cli.Row(name=f"lr {run.lr:g}, best epoch ({run.best_epoch})", scores=run.best)
        rows += [last, best]
        described.append(
            {
                "lr": run.lr,
                "last_epoch": {"epoch": len(run.epochs), **last.as_json()},
                "best_epoch": {"epoch": run.best_epoch, **best.as_json()},
                "top1_by_epoch": [scores.top1 for scores in run.epochs],
            }
        )
    chosen = described[list(runs).index(select(runs))]
    return {"selected": chosen, "runs": described, "probe": asdict(config)}, rows


if __name__ == "__main__":
    sys.exit(main())
