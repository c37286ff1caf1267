"""What can be wrong with data, and the list in which every bad sample is named."""

from __future__ import annotations

import json
import logging
import os
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

logger = logging.getLogger(__name__)
_places: set[str] = set()
"""Where the loading code was caught failing in this process."""


class BadSample(Exception):
    """One sample cannot be used; the message says why. It is named, replaced and counted, and training goes on."""


class DataError(RuntimeError):
    """Too much of a head's data is bad to go on; the message says how much, where it is listed and what to change."""


def unexpected(error: Exception) -> str:
    """The reason of a sample on which the loading code failed as it never should; a place's first traceback is logged.

    One sample must not end a run, and after each resumption again; a defect that meets many exhausts `data.max_bad_share`.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} at {os.path.basename(frame.filename)}:{frame.lineno}"
    if place not in _places:
        _places.add(place)
        logger.error(
            "unexpected %s; its sample is replaced as bad, others without this traceback", place, exc_info=error
        )
    return f"unexpected {place}: {error}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRecord:
    """One line of `bad_samples.jsonl`."""

    head: str
    """Name of the head."""
    sample_id: str
    """The bad sample: shard path, `#`, key."""
    position: int
    """Place in the head's global order at which it came up."""
    reason: str
    """Why it cannot be used."""
    replaced_by: str
    """Sample that was tried in its place."""


class BadSampleLog:
    """An append-only JSONL file that any number of processes may write to: a line is one write in append mode."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """The file is created with the first bad sample; its directory must exist."""
        self.path = Path(path)

    def add(self, record: BadRecord) -> None:
        """Append one line.

        Raises:
            OSError: the file cannot be written.
        """
        line = json.dumps(asdict(record), ensure_ascii=False) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # Half of a pair, as paths that are not UTF-8 have them, becomes its JSON escape.
            os.write(descriptor, line.encode("utf-8", "backslashreplace"))
        finally:
            os.close(descriptor)
