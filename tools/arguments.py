"""Types of command-line arguments that several tools share."""

from __future__ import annotations


def positive(text: str) -> int:
    """A whole number from 1 on, for `type=` of an argument: argparse names the argument where it is not."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


positive.__name__ = "positive number"  # argparse says "invalid positive number value: '0'"
