"""How the parts of a run tell a person something."""

from __future__ import annotations

from typing import Protocol


class Say(Protocol):
    """Speaks on the main rank, and is silent on the others."""

    def __call__(self, message: str, alarm: str = "") -> None:
        """Say `message`, as it is; `alarm`, a few words in capitals, is shown loudly before it."""
