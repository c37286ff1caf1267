"""Files of one JSON object a line, which programs read while a run writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_ovenc.train.say import Say

_LONGEST = 1 << 20
"""Bytes. No line comes near."""


class JsonLines:
    """Appends lines. A disk without room costs lines, which is told once until one succeeds again, but not the run.

    Args:
        path: made with the first line; what it holds is kept, but for a last line that a killed run left unfinished.
        say: tells a person.
    """

    def __init__(self, path: Path, say: Say) -> None:
        self.path, self._say = path, say
        self._whole, self._told = False, False

    def append(self, record: Mapping[str, Any]) -> None:
        """One line more."""
        try:
            if not self._whole:
                cut_torn_line(self.path)
            self._whole = False
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self._whole, self._told = True, False
        except OSError as error:
            with suppress(OSError):  # half a line is of no use to who reads meanwhile
                cut_torn_line(self.path)
            if not self._told:
                self._say(f"{error}; training goes on", alarm=f"{self.path.name} CANNOT BE WRITTEN")
            self._told = True


def cut_torn_line(path: Path) -> None:
    """Take off a last line that was not finished: the next one would be glued to it."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        start = max(0, file.seek(0, os.SEEK_END) - _LONGEST)
        file.seek(start)
        file.truncate(start + file.read().rfind(b"\n") + 1)
