"""Index WebDataset tars that are there already, so that runs can read them where they are.

    python -m tools.index_shards 'data/web/*.tar' --workers 16

Beside each tar come <tar>.index.json and, where there is none yet, <tar>.labels.npy: the class number in each sample's `.cls`
member, -1 without one (tools.build_concept_bank then labels by clusters). Nothing in a tar is changed. Tars with a younger index
that fits their size are skipped.

Exit code: 0 all indexed; 3 some tars could not be read; 2 nothing done, because of a wrong argument.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from glob import glob
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from megatron_ovenc.data.storage.labels import labels_path
from megatron_ovenc.data.storage.tar import ShardIndex, index_path, index_tar, read_index
from tools.arguments import positive
from tools.files import write_whole
from tools.processes import map_isolated

EXIT_WRONG_ARGUMENTS, EXIT_UNREADABLE = 2, 3
CLASS_EXTENSION = "cls"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    tars = sorted({Path(path) for pattern in options.tars for path in glob(pattern)})
    if not tars:
        console.print(f"error: no file matches {', '.join(options.tars)}", style="red", markup=False)
        return EXIT_WRONG_ARGUMENTS
    done = map_isolated(index_shard, tars, workers=options.workers, crashed=_crashed, chunk=1)
    results = list(track(done, "indexing", total=len(tars), console=console))
    failures = [(tar, reason) for tar, reason in zip(tars, results, strict=True) if reason]
    for tar, reason in failures:
        console.print(f"failed {tar}: {reason}", markup=False)
    console.print(f"{len(tars) - len(failures)} tars have an index, {len(failures)} failed", markup=False)
    return EXIT_UNREADABLE if failures else 0


def index_shard(tar: Path) -> str:
    """Write what is missing beside a tar; returns why that cannot be done, or nothing."""
    try:
        index = _fitting(tar)
        if index is None:
            index = index_tar(tar)
            write_whole(Path(index_path(tar)), index.dumps().encode())
        if not os.path.exists(labels_path(tar)):
            array = io.BytesIO()
            np.save(array, _classes(tar, index))
            write_whole(Path(labels_path(tar)), array.getvalue())
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _fitting(tar: Path) -> ShardIndex | None:
    """The index that is there, if it was made of the tar as it is."""
    try:
        index = read_index(str(tar))
    except ValueError:
        return None
    # Tars are padded: their size alone tells little.
    is_younger = os.stat(index_path(tar)).st_mtime_ns > tar.stat().st_mtime_ns
    return index if is_younger and tar.stat().st_size == index.tar_size else None


def _classes(tar: Path, index: ShardIndex) -> np.ndarray:
    """int64 [samples, 1]: what the `.cls` members say."""
    labels = np.full((len(index.keys), 1), -1, np.int64)
    with tar.open("rb") as file:
        for row, members in enumerate(index.members):
            if CLASS_EXTENSION in members:
                offset, size, _ = members[CLASS_EXTENSION]
                file.seek(offset)
                text = file.read(size)
                if not text.strip().isdigit():
                    raise ValueError(f"the .cls of {index.keys[row]} is no class number: {text[:32]!r}")
                labels[row] = int(text)
    return labels


def _crashed(tar: Path) -> str:
    return "it kills the process that reads it"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.index_shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tars", nargs="+", help="files or glob patterns")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
