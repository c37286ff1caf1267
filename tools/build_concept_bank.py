"""Build a concept bank: features of every sample, clustered into centres, the nearest of which become the samples' labels.

    python -m tools.build_concept_bank --shards 'shards/clips/*.tar' --output banks/video --concepts 1000 --kind video
    python -m tools.build_concept_bank --shards 'shards/images/*.tar' --output banks/image --concepts 10000 --kind image \\
        --features hf:models/clip-vit-large --workers 16

Writes
    <shard>.tar.labels.npy       beside each shard: int64 [n, --labels], the nearest centres of each sample; -1 for a bad sample
    OUTPUT/centres.npy           float32 [concepts, F], unit vectors
    OUTPUT/features.npy          float16 [samples, F] (with features.jsonl: finished shards are not computed again)
    OUTPUT/bad_samples.jsonl     samples without features, and why
    OUTPUT/report.json           cluster sizes, how close samples are to their centres, what was mended
    OUTPUT/report.html           the same as a page, with contact_sheet.png: what a few clusters contain

Features are computed by many processes and kept a shard at a time: a call that was killed goes on where it stopped. K-means
compares every sample with every centre up to 100,000 centres; above (or with --two-level on), it finds about sqrt(C) cells, then
centres in each, and searches the --probe nearest cells of a sample. The report tells how often that search finds the truly nearest.

`--features descriptor` needs no model: pictures are described by edges and colours, clips by how things move in them. Concepts,
and what a run learns from them, are then about just that (tools.bank.descriptors). `heads.*.bank.num_classes` of a run is
`--concepts`; centres can be its `init` where F is the encoder's hidden size.

Exit code: 0 done; 3 done, but some samples are bad; 2 nothing labelled, because of a wrong argument or unusable data.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from megatron_ovenc.data.shards import ShardSet
from tools.arguments import positive
from tools.bank.features import FeatureStore, extract
from tools.bank.spaces import DESCRIPTOR, open_space

if TYPE_CHECKING:
    # Decoding processes import this module; they have no use for faiss.
    from tools.bank.kmeans import Clustering, Points, Search

EXIT_BAD_SAMPLES = 3
ITERATIONS, PROBE = 20, 8
"""What --iterations and --probe are if not given."""
TWO_LEVEL_FROM = 100_000
"""Centres above which `--two-level auto` takes two levels."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    console = Console(stderr=True)
    begin = time.monotonic()
    try:
        _need_faiss()
        shards = _open_shards(options)
        space = open_space(
            options.features,
            options.kind,
            frames=options.frames,
            size=options.size,
            device=options.device,
            pool=options.pool,
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
        facts = _cluster_label_report(options, shards, store, console)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    for number, reason in sorted(store.bad.items()):
        console.print(f"bad sample {shards.sample_id(number)}: {reason}", markup=False, highlight=False, soft_wrap=True)
    if facts["duplicate_clusters"] or facts["empty_clusters"]:
        console.print(
            f"warning: {facts['duplicate_clusters']} centres are as another, {facts['empty_clusters']} clusters are empty: "
            f"too few samples differ for {options.concepts} concepts; ask for fewer",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"{options.output / 'report.html'}: {time.monotonic() - begin:.0f} s", markup=False, soft_wrap=True)
    return EXIT_BAD_SAMPLES if store.bad else 0


def _need_faiss() -> None:
    try:
        import faiss  # noqa: F401 (imported again where it is used; here, before hours of features)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error}; clustering needs faiss: pip install 'megatron-ovenc[bank]', or faiss-gpu"
        ) from error


def _open_shards(options: argparse.Namespace) -> ShardSet:
    """Open the shards, and refuse what could only fail after hours of features.

    Raises:
        ValueError: shards that do not fit together, more concepts than samples, or labels that would be lost.
    """
    from tools.bank.labels import check_unlabelled

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
    check_unlabelled(shards, options.overwrite_labels)
    return shards


def _cluster(options: argparse.Namespace, points: Points, console: Console) -> tuple[Clustering, Search, bool]:
    """Centres, the search that found them, and whether it was in two levels."""
    from tools.bank.kmeans import flat_kmeans, nearest
    from tools.bank.two_level import two_level_kmeans

    two_level = options.two_level == "on" or (options.two_level == "auto" and options.concepts > TWO_LEVEL_FROM)
    search: Search = nearest
    with Progress(console=console) as progress:
        task = progress.add_task("k-means", total=options.iterations)
        common: dict[str, Any] = {
            "iterations": options.iterations,
            "seed": options.seed,
            "on_round": lambda: progress.advance(task),
        }
        if two_level:
            clustering, search = two_level_kmeans(points, options.concepts, probe=options.probe, **common)
        else:
            clustering = flat_kmeans(points, options.concepts, **common)
        progress.update(task, total=clustering.rounds, completed=clustering.rounds)
    return clustering, search, two_level


