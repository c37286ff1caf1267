"""Files of one JSON object a line, which programs read while a run writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ovenc.train.say import Say


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
            if not self._told:
                self._say(f"{error}; training goes on", alarm=f"{self.path.name} CANNOT BE WRITTEN")
            self._told = True


def cut_torn_line(path: Path) -> None:
    """Take off a last line that was not finished: the next one would be glued to it."""
    if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
