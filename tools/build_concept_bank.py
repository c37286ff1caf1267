"""Build a concept bank: features of every sample, clustered into centres, the nearest of which become the samples' labels.

    python -m tools.build_concept_bank --shards 'shards/clips/*.tar' --output banks/video --concepts 1000 --kind video
    python -m tools.build_concept_bank --shards 'shards/images/*.tar' --output banks/image --concepts 10000 --kind image \\
        --features hf:models/clip-vit-large --workers 16

Writes
    <shard>.tar.labels.npy       beside each shard: int64 [n, --labels], the nearest centres of each sample; -1 for a bad sample
    OUTPUT/centres.npy           float32 [concepts, F], unit vectors
    OUTPUT/features.npy          float16 [samples, F] (with features.jsonl: finished shards are not computed again)
    OUTPUT/bad_samples.jsonl     samples without features, and why
    OUTPUT/report.json           cluster sizes and how close samples are to their centres

`--features descriptor` needs no model: pictures are described by edges and colours, clips by how things move in them. Concepts,
and what a run learns from them, are then about just that (tools.bank.descriptors). `heads.*.bank.num_classes` of a run is
`--concepts`; centres can be its `init` where F is the encoder's hidden size.

Exit code: 0 done; 3 done, but some samples are bad; 2 nothing labelled, because of a wrong argument or unusable data.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import Progress

from megatron_ovenc.data.shards import ShardSet, labels_path
from tools.bank.features import FeatureStore, extract
from tools.bank.spaces import DESCRIPTOR, open_space

if TYPE_CHECKING:
    # Decoding processes import this module; they have no use for faiss.
    from tools.bank.kmeans import Clustering, Points

EXIT_BAD_SAMPLES = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    console = Console(stderr=True)
    begin = time.monotonic()
    try:
        shards = _open_shards(options)
        space = open_space(
            options.features, options.kind, frames=options.frames, size=options.size, device=options.device
        )
        store = extract(
            shards,
            options.kind,
            space,
            options.output,
            workers=options.workers,
            batch_size=options.batch_size,
            console=console,
        )
        _write_bad_samples(options.output, shards, store)
        clustering = _cluster_and_label(options, shards, store, console)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    for number, reason in sorted(store.bad.items()):
        console.print(f"bad sample {shards.sample_id(number)}: {reason}", markup=False, highlight=False, soft_wrap=True)
    report = _report(options, store, clustering, time.monotonic() - begin)
    _write(options.output / "report.json", json.dumps(report, indent=2).encode())
    console.print_json(data=report)
    return EXIT_BAD_SAMPLES if store.bad else 0


def _open_shards(options: argparse.Namespace) -> ShardSet:
    """Open the shards, and refuse what could only fail after hours of features.

    Raises:
        ValueError: shards that do not fit together, more concepts than samples, or labels that would be lost.
    """
    shards = ShardSet.open(options.shards)
    if options.concepts > len(shards):
        raise ValueError(
            f"--concepts is {options.concepts}, but the {len(shards.shards)} shards hold only {len(shards)} samples; ask for fewer "
            f"concepts or give more shards"
        )
    if options.labels > options.concepts:
        raise ValueError(
            f"--labels is {options.labels}, more than --concepts = {options.concepts}; ask for fewer labels a sample"
        )
    labelled = [shard.path for shard in shards.shards if (shards.labels(shard) != -1).any()]
    if labelled and not options.overwrite_labels:
        raise ValueError(
            f"{len(labelled)} of the {len(shards.shards)} shards have labels already, such as {labels_path(labelled[0])}; add "
            f"--overwrite-labels to replace them"
        )
    return shards


def _cluster_and_label(
    options: argparse.Namespace, shards: ShardSet, store: FeatureStore, console: Console
) -> Clustering:
    """Find the centres and write them and every shard's labels."""
    try:
        from tools.bank.kmeans import Points, flat_kmeans
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error}; clustering needs faiss: pip install 'megatron-ovenc[bank]', or faiss-gpu"
        ) from error

    points = Points(matrix=store.matrix, rows=store.good)
    with Progress(console=console) as progress:
        task = progress.add_task("k-means", total=options.iterations)
        clustering = flat_kmeans(
            points,
            options.concepts,
            iterations=options.iterations,
            seed=options.seed,
            on_round=lambda: progress.advance(task),
        )
        progress.update(task, total=clustering.rounds)
    _write_array(options.output / "centres.npy", clustering.centres)
    write_labels(shards, points, clustering.centres, options.labels)
    return clustering


