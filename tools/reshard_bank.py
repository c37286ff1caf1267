"""A concept bank in any form -> the same rows, bit for bit, in any other form and number of files.

    python -m tools.reshard_bank --input banks/image/centres.npy --output banks/image_bank --shards 16
    python -m tools.reshard_bank --input 'old/image/image_%03d.pt' --output 'new/image_%03d.npy' --shards 64 --format npy
    python -m tools.reshard_bank --input output/run --head image --output image.safetensors

`--input` is what `heads.<h>.bank.init` takes (a `.safetensors`, `.npy` or `.pt` file, numbered parts such as `bank_%03d.npy`, or a
directory that this tool wrote), or a checkpoint or run directory. `--output` names, with `%03d`, numbered parts, of which the first
C mod R have one row more, as per-rank files of PartialFC do; with the format's suffix, one file; and without one, a directory with
an index and SHA-256s (megatron_ovenc.concept_bank.files), which are checked whenever this tool reads it.

Memory holds a block of rows, of a checkpoint the rows of one rank. The output appears when it is complete, or not at all.

Exit code: 0 written; 2 a wrong argument, or an input that is no bank.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from megatron_ovenc.concept_bank.files import DTYPES, INDEX, BankFileError, StoredBank, open_bank
from tools.arguments import positive
from tools.bank.bank_writer import Format, write_bank
from tools.bank.checkpoint_bank import CheckpointBank

FORMATS: tuple[Format, ...] = ("safetensors", "npy", "pt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    console = Console(stderr=True)
    try:
        bank = _open(options.input, options.head)
        made_by = {"tool": "reshard_bank", "input": options.input, "head": options.head}
        with Progress(console=console) as progress:
            task = progress.add_task("rows", total=bank.num_classes)
            write_bank(
                bank,
                Path(options.output),
                shards=options.shards,
                form=options.format or _format_of(options.output),
                dtype=options.dtype or bank.dtype,
                provenance=(*(bank.provenance if isinstance(bank, StoredBank) else ()), made_by),
                on_rows=lambda rows: progress.advance(task, rows),
            )
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    console.print(
        f"wrote {bank.num_classes} x {bank.width} {options.dtype or bank.dtype} to {options.output} in {options.shards} shard(s)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _format_of(output: str) -> Format:
    return next((form for form in FORMATS if Path(output).suffix == f".{form}"), FORMATS[0])


def _open(source: str, head: str | None) -> StoredBank | CheckpointBank:
    path = Path(source)
    try:
        if path.is_dir() and not (path / INDEX).is_file():
            return CheckpointBank(path, head)
        if head is not None:
            raise BankFileError("--head chooses a bank of a checkpoint, but this is a bank; leave it out")
        bank = open_bank(source)
        _check_content(bank)
    except BankFileError as error:
        raise BankFileError(f"--input {source}: {error}") from error
    return bank


def _check_content(bank: StoredBank) -> None:
    """Compare the files with the index's SHA-256s, where there are any."""
    for part, expected in zip(bank.parts, bank.checksums, strict=False):
        with part.path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise BankFileError(f"{part.path.name} has other content than was written; copy the directory again")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.reshard_bank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input", required=True, metavar="PATH", help="bank, pattern of parts, checkpoint or run directory"
    )
    parser.add_argument("--head", help="whose bank, of a checkpoint that has several")
    parser.add_argument("--output", required=True, metavar="PATH", help="file, pattern of parts, or directory")
    parser.add_argument("--shards", type=positive, default=1, metavar="N", help="files that hold rows")
    parser.add_argument(
        "--format", choices=FORMATS, help="of these files; default: --output's suffix, else safetensors"
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="convert the rows; default: as they are stored")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
