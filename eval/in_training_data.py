"""What a run's encoder is judged on while it is trained: apart from `in_training`, which takes seconds to import."""

from __future__ import annotations

from pathlib import Path

from eval.datasets import Dataset, read_folders
from megatron_ovenc.config import ConfigError, RunConfig


def evaluation_data(config: RunConfig) -> tuple[Dataset, Dataset] | None:
    """What the encoder is judged on, or None where `eval.every` is 0.

    Raises:
        ConfigError: a folder cannot be used, or has fewer samples than `eval.k`.
    """
    wanted = config.eval
    if wanted.every == 0:
        return None
    assert wanted.train is not None and wanted.val is not None, "checked by config.check"
    try:
        train, val = read_folders(Path(wanted.train), Path(wanted.val), wanted.kind)
    except ValueError as error:
        raise ConfigError(f"eval.train={wanted.train}, eval.val={wanted.val}: {error}") from error
    if len(train.samples) < wanted.k:
        raise ConfigError(
            f"eval.train={wanted.train} has {len(train.samples)} samples, fewer than eval.k={wanted.k} neighbours; lower eval.k"
        )
    return train, val
