"""Count what is in shards, find what is damaged, and show some of it.

    python -m tools.inspect_shards 'data/clips/*.tar' --html sheet.html --size 224 --tokens 2048
    python -m tools.inspect_shards 'data/images/*.tar' --json > images.json

Takes what `heads.*.source.shards` takes. Every sample is read and its checksum compared; of clips, the packets are counted.
--html writes one file that needs nothing else: statistics, and --samples evenly spaced samples. In clips, the patches are lit that
codec selection takes with --size, --patch-size, --clip-frames and --tokens.

Exit code: 0 all sound; 1 some samples are damaged, and are named; 2 the shards cannot be opened, or an argument is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from megatron_ovenc.config.tree import SourceConfig
from megatron_ovenc.data.shards import ShardSet
from tools.arguments import positive
from tools.files import write_whole
from tools.inspect_shards.sheet import page
from tools.inspect_shards.statistics import gather

EXIT_DAMAGED, EXIT_WRONG_ARGUMENTS = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        if options.size % options.patch_size:
            raise ValueError(f"--size {options.size} is not a multiple of --patch-size {options.patch_size}")
        shards = ShardSet.open(options.shards)
        if not len(shards):
            raise ValueError(f"the {len(shards.shards)} shards hold no sample")
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return EXIT_WRONG_ARGUMENTS
    with Progress(console=console) as progress:
        task = progress.add_task("reading", total=len(shards))
        facts = {"shards": len(shards.shards), **gather(shards, lambda: progress.advance(task)).as_json()}
    if options.html is not None:
        source = SourceConfig(
            kind="video", shards=(), size=options.size, clip_frames=options.clip_frames, tokens=options.tokens
        )
        text = page(shards, facts, source, patch_size=options.patch_size, count=options.samples)
        write_whole(options.html, text.encode())
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        Console(soft_wrap=True).print(_table(facts))
    for one in facts["damaged"]:
        console.print(f"damaged {one['sample_id']}: {one['reason']}", markup=False)
    return EXIT_DAMAGED if facts["damaged"] else 0


def _table(facts: dict[str, object]) -> Table:
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, str(len(value)) if name == "damaged" and isinstance(value, list) else str(value))
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.inspect_shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", nargs="+", help="paths or quoted patterns")
    parser.add_argument("--json", action="store_true", help="statistics as JSON on stdout")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a contact sheet")
    parser.add_argument("--samples", type=positive, default=24, metavar="N", help="of the contact sheet")
    parser.add_argument("--size", type=positive, default=224)
    parser.add_argument("--patch-size", type=positive, default=14)
    parser.add_argument("--clip-frames", type=positive, default=64)
    parser.add_argument("--tokens", type=positive, default=2048)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
