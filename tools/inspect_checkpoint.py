"""What lies in a run's checkpoints, and whether it is still what was written.

python -m tools.inspect_checkpoint output/run                       # its checkpoints: step, size, complete or not
python -m tools.inspect_checkpoint output/run --verify              # ... after reading and hashing every file
python -m tools.inspect_checkpoint output/run --tensors             # names, shapes and types in the newest
python -m tools.inspect_checkpoint output/run/checkpoints/step_00001000 --tensors --verify

Exit codes: 0 all is well; 1 something is damaged; 2 there is nothing to look at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_ovenc.train.checkpoint import MANIFEST, PARTIAL, checkpoint_path, checkpoint_steps, file_damage, manifest
from megatron_ovenc.train.checkpoint_reader import CheckpointError, SafeReader


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One checkpoint."""

    path: Path
    size: int
    """Bytes on disk."""
    problems: list[str]
    """What is wrong with it; empty if nothing is."""


def checkpoints(path: Path) -> list[Path]:
    """The checkpoints that `path` means, ascending: itself, or those of a run directory or its checkpoints directory.

    Raises:
        CheckpointError: there is none.
    """
    if (path / MANIFEST).exists():
        return [path]
    for directory in (path / "checkpoints", path):
        if steps := checkpoint_steps(directory):
            return [checkpoint_path(directory, step) for step in steps]
    raise CheckpointError(f"{path} is neither a checkpoint nor a directory with complete ones")


def unfinished(path: Path) -> list[Path]:
    """Saves that were never completed, beside the checkpoints that `path` means."""
    directories = (path, path / "checkpoints", path.parent)
    return sorted({left for directory in directories for left in directory.glob(PARTIAL)})


def inspect(path: Path, verify: bool, progress: Progress) -> Finding:
    """Look at the files of a checkpoint; `verify` also compares their content with the hashes of its manifest."""
    try:
        files = manifest(path)
    except CheckpointError as error:
        return Finding(path=path, size=0, problems=[str(error)])
    size = sum(facts["bytes"] for facts in files.values())
    task = progress.add_task(f"{'hashing' if verify else 'looking at'} {path.name}", total=size)
    problems = []
    for name, facts in sorted(files.items()):
        problems += file_damage(path / name, facts, content=verify)
        progress.advance(task, facts["bytes"])
    progress.remove_task(task)
    return Finding(path=path, size=size, problems=problems)


def tensors(path: Path) -> Iterator[tuple[str, str, str]]:
    """Name, shape and type of every tensor in a checkpoint.

    Raises:
        CheckpointError: its table of contents cannot be read.
    """
    for name, entry in sorted(SafeReader(path).read_metadata().state_dict_metadata.items()):
        if isinstance(entry, TensorStorageMetadata):
            yield name, " x ".join(map(str, entry.size)), str(entry.properties.dtype).removeprefix("torch.")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="List and verify checkpoints.")
    parser.add_argument("path", type=Path, metavar="RUN_DIR|CHECKPOINT")
    parser.add_argument("--verify", action="store_true", help="read every file and compare it with its hash")
    parser.add_argument("--tensors", action="store_true", help="list the tensors of the newest checkpoint")
    options = parser.parse_args(argv)
    console = Console(soft_wrap=True, highlight=False)
    try:
        paths = checkpoints(options.path)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            findings = [inspect(path, options.verify, progress) for path in paths]
        _show(console, findings, "verified" if options.verify else "complete")
        for left in unfinished(options.path):
            console.print(f"{left}: being written, or left by a save that did not end; never read", markup=False)
        if options.tensors:
            table = Table("tensor", "shape", "type", title=str(paths[-1]))
            for row in tensors(paths[-1]):
                table.add_row(*row)
            console.print(table)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if any(finding.problems for finding in findings) else 0


def _show(console: Console, findings: Sequence[Finding], good: str) -> None:
    table = Table("checkpoint", "MiB", "state")
    for finding in findings:
        state = Text(f"damaged: {'; '.join(finding.problems)}", "bold red") if finding.problems else Text(good)
        table.add_row(finding.path.name, f"{finding.size / 2**20:,.1f}", state)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
