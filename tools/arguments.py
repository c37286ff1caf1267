"""Command-line arguments that several tools share: their types and checks."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_ovenc.config import ConfigError


def positive(text: str) -> int:
    """A whole number from 1 on, for `type=` of an argument: argparse names the argument where it is not."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


positive.__name__ = "positive number"  # argparse says "invalid positive number value: '0'"


def check_makeable(output: Path) -> None:
    """Before the work: an output directory that is there and can be written, or can be made.

    Raises:
        ConfigError: it is a file, or is or would be in a place that cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file: give a new directory")
    place = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(f"--output {output} cannot be made: {place} is no directory that can be written")