def write_labels(shards: ShardSet, points: Points, centres: np.ndarray, count: int) -> None:
    """Write each shard's labels, in one stroke a shard: int64 [n, count], nearest centre first, -1 for samples without features.

    Args:
        shards: the samples that `points.rows` numbers.
        points: features of the good ones.
        centres: float32 [C, F].
        count: centres a sample, at most C.
    """
    from tools.bank.kmeans import nearest

    labels = np.full((len(shards), count), -1, np.int64)
    for numbers, found, _ in nearest(points, centres, count):
        labels[points.rows[numbers]] = found
    start = 0
    for shard in shards.shards:
        _write_array(Path(labels_path(shard.path)), labels[start : start + shard.length])
        start += shard.length


def _write_bad_samples(folder: Path, shards: ShardSet, store: FeatureStore) -> None:
    lines = [
        json.dumps({"sample_id": shards.sample_id(number), "reason": reason}) + "\n"
        for number, reason in sorted(store.bad.items())
    ]
    _write(folder / "bad_samples.jsonl", "".join(lines).encode())


def _report(
    options: argparse.Namespace, store: FeatureStore, clustering: Clustering, seconds: float
) -> dict[str, object]:
    sizes = clustering.sizes
    return {
        "features": options.features,
        "kind": options.kind,
        "samples": len(store.matrix),
        "bad_samples": len(store.bad),
        "bad_reasons": dict(Counter(store.bad.values()).most_common(10)),
        "concepts": options.concepts,
        "feature_width": int(clustering.centres.shape[1]),
        "labels_per_sample": options.labels,
        "cluster_size": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
        "empty_clusters": int((sizes == 0).sum()),
        "empty_clusters_repaired": clustering.empty_repaired,
        "mean_cosine_to_own_centre": clustering.mean_cosine,
        "rounds": clustering.rounds,
        "seed": options.seed,
        "seconds": round(seconds, 1),
    }


def _write_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    _write(path, buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    """All or nothing, even if the call is interrupted."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.build_concept_bank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shards", nargs="+", required=True, metavar="PATTERN", help="tar shards, in this order")
    parser.add_argument("--output", type=Path, required=True, help="directory for features, centres and report")
    parser.add_argument("--concepts", type=_positive, required=True, metavar="C", help="number of centres")
    parser.add_argument("--kind", choices=("image", "video"), required=True, help="what the shards hold")
    parser.add_argument("--features", default=DESCRIPTOR, metavar="NAME", help="descriptor (default) or hf:DIRECTORY")
    parser.add_argument("--frames", type=_positive, default=8, help="frames of a clip that a model sees (hf:)")
    parser.add_argument("--size", type=_positive, help="side in pixels that a model sees (hf:); default: its own")
    parser.add_argument("--labels", type=_positive, default=10, metavar="L", help="nearest centres kept as labels")
    parser.add_argument("--overwrite-labels", action="store_true", help="replace labels that shards have already")
    parser.add_argument("--iterations", type=_positive, default=20, help="most rounds of k-means")
    parser.add_argument("--seed", type=int, default=0, help="of the first centres")
    parser.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--batch-size", type=_positive, default=32, help="samples of a forward pass (hf:)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of a model (hf:)")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


if __name__ == "__main__":
    sys.exit(main())
