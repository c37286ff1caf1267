"""Banks on disk, read by rows: a `.safetensors`, a `.npy` or a `.pt`, numbered parts, or a directory with an index.

    bank.safetensors | bank.npy | bank.pt      one tensor [C, D], named `weight` in the first kind; a `.pt` holds `weight`, or is it
    parts/bank_%03d.npy | .pt | .safetensors   parts 000, 001, ... in the order of their rows, split by `part_range`
    bank/                                      what tools.reshard_bank writes:
    |-- bank.index.json                        {"format": 1, "tensor": "weight", "num_classes": C, "width": D, "dtype": "float32",
    |                                           "files": [{"file": name, "rows": n, "bytes": size, "sha256": digest}, ...] in the
    |                                           order of their rows, "provenance": [{...}, ...]}
    `-- bank-00000-of-00004.safetensors, ...   tensor `weight` [n, D]

Centres are float32, float16 or bfloat16. `open_bank` reads headers alone; `StoredBank.read` maps the files and touches the rows
that were asked for. SHA-256s are of whole files, so it is tools.reshard_bank that checks them, not every rank of every run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX, INDEX_FORMAT, TENSOR = "bank.index.json", 1, "weight"
CONVERSION = re.compile(r"%(0\d+)?d")
"""Place of the number in the name of a part, as in C's printf."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SAFETENSORS_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class BankFileError(ValueError):
    """No bank that can be read lies there; the message says what does, and what to do."""


def part_range(num_classes: int, parts: int, part: int) -> tuple[int, int]:
    """Rows [lo, hi) of a numbered part: C // R of them, and in each of the first C mod R parts one more."""
    share, more = divmod(num_classes, parts)
    lo = part * share + min(part, more)
    return lo, lo + share + (part < more)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One file of a bank, by its header."""

    path: Path
    rows: int
    width: int
    dtype: str
    """A key of DTYPES."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredBank:
    """A bank on disk whose headers have been read and fit together."""

    parts: tuple[Part, ...]
    """In the order of their rows; at least one."""
    provenance: tuple[dict[str, Any], ...] = ()
    """How it was made, oldest first, where an index tells."""
    checksums: tuple[str, ...] = ()
    """SHA-256 of each part, where an index tells."""

    @property
    def num_classes(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def width(self) -> int:
        return self.parts[0].width

    @property
    def dtype(self) -> str:
        """A key of DTYPES."""
        return self.parts[0].dtype

    def read(self, lo: int, hi: int) -> Tensor:
        """Rows [lo, hi), as stored: [hi - lo, D], in memory of its own.

        Raises:
            BankFileError: a file has changed since it was opened.
        """
        rows = torch.empty(hi - lo, self.width, dtype=DTYPES[self.dtype])
        first = 0
        for part in self.parts:
            begin, end = max(lo, first), min(hi, first + part.rows)
            if begin < end:
                rows[begin - lo : end - lo] = _KINDS[part.path.suffix][1](part.path, begin - first, end - first)
            first += part.rows
        return rows


def open_bank(source: str) -> StoredBank:
    """Open a bank by its headers.

    Args:
        source: a file, the pattern of numbered parts, or a directory with an index.

    Raises:
        BankFileError: it is missing, damaged, of another kind, or its parts do not make one bank.
    """
    path = Path(source)
    if CONVERSION.search(path.name):
        return _open_parts(path)
    if path.is_dir():
        return _open_directory(path)
    if not path.is_file():
        raise BankFileError("there is no such file")
    return StoredBank(parts=(_open_part(path),))


def numbered_parts(pattern: Path) -> dict[int, Path]:
    """The files of a pattern such as `bank_%03d.npy`, by number, ascending.

    Raises:
        BankFileError: the pattern has more than one place for a number.
    """
    before, *after = CONVERSION.split(pattern.name)[::2]
    if len(after) != 1:
        raise BankFileError("give one place for the number of a part, such as bank_%03d.npy")
    shape = re.compile(f"{re.escape(before)}([0-9]+){re.escape(after[0])}")
    matches = (shape.fullmatch(path.name) for path in pattern.parent.glob("*"))
    numbers = sorted(int(match[1]) for match in matches if match and pattern.name % int(match[1]) == match[0])
    return {number: pattern.with_name(pattern.name % number) for number in numbers}


def _open_parts(pattern: Path) -> StoredBank:
    found = numbered_parts(pattern)
    if not found:
        raise BankFileError(f"there is no {pattern.name % 0}; the parts must be numbered from 0")
    missing = next((number for number in range(max(found) + 1) if number not in found), None)
    if missing is not None:
        raise BankFileError(
            f"part {pattern.name % missing} is missing, but there is {pattern.name % max(found)}; put all parts there"
        )
    bank = StoredBank(parts=tuple(_open_part(path) for path in found.values()))
    _check_alike(bank)
    for number, part in enumerate(bank.parts):
        lo, hi = part_range(bank.num_classes, len(bank.parts), number)
        if part.rows != hi - lo:
            raise BankFileError(
                f"{part.path.name} has {part.rows} rows, but in {len(bank.parts)} parts of {bank.num_classes} rows it would "
                f"have {hi - lo} (the first {bank.num_classes % len(bank.parts)} have one more); one is missing or of another bank"
            )
    return bank


def _open_directory(folder: Path) -> StoredBank:
    path = folder / INDEX
    if not path.is_file():
        raise BankFileError(
            f"the directory has no {INDEX}; give a directory that tools.reshard_bank wrote, a file, or a pattern such as "
            f"bank_%03d.npy (tools.reshard_bank also takes the bank out of a checkpoint)"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != INDEX_FORMAT or index["tensor"] != TENSOR:
            raise BankFileError(
                f"{INDEX} has format {index['format']}, this program reads {INDEX_FORMAT}; write it anew"
            )
        files = [
            (Path(str(entry["file"])).name, entry["rows"], entry["bytes"], entry["sha256"]) for entry in index["files"]
        ]
        claimed = (index["num_classes"], index["width"], index["dtype"])
        provenance = tuple(dict(step) for step in index["provenance"])
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BankFileError):
            raise
        raise BankFileError(
            f"{INDEX} is not the index of a bank ({error!r}); write it anew with tools.reshard_bank"
        ) from error
    if not files:
        raise BankFileError(f"{INDEX} names no file; write it anew with tools.reshard_bank")
    parts = []
    for name, rows, size, _ in files:
        if not (folder / name).is_file():
            raise BankFileError(f"{name} is missing, which {INDEX} names; copy the whole directory again")
        part = _open_part(folder / name)
        if part.rows != rows or part.path.stat().st_size != size:
            raise BankFileError(
                f"{name} has {part.rows} rows in {part.path.stat().st_size} bytes, but {INDEX} says {rows} in {size}; copy the "
                f"whole directory again"
            )
        parts.append(part)
    bank = StoredBank(parts=tuple(parts), provenance=provenance, checksums=tuple(str(entry[3]) for entry in files))
    _check_alike(bank)
    if (bank.num_classes, bank.width, bank.dtype) != claimed:
        raise BankFileError(
            f"its files hold {bank.dtype} {[bank.num_classes, bank.width]}, but {INDEX} says {claimed[2]} {list(claimed[:2])}; "
            f"copy the whole directory again"
        )
    return bank


def _check_alike(bank: StoredBank) -> None:
    for part in bank.parts:
        if (part.width, part.dtype) != (bank.width, bank.dtype):
            raise BankFileError(
                f"{part.path.name} holds {part.dtype} of width {part.width}, but {bank.parts[0].path.name} {bank.dtype} of width "
                f"{bank.width}; give parts of one bank"
            )


def _open_part(path: Path) -> Part:
    if path.suffix not in _KINDS:
        raise BankFileError(f"{path.name} is neither a .safetensors, a .npy nor a .pt file")
    shape, dtype = _KINDS[path.suffix][0](path)
    if len(shape) != 2 or dtype not in DTYPES:
        raise BankFileError(
            f"{path.name} holds {dtype} {list(shape)}, but centres are [C, D] of {', '.join(DTYPES)}; store them as such"
        )
    return Part(path=path, rows=shape[0], width=shape[1], dtype=dtype)


# Each kind of file: its tensor's shape and type by name, from the header; and rows of it, mapped where the file allows.


def _npy_header(path: Path) -> tuple[tuple[int, ...], str]:
    array = _map_npy(path)
    return array.shape, array.dtype.name


def _npy_rows(path: Path, lo: int, hi: int) -> Tensor:
    rows = _map_npy(path)[lo:hi]
    return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("=")))


