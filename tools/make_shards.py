"""Pack images or clips into tar shards with index, labels and codec sidecars.

    python -m tools.make_shards --input clips/train --output shards/train --kind video --size 224 --workers 8
    python -m tools.make_shards --input list.csv --output shards/ocr --kind image

`--input` is one of
    a folder of classes    <folder>/<class>/**/<file>; class numbers follow the sorted folder names, written to classes.json.
                           A folder without sub-folders is packed without labels.
    a .csv file            path,label[,label...] a line, no header; labels may be left out
    a .jsonl file          {"path": ..., "labels": [...]} a line; "labels" may be left out
with paths relative to the list. In the output:
    shard-000000.tar  shard-000000.tar.index.json  shard-000000.tar.labels.npy  ...  make_shards.json  [classes.json]

Clips get a sidecar of their saliency on the patch grid of `--size` and `--patch-size`; runs with the same grid and number of
frames use it, others compute their own. Inputs that cannot be read to their end are named, counted and left out.
Of a folder, files count whose names end as pictures' or clips' do, and names that begin with a dot do not.
An interrupted call goes on when repeated: shards that are as long as their index says are complete, and kept.

Exit code: 0 all packed; 3 packed, but some inputs could not be read; 2 nothing done, because of a wrong argument or list; 1 the
output cannot be written.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import Progress

import codec
from megatron_ovenc.data.dataset import IMAGE_EXTENSIONS, SIDECAR_EXTENSION, VIDEO_EXTENSIONS
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.images import image_pixels
from megatron_ovenc.data.storage.labels import labels_path
from megatron_ovenc.data.storage.tar import index_path, index_tar, read_index
from megatron_ovenc.data.video import frame_count
from tools.arguments import positive
from tools.files import write_whole
from tools.inputs import Item, read_inputs
from tools.processes import map_isolated

EXIT_CANNOT_WRITE = 1
EXIT_WRONG_ARGUMENTS = 2
EXIT_UNREADABLE = 3
MANIFEST = "make_shards.json"
T = TypeVar("T")

_CHUNK = 4
"""Inputs handed to a process at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How files become samples. The last three matter to sidecars alone."""

    kind: Literal["image", "video"]
    samples_per_shard: int
    """Inputs a shard; unreadable ones make it shorter."""
    sidecar: bool
    """Store the saliency of clips."""
    size: int
    """Side in pixels to which runs will resize frames."""
    patch_size: int
    clip_frames: int
    """Virtual frames of a clip."""

    def __post_init__(self) -> None:
        if self.size % self.patch_size:
            raise ValueError(f"--size {self.size} is not a multiple of --patch-size {self.patch_size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """An input that could not be packed."""

    path: Path
    reason: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        items, classes = read_inputs(options.input, VIDEO_EXTENSIONS if options.kind == "video" else IMAGE_EXTENSIONS)
        packing = Packing(
            kind=options.kind,
            samples_per_shard=options.samples_per_shard,
            sidecar=options.sidecar and options.kind == "video",
            size=options.size,
            patch_size=options.patch_size,
            clip_frames=options.clip_frames,
        )
        left_out = make_shards(items, options.output, packing, workers=options.workers, console=console)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return EXIT_WRONG_ARGUMENTS
    except OSError as error:
        console.print(
            f"error: {error}; mend that and repeat the call, which goes on from here", style="red", markup=False
        )
        return EXIT_CANNOT_WRITE
    if classes:
        write_whole(options.output / "classes.json", json.dumps(classes, indent=2).encode())
    for one in left_out:
        console.print(f"left out {one.path}: {one.reason}", markup=False)
    console.print(
        f"{options.output}: {len(items) - len(left_out)} samples, {len(left_out)} inputs left out", markup=False
    )
    return EXIT_UNREADABLE if left_out else 0


def make_shards(
    items: Sequence[Item], output: Path, packing: Packing, *, workers: int, console: Console
) -> list[LeftOut]:
    """Write the shards that are not there yet, each input read by one of `workers` processes.

    Labels are padded with -1 to the longest list of all inputs.

    Returns:
        The inputs left out, those of shards made by an earlier call included.

    Raises:
        ValueError: no inputs, or an output that was begun with others or with other settings.
    """
    if not items:
        raise ValueError(f"the input names no file to pack as --kind {packing.kind}")
    _claim(output, items, packing)
    width = max(1, *(len(item.labels) for item in items))
    left_out: list[LeftOut] = []
    with Progress(console=console) as progress:
        task = progress.add_task("packing", total=len(items))
        for number, start in enumerate(range(0, len(items), packing.samples_per_shard)):
            part = items[start : start + packing.samples_per_shard]
            tar = output / f"shard-{number:06d}.tar"
            keys = [_key(place, item.path) for place, item in enumerate(part, start)]
            if _is_complete(tar):
                left_out += _left_out_before(tar, keys, part)
                progress.advance(task, len(part))
                continue
            prepared = map_isolated(
                partial(_prepare, packing=packing), part, workers=workers, crashed=_crashed, chunk=_CHUNK
            )
            results = _counted(zip(keys, part, prepared, strict=True), partial(progress.advance, task))
            left_out += _write_shard(tar, results, width)
    return left_out


def _crashed(item: Item) -> LeftOut:
    return LeftOut(path=item.path, reason="it kills the process that reads it")


def _prepare(item: Item, packing: Packing) -> bytes | LeftOut | None:
    """Read an input to its end: its sidecar, None if it needs none, or why it cannot be packed."""
    try:
        content = item.path.read_bytes()
        if packing.kind == "image":
            image_pixels(content, packing.patch_size, None)
        elif packing.sidecar:
            side = packing.size // packing.patch_size
            return codec.dumps(
                codec.analyse(content, (side, side), virtual_frames=packing.clip_frames, name="the clip")
            )
        else:
            frame_count(content)
    except (OSError, BadSample, codec.CodecError) as error:
        return LeftOut(path=item.path, reason=str(error))
    return None


def _write_shard(
    tar: Path, results: Iterable[tuple[str, Item, bytes | LeftOut | None]], width: int
) -> Iterator[LeftOut]:
    """Write a shard, its labels, and last its index, which declares it complete; yields what is left out of it."""
    partial_tar = tar.with_suffix(".tar.tmp")
    labels = []
    with tarfile.open(partial_tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, item, prepared in results:
            if isinstance(prepared, LeftOut):
                yield prepared
                continue
            _add(archive, f"{key}{item.path.suffix.lower()}", item.path.read_bytes())
            if prepared is not None:
                _add(archive, f"{key}.{SIDECAR_EXTENSION}", prepared)
            labels.append([*item.labels, *[-1] * (width - len(item.labels))])
    index = index_tar(partial_tar)
    assert len(index.keys) == len(labels), "a row a sample"
    os.replace(partial_tar, tar)
    array = io.BytesIO()
    np.save(array, np.array(labels, np.int64).reshape(-1, width))
    write_whole(Path(labels_path(tar)), array.getvalue())
    write_whole(Path(index_path(tar)), index.dumps().encode())


def _is_complete(tar: Path) -> bool:
    """Whether a shard is as long as its index says; one that was cut off is made anew."""
    return os.path.exists(index_path(tar)) and tar.exists() and tar.stat().st_size == read_index(str(tar)).tar_size


def _counted(values: Iterable[T], advance: Callable[[], None]) -> Iterator[T]:
    for value in values:
        yield value
        advance()


def _left_out_before(tar: Path, keys: Sequence[str], items: Sequence[Item]) -> list[LeftOut]:
    packed = set(read_index(str(tar)).keys)
    return [
        LeftOut(path=item.path, reason="left out by an earlier call")
        for key, item in zip(keys, items, strict=True)
        if key not in packed
    ]


def _claim(output: Path, items: Sequence[Item], packing: Packing) -> None:
    """Make sure that all shards of an output come from the same inputs and settings."""
    listing = json.dumps([[str(item.path.absolute()), item.labels] for item in items])
    claim = {**asdict(packing), "inputs": len(items), "inputs_sha256": hashlib.sha256(listing.encode()).hexdigest()}
    manifest = output / MANIFEST
    if not manifest.exists():
        output.mkdir(parents=True, exist_ok=True)
        write_whole(manifest, json.dumps(claim, indent=2).encode())
        return
    before = json.loads(manifest.read_text())
    changed = sorted(key for key in claim if before.get(key) != claim[key])
    if changed:
        raise ValueError(
            f"{output} was begun with other inputs or settings ({', '.join(changed)} differ, see {MANIFEST}); repeat that call, or "
            f"choose another --output"
        )


def _key(number: int, path: Path) -> str:
    """A sample's key: unique by its number, without dots, and still telling where it came from."""
    return f"{number:08d}-{re.sub('[^A-Za-z0-9_-]+', '_', path.stem)[:48]}"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="folder of classes, .csv or .jsonl")
    parser.add_argument("--output", type=Path, required=True, help="directory for the shards")
    parser.add_argument("--kind", choices=("image", "video"), required=True)
    parser.add_argument("--samples-per-shard", type=positive, default=1000, metavar="N")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--sidecar", action=argparse.BooleanOptionalAction, default=True, help="saliency beside clips")
    parser.add_argument("--size", type=positive, default=224, help="heads.*.source.size of the runs (sidecars)")
    parser.add_argument("--patch-size", type=positive, default=14, help="model.patch_size of the runs (sidecars)")
    parser.add_argument(
        "--clip-frames", type=positive, default=64, help="heads.*.source.clip_frames of the runs (sidecars)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
