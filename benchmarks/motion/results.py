"""Results of trainings: one line a training in a file that is only appended to, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of it."""

    cell: Cell
    accuracy: Mapping[int, Accuracy]
    """By budget, in patches of a clip."""
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
                accuracy = {int(budget): Accuracy(**values) for budget, values in row["accuracy"].items()}
                result = Result(cell=Cell(**row["cell"]), accuracy=accuracy, seconds=row["seconds"])
                theirs = row["settings"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}, is damaged: delete the line, and run again") from error
            if theirs != self._settings:
                raise ValueError(
                    f"{path} holds results of {theirs}, not of {self._settings}: name another --output, or delete it"
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
        result.cell.seed: getattr(result.accuracy[budget], measure)
        for result in results
        if result.cell.selector == selector
    }
    return np.array([found[seed] for seed in sorted(found)])
