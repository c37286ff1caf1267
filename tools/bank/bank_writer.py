"""Write a bank in any of the forms that `megatron_ovenc.concept_bank.files` reads, block by block and all or nothing.

Everything is written under names that end in `.tmp` and renamed when all of it is complete. Of numbered parts the first is renamed
last, so that what an interrupted renaming leaves behind lacks part 0 and is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from megatron_ovenc.concept_bank.files import (
    CONVERSION,
    DTYPES,
    INDEX,
    INDEX_FORMAT,
    TENSOR,
    numbered_parts,
    part_range,
)

Format: TypeAlias = Literal["safetensors", "npy", "pt"]

BLOCK_BYTES = 32 << 20
"""Of rows in memory at a time."""
_SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Bank(Protocol):
    """A bank that can be read by rows."""

    @property
    def num_classes(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    def read(self, lo: int, hi: int) -> Tensor: ...


def write_bank(
    bank: Bank,
    output: Path,
    *,
    shards: int,
    form: Format,
    dtype: str,
    provenance: Sequence[dict[str, Any]],
    on_rows: Callable[[int], object],
) -> None:
    """Write all rows of a bank.

    Args:
        bank: what is written.
        output: with a place for a number (`bank_%03d.npy`), numbered parts; with the suffix of `form`, one file; else, for
            safetensors, a directory with an index.
        shards: files that hold rows.
        form: of these files; a `.pt` holds `{"weight": rows}`.
        dtype: float32, float16 or bfloat16 (not in `.npy`, which has no such type).
        provenance: how the bank was made, oldest first, for the index.
        on_rows: called with the number of rows written since the last call.

    Raises:
        ValueError: form, shards, dtype and output do not fit, or the output is there already.
    """
    _check(output, shards, form, dtype)
    output.parent.mkdir(parents=True, exist_ok=True)
    ranges = [part_range(bank.num_classes, shards, part) for part in range(shards)]
    finals, temporaries = _places(output, shards, form)
    write = _write_pt if form == "pt" else _write_plain
    digests = [
        write(path, form, (hi - lo, bank.width), dtype, _blocks(bank, lo, hi, dtype, on_rows))
        for path, (lo, hi) in zip(temporaries, ranges, strict=True)
    ]
    if finals[0].parent == output:
        sizes = [path.stat().st_size for path in temporaries]
        index = {
            "format": INDEX_FORMAT,
            "tensor": TENSOR,
            "num_classes": bank.num_classes,
            "width": bank.width,
            "dtype": dtype,
            "files": [
                {"file": path.name, "rows": hi - lo, "bytes": size, "sha256": digest}
                for path, (lo, hi), size, digest in zip(finals, ranges, sizes, digests, strict=True)
            ],
            "provenance": list(provenance),
        }
        staged = temporaries[0].parent
        (staged / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        os.replace(staged, output)
    else:
        for temporary, final in reversed(list(zip(temporaries, finals, strict=True))):
            os.replace(temporary, final)


def _places(output: Path, shards: int, form: Format) -> tuple[list[Path], list[Path]]:
    """Where the files will lie, and where they are written; in a directory of that name, if it is to be one."""
    if CONVERSION.search(output.name):
        finals = [output.with_name(output.name % part) for part in range(shards)]
    elif output.suffix:
        finals = [output]
    else:
        finals = [output / f"bank-{part:05d}-of-{shards:05d}.{form}" for part in range(shards)]
        staged = output.with_name(f"{output.name}.tmp")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        return finals, [staged / path.name for path in finals]
    return finals, [path.with_name(f"{path.name}.tmp") for path in finals]


def _check(output: Path, shards: int, form: Format, dtype: str) -> None:
    numbered = CONVERSION.search(output.name) is not None
    suffixes = ("", f".{form}") if form == "safetensors" else (f".{form}",)
    if output.suffix not in suffixes or (numbered and not output.suffix):
        wanted = " or no suffix, for a directory," if form == "safetensors" else ""
        raise ValueError(f"--output {output} must have the suffix .{form}{wanted} for --format {form}")
    if shards > 1 and output.suffix and not numbered:
        raise ValueError(
            f"--shards is {shards}, but --output {output} is one file; give a pattern such as {output.stem}_%03d{output.suffix}"
        )
    if form == "npy" and dtype == "bfloat16":
        raise ValueError(
            "the bank is bfloat16, for which .npy has no type; add --dtype float32, or choose another --format"
        )
    existing = list(numbered_parts(output).values()) if numbered else [output] if output.exists() else []
    if existing:
        raise ValueError(f"{existing[0]} is there already; choose another --output, or delete it")


def _blocks(bank: Bank, lo: int, hi: int, dtype: str, on_rows: Callable[[int], object]) -> Iterator[Tensor]:
    rows = max(1, BLOCK_BYTES // (4 * bank.width))
    for start in range(lo, hi, rows):
        end = min(start + rows, hi)
        yield bank.read(start, end).to(DTYPES[dtype])
        on_rows(end - start)


def _write_plain(path: Path, form: Format, shape: tuple[int, int], dtype: str, blocks: Iterator[Tensor]) -> str:
    """A header and the rows behind it; returns the file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for content in chain((_header(form, shape, dtype),), map(_content, blocks)):
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _header(form: Format, shape: tuple[int, int], dtype: str) -> bytes:
    if form == "npy":
        header = io.BytesIO()
        fields = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, fields)
        return header.getvalue()
    size = shape[0] * shape[1] * DTYPES[dtype].itemsize
    entry = {"dtype": _SAFETENSORS_NAMES[dtype], "shape": list(shape), "data_offsets": [0, size]}
    text = json.dumps({TENSOR: entry}).encode()
    text += b" " * (-len(text) % 8)  # as the format asks, so that the data can be mapped as it is
    return len(text).to_bytes(8, "little") + text


def _write_pt(path: Path, form: Format, shape: tuple[int, int], dtype: str, blocks: Iterator[Tensor]) -> str:
    """torch.save wants the whole tensor: it gets one that is mapped from a file of its own. Returns no SHA-256."""
    raw = path.with_name(f"{path.name}.rows")
    with raw.open("wb") as file:
        for block in blocks:
            file.write(_content(block))
    size = shape[0] * shape[1]
    tensor = torch.from_file(str(raw), size=size, dtype=DTYPES[dtype]) if size else torch.empty(0, dtype=DTYPES[dtype])
    torch.save({TENSOR: tensor.view(shape)}, path)
    del tensor
    raw.unlink()
    return ""


def _content(block: Tensor) -> bytes:
    return block.contiguous().view(torch.uint8).numpy().tobytes()
