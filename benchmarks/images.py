"""Photographs to training batches: DALI against Pillow, in worker processes or a batch at a time, with the same crops and flips.

    OMP_NUM_THREADS=1 python -m benchmarks.images --write

Packs JPEG photographs (of scikit-image) into a shard and loads them through the training loader, decoders in turn, several rounds;
of each the fastest round counts. Where there is a GPU, `decoder: dali_gpu` on it is a column more. Photographs come as they are, up
to 1411 pixels, and with a long side of 500, as ImageNet's are. Also measured: each decoder alone, in this process, by processor
time, which other load on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from benchmarks.machine import machine
from codec.bench.report import write
from megatron_ovenc.config.tree import BankConfig, DataConfig, HeadConfig, SourceConfig
from megatron_ovenc.data import dali
from megatron_ovenc.data.dali import dali_pixels
from megatron_ovenc.data.errors import BadSampleLog
from megatron_ovenc.data.images import framed_pixels
from megatron_ovenc.data.loader import HeadLoader
from megatron_ovenc.data.order import generator
from megatron_ovenc.data.windows import Framing, square
from megatron_ovenc.parallel.device import choose_device, device_name, synchronise
from tools.demo_data import PHOTOGRAPHS, photograph
from tools.inputs import Item
from tools.make_shards import Packing, make_shards

PAGE = Path("benchmarks/images.md")
SIDE, BATCH, COPIES = 224, 64, 16
DECODERS: dict[str, Callable[[bytes, Framing], np.ndarray]] = {"pillow": framed_pixels, "dali": dali_pixels}


def photographs(longest: int | None) -> list[bytes]:
    """The photographs as JPEG of quality 90; `longest` bounds their sides."""
    contents = []
    for name in PHOTOGRAPHS:
        picture = photograph(name).copy()
        if longest is not None:
            picture.thumbnail((longest, longest))
        file = io.BytesIO()
        picture.save(file, "jpeg", quality=90)
        contents.append(file.getvalue())
    return contents


def pack(contents: Sequence[bytes], folder: Path) -> str:
    """A shard of the photographs, each several times; returns its path."""
    items = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.jpg"
        path.write_bytes(content)
        items.append(Item(path=path, labels=(number,)))
    packing = Packing(kind="image", samples_per_shard=10**6, sidecar=False, size=SIDE, patch_size=14, clip_frames=64)
    make_shards(items * COPIES, folder / "shards", packing, workers=1, console=Console(quiet=True))
    return str(folder / "shards/*.tar")


def loader_rate(shards: str, decoder: str, workers: int, folder: Path, seconds: float, device: torch.device) -> float:
    """Pictures a second that arrive as patches on the device."""
    source = SourceConfig(kind="image", shards=(shards,), size=SIDE)
    head = HeadConfig(
        name="images", global_batch_size=BATCH, bank=BankConfig(num_classes=100, positives=1), source=source
    )
    loader = HeadLoader(
        replace(head, source=replace(source, decoder=decoder)),  # type: ignore[arg-type]
        DataConfig(workers=workers, prefetch=BATCH),
        patch_size=14,
        seed=0,
        grad_accumulation=1,
        data_rank=0,
        data_size=1,
        bad_log=BadSampleLog(folder / "bad.jsonl"),
        device=device,
    )
    try:
        loader.next()  # starts the processes and fills what they load ahead
        loader.next().to(device)
        synchronise(device)
        begin, batches = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            loader.next().to(device)
            batches += 1
        synchronise(device)
        return batches * BATCH / (time.perf_counter() - begin)
    finally:
        loader.close()


def decode_ms(contents: Sequence[bytes], decoder: str) -> float:
    """Processor milliseconds a picture, of the decoder alone."""
    decode = DECODERS[decoder]
    begin = time.process_time()
    for number, content in enumerate(contents):
        decode(content, partial(square, size=SIDE, rng=generator("bench", number)))
    return (time.process_time() - begin) / len(contents) * 1000


def difference(contents: Sequence[bytes]) -> float:
    """Mean absolute difference between the decoders, in levels of 255."""
    apart = []
    for number, content in enumerate(contents):
        one, other = (
            decode(content, partial(square, size=SIDE, rng=generator("bench", number))).astype(int)
            for decode in DECODERS.values()
        )
        apart.append(np.abs(one - other).mean())
    return float(np.mean(apart))


def measure(longest: int | None, workers: int, rounds: int, seconds: float, device: torch.device) -> list[str]:
    """One row of the table."""
    contents = photographs(longest)
    on_gpu = ("dali_gpu",) if device.type == "cuda" else ()
    rates: dict[str, list[float]] = {name: [] for name in (*DECODERS, *on_gpu)}
    times: dict[str, list[float]] = {name: [] for name in DECODERS}
    with tempfile.TemporaryDirectory() as folder:
        shards = pack(contents, Path(folder))
        for _ in range(rounds):
            for name in rates:
                rates[name].append(loader_rate(shards, name, workers, Path(folder), seconds, device))
            for name in DECODERS:
                times[name].append(decode_ms(contents * 4, name))
    best, least = {n: max(v) for n, v in rates.items()}, {n: min(v) for n, v in times.items()}
    sides = [max(Image.open(io.BytesIO(content)).size) for content in contents]
    return [
        f"{min(sides)} to {max(sides)}",
        f"{best['pillow']:.0f}",
        f"{best['dali']:.0f}",
        f"{best['dali'] / best['pillow']:.2f}",
        f"{least['pillow']:.2f}",
        f"{least['dali']:.2f}",
        f"{least['pillow'] / least['dali']:.2f}",
        f"{difference(contents):.2f}",
        *(f"{best[name]:.0f}" for name in on_gpu),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.images", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each loader in each round")
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE}")
    options = parser.parse_args(arguments)
    if not dali.installed():
        print("images: DALI is not installed; pip install 'megatron-ovenc[dali]'", file=sys.stderr)
        return 2
    device = choose_device("auto", 0)
    rows = [measure(longest, options.workers, options.rounds, options.seconds, device) for longest in (500, None)]
    columns = ["long side, px", "Pillow, pictures/s", "DALI, pictures/s", "DALI / Pillow"]
    columns += ["Pillow, CPU ms", "DALI, CPU ms", "Pillow / DALI", "mean difference of 255"]
    columns += [f"{device_name(device)}, pictures/s"] if device.type == "cuda" else []
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text = (
        f"`python -m benchmarks.images --write` on {machine()}; {options.workers} worker processes, "
        f"{len(PHOTOGRAPHS)} photographs, {SIDE} px, best of "
        f"{options.rounds} rounds in turn.\n\n{table}\n"
    )
    print(text)
    if options.write:
        write(PAGE, "images", text.splitlines())
    return 0


if __name__ == "__main__":
    sys.exit(main())
