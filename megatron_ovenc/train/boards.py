"""Where metrics go besides metrics.jsonl: TensorBoard, and Weights & Biases if the configuration names a project.

<run_dir>/tensorboard/      event files
<run_dir>/wandb_id          id under which a restarted run continues at Weights & Biases
<run_dir>/wandb/            what is sent, or waits to be sent by `wandb sync`
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import yaml

from megatron_ovenc.config import ConfigError, LogConfig, WandbConfig


class Board(Protocol):
    """A place that draws numbers over steps."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""

    def close(self) -> None:
        """Flush what is not written yet."""


class TensorBoard:
    """Event files under `<run_dir>/tensorboard`."""

    def __init__(self, run_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One run there for all attempts here.

    Raises:
        ConfigError: the service does not take the run: no key, no network, no such project.
    """

    def __init__(self, run_dir: Path, config: WandbConfig) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=config.project,
                name=config.name or run_dir.resolve().name,
                entity=config.entity,
                mode=config.mode,
                id=_kept_id(run_dir / "wandb_id"),
                resume="allow",
                dir=str(run_dir),
                config=yaml.safe_load((run_dir / "config.yaml").read_text()),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"log.wandb: Weights & Biases refuses the run: {error}. Run `wandb login` on the first host, "
                "or set log.wandb.mode=offline"
            ) from error
        # Their own step may only grow; ours goes back to the last checkpoint when a run is resumed.
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        self._run.finish()


def open_boards(run_dir: Path, config: LogConfig) -> list[Board]:
    """The boards that a configuration asks for. The run directory holds its config.yaml already."""
    boards: list[Board] = [TensorBoard(run_dir)] if config.tensorboard else []
    return [*boards, WeightsAndBiases(run_dir, config.wandb)] if config.wandb else boards


def _kept_id(path: Path) -> str:
    if not path.exists():
        path.write_text(secrets.token_hex(4) + "\n")
    return path.read_text().strip()