def _map_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BankFileError(f"{path.name} is not a readable .npy file: {error}") from error


def _safetensors_header(path: Path) -> tuple[tuple[int, ...], str]:
    def header(stored: Any) -> tuple[tuple[int, ...], str]:
        name = stored.get_dtype()
        return tuple(stored.get_shape()), _SAFETENSORS_NAMES.get(name, name)

    return _from_safetensors(path, header)


def _safetensors_rows(path: Path, lo: int, hi: int) -> Tensor:
    return _from_safetensors(path, lambda stored: stored[lo:hi])


def _from_safetensors(path: Path, take: Callable[[Any], Any]) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            if TENSOR not in names:
                raise BankFileError(
                    f"{path.name} has no tensor `{TENSOR}`, only {names}; store the centres under that name"
                )
            return take(file.get_slice(TENSOR))
    except (OSError, SafetensorError) as error:
        raise BankFileError(f"{path.name} is not a readable .safetensors file: {error}") from error


def _pt_header(path: Path) -> tuple[tuple[int, ...], str]:
    tensor = _map_pt(path)
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def _pt_rows(path: Path, lo: int, hi: int) -> Tensor:
    return _map_pt(path)[lo:hi]


def _map_pt(path: Path) -> Tensor:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises whatever its unpickler meets
        raise BankFileError(
            f"{path.name} is not a readable .pt file of tensors, as torch.save has written them since version 1.6: "
            f"{str(error).split('. ')[0]}"
        ) from error
    tensor = content.get(TENSOR) if isinstance(content, dict) else content
    if not isinstance(tensor, Tensor):
        held = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise BankFileError(f"{path.name} neither is a tensor nor holds one named `{TENSOR}`, only {held}")
    return tensor


_KINDS: dict[str, tuple[Callable[[Path], tuple[tuple[int, ...], str]], Callable[[Path, int, int], Tensor]]] = {
    ".npy": (_npy_header, _npy_rows),
    ".safetensors": (_safetensors_header, _safetensors_rows),
    ".pt": (_pt_header, _pt_rows),
}
