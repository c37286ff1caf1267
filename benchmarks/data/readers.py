"""One way to read clips, in this process, printed as JSON: so that its memory and threads are its alone.

    python -m benchmarks.data.readers READER FOLDER SECONDS

The naive readers are what one writes first: decode every frame, resize, convert to float32, normalise, make it contiguous, hand
that to the device, which gathers 2048 patches of it afterwards. They differ in the decoder.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from benchmarks.data.material import FRAMES, PATCH, SIZE, head, open_loader
from benchmarks.machine import resident_peak
from megatron_ovenc.config import ModesConfig
from megatron_ovenc.data.dataset import Fetched, HeadDataset
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.views import View

MEAN, DEVIATION = np.array([0.481, 0.458, 0.408], np.float32), np.array([0.269, 0.261, 0.276], np.float32)


def decode_only(folder: Path) -> Iterator[int]:
    """FFmpeg's decoder on one thread; nothing is done with the pictures."""
    for path in itertools.cycle(sorted(folder.glob("*.mkv"))):
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for _ in container.decode(video=0):
                pass
        yield 0


def naive_pyav(folder: Path) -> Iterator[int]:
    """Decoded and resized by PyAV."""
    for path in itertools.cycle(sorted(folder.glob("*.mkv"))):
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            frames = [f.reformat(SIZE, SIZE, "rgb24").to_ndarray() for f in container.decode(video=0)]
        yield _normalised(np.stack(frames))


def naive_decord(folder: Path) -> Iterator[int]:
    """Decoded and resized by decord, as the reference does."""
    import decord

    for path in itertools.cycle(sorted(folder.glob("*.mkv"))):
        reader = decord.VideoReader(str(path), width=SIZE, height=SIZE, num_threads=1)
        yield _normalised(reader.get_batch(range(len(reader))).asnumpy())


def naive_torchcodec(folder: Path) -> Iterator[int]:
    """Decoded by torchcodec, resized by torch."""
    import torch
    from torchcodec.decoders import VideoDecoder

    for path in itertools.cycle(sorted(folder.glob("*.mkv"))):
        frames = VideoDecoder(str(path), num_ffmpeg_threads=1)[:]
        resized = torch.nn.functional.interpolate(frames.float(), (SIZE, SIZE), mode="bilinear")
        yield _normalised(resized.permute(0, 2, 3, 1).numpy())


def ours(folder: Path, modes: ModesConfig | None = None) -> Iterator[int]:
    """This project's samples, one by one in this process."""
    wanted = head(folder)
    if modes is not None:
        wanted = replace(wanted, source=replace(wanted.source, modes=modes))
    dataset = HeadDataset(wanted, ShardSet.open(wanted.source.shards), patch_size=PATCH, seed=0, micro_batch=8)
    for position in itertools.count():
        fetched = dataset.fetch(position)
        assert isinstance(fetched, Fetched) and isinstance(fetched.view, View), fetched
        yield fetched.view.patches.nbytes + fetched.view.positions.nbytes + fetched.labels.nbytes


def ours_codec(folder: Path) -> Iterator[int]:
    """The mode `codec` alone."""
    return ours(folder, ModesConfig(codec=1.0, frames=0.0, collage=0.0))


def loader(folder: Path, workers: int) -> Iterator[int]:
    """Batches through worker processes, as training gets them; a sample's bytes each."""
    with tempfile.TemporaryDirectory() as logs:
        source = open_loader(head(folder), workers, Path(logs) / "bad.jsonl")
        try:
            while True:
                batch = source.next()
                size = sum(t.nbytes for t in (batch.patches, batch.positions, batch.labels))
                yield from [size // batch.size] * batch.size
        finally:
            source.close()


def _normalised(frames: np.ndarray) -> int:
    clip = (frames.astype(np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(clip.transpose(3, 0, 1, 2)).nbytes


READERS: dict[str, Callable[[Path], Iterator[int]]] = {
    "decode": decode_only,
    "naive PyAV": naive_pyav,
    "naive decord": naive_decord,
    "naive torchcodec": naive_torchcodec,
    "ours": ours,
    "ours codec": ours_codec,
    "loader 1": lambda folder: loader(folder, 1),
    "loader 2": lambda folder: loader(folder, 2),
}


def main() -> None:
    """Read for some seconds, after a few samples that warm up."""
    reader, folder, seconds = READERS[sys.argv[1]](Path(sys.argv[2])), sys.argv[2], float(sys.argv[3])
    for _ in range(16 if "loader" in sys.argv[1] else 2):
        next(reader)
    begin, samples, size = time.perf_counter(), 0, 0
    while time.perf_counter() - begin < seconds or samples % len(list(Path(folder).glob("*.mkv")) or [1]):
        size += next(reader)
        samples += 1
    took = time.perf_counter() - begin
    result = {"samples_per_s": samples / took, "frames_per_s": FRAMES * samples / took, "bytes": size / samples}
    print(json.dumps(result | {"megabytes": resident_peak() / 2**20}))
    reader.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
