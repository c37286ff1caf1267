"""Results of trainings: one line a training in a file that is only appended to, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.motion.training import Accuracy, Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What all results that are compared have in common."""

    recipe: Recipe
    train_clips: int
    val_clips: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One training."""

    selector: str
    budget: int
    """Patches of a clip."""
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of it."""

    cell: Cell
    accuracy: Accuracy
    seconds: float
    """Of processor time."""


class ResultFile:
    """A JSONL file of results under the same settings."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Read what is there.

        Raises:
            ValueError: the file holds results of other settings, or a damaged line.
        """
        self._path, self._settings = path, asdict(settings)
        self.results: list[Result] = []
        for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
            try:
                row = json.loads(line)
                result = Result(cell=Cell(**row["cell"]), accuracy=Accuracy(**row["accuracy"]), seconds=row["seconds"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}, is damaged: delete the line, and run again") from error
            if row["settings"] != self._settings:
                raise ValueError(
                    f"{path} holds results of {row['settings']}, not of {self._settings}: name another --output"
                )
            self.results.append(result)

    def has(self, cell: Cell) -> bool:
        """Whether a training is done."""
        return any(result.cell == cell for result in self.results)

    def add(self, result: Result) -> None:
        """Append a result."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(result) | {"settings": self._settings}) + "\n")
        self.results.append(result)


def by_seed(results: Sequence[Result], selector: str, budget: int, measure: str) -> np.ndarray:
    """A measure of one selector at one budget, in percent, in order of the seeds; empty if not trained."""
    found = {
        result.cell.seed: getattr(result.accuracy, measure)
        for result in results
        if (result.cell.selector, result.cell.budget) == (selector, budget)
    }
    return np.array([found[seed] for seed in sorted(found)])