def _cluster_label_report(
    options: argparse.Namespace, shards: ShardSet, store: FeatureStore, console: Console
) -> Mapping[str, Any]:
    """Find the centres and write them, every shard's labels and the report, which is returned."""
    from tools.bank.bank_report import contact_sheet, histograms, page, png
    from tools.bank.kmeans import Points
    from tools.bank.labels import agreement, label_shards, write_array, write_file

    begin = time.monotonic()
    points = Points(matrix=store.matrix, rows=store.good)
    clustering, search, two_level = _cluster(options, points, console)
    write_array(options.output / "centres.npy", clustering.centres)
    found = label_shards(shards, points, clustering.centres, options.labels, search)
    report = {
        "features": options.features,
        "kind": options.kind,
        "samples": len(store.matrix),
        "bad_samples": len(store.bad),
        "bad_reasons": dict(Counter(store.bad.values()).most_common(10)),
        "concepts": options.concepts,
        "feature_width": int(clustering.centres.shape[1]),
        "labels_per_sample": options.labels,
        "two_level": two_level,
        "search_agreement": agreement(points, clustering.centres, options.labels, search, options.seed)
        if two_level
        else None,
        "empty_clusters": int((clustering.sizes == 0).sum()),
        "empty_clusters_repaired": clustering.empty_repaired,
        "duplicate_clusters": clustering.duplicates,
        "duplicate_clusters_repaired": clustering.duplicates_repaired,
        **histograms(clustering.sizes, found.cosines),
        "rounds": clustering.rounds,
        "seed": options.seed,
        "clustering_seconds": round(time.monotonic() - begin, 1),
    }
    sheet = png(contact_sheet(shards, options.kind, points, found, clustering.sizes))
    write_file(options.output / "contact_sheet.png", sheet)
    write_file(options.output / "report.html", page(f"Concept bank {options.output.name}", report, sheet).encode())
    write_file(options.output / "report.json", json.dumps(report, indent=2).encode())
    return report


def _write_bad_samples(folder: Path, shards: ShardSet, store: FeatureStore) -> None:
    from tools.bank.labels import write_file

    lines = [
        json.dumps({"sample_id": shards.sample_id(number), "reason": reason}) + "\n"
        for number, reason in sorted(store.bad.items())
    ]
    write_file(folder / "bad_samples.jsonl", "".join(lines).encode())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.build_concept_bank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shards", nargs="+", required=True, metavar="PATTERN", help="tar shards, in this order")
    parser.add_argument("--output", type=Path, required=True, help="directory for features, centres and report")
    parser.add_argument("--concepts", type=positive, required=True, metavar="C", help="number of centres")
    parser.add_argument("--kind", choices=("image", "video"), required=True, help="what the shards hold")
    parser.add_argument("--features", default=DESCRIPTOR, metavar="NAME", help="descriptor (default) or hf:DIRECTORY")
    parser.add_argument("--frames", type=positive, default=8, help="frames of a clip that a model sees (hf:)")
    parser.add_argument(
        "--pool",
        choices=("mean", "concat"),
        default="mean",
        help="features of a clip's frames (hf:): their mean, or one after the other, each of unit length",
    )
    parser.add_argument("--size", type=positive, help="side in pixels that a model sees (hf:); default: its own")
    parser.add_argument("--labels", type=positive, default=10, metavar="L", help="nearest centres kept as labels")
    parser.add_argument("--overwrite-labels", action="store_true", help="replace labels that shards have already")
    parser.add_argument("--iterations", type=positive, default=ITERATIONS, help="most rounds of k-means")
    parser.add_argument(
        "--two-level",
        choices=("auto", "on", "off"),
        default="auto",
        help=f"cells first, then centres in them; auto: above {TWO_LEVEL_FROM} concepts",
    )
    parser.add_argument(
        "--probe", type=positive, default=PROBE, metavar="P", help="nearest cells that are searched, in two levels"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first centres")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--batch-size", type=positive, default=32, help="samples of a forward pass (hf:)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of a model (hf:)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
