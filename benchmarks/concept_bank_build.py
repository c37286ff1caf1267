"""Building a concept bank in two levels, against plain faiss k-means on the same points in the same process.

    OMP_NUM_THREADS=2 python -m benchmarks.concept_bank_build --output output/concept_bank_build.json
    OMP_NUM_THREADS=2 python -m benchmarks.concept_bank_build --samples 30000 --concepts 1000     # a minute

Points are unit vectors of a seeded mixture of mixtures, with half as many clusters again as centres. faiss runs as
`Kmeans(niter=25, spherical=True)` on all points; ours with the defaults of tools.build_concept_bank and `--two-level on`. Errors
are mean squared distances of all points to their nearest centres, found for both by exact search outside the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from tools.bank.kmeans import Points, nearest
from tools.bank.labels import agreement
from tools.bank.two_level import two_level_kmeans
from tools.build_concept_bank import ITERATIONS, PROBE

FAISS_ITERATIONS = 25


def mixture(samples: int, clusters: int, width: int, seed: int) -> np.ndarray:
    """Unit vectors float32 [samples, width]: topics, clusters around them, points around those, of unlike sizes and spreads.

    Noise of spread s is a vector of length about s beside a centre of length 1.
    """
    rng = np.random.default_rng(seed)

    def around(centres: np.ndarray, spreads: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal(centres.shape, dtype=np.float32) / np.float32(width**0.5)
        points = centres + spreads[:, None].astype(np.float32) * noise
        return points / np.linalg.norm(points, axis=1, keepdims=True)

    topics = max(2, clusters // 75)
    roots = around(np.zeros((topics, width), np.float32), np.ones(topics))
    parents = rng.choice(topics, clusters, p=rng.dirichlet(np.full(topics, 2.0)))
    centres = around(roots[parents], rng.uniform(0.4, 1.2, clusters))
    weights = rng.lognormal(0, 1, clusters)
    owners = rng.choice(clusters, samples, p=weights / weights.sum())
    return around(centres[owners], rng.uniform(0.3, 1.0, clusters)[owners])


def mean_squared_error(points: Points, centres: np.ndarray) -> float:
    """To the nearest of the centres, which are unit vectors as the points are: 2 - 2 cos."""
    assert np.allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-3)
    cosines = np.concatenate([values[:, 0] for _, _, values in nearest(points, centres, 1)])
    return float((2 - 2 * cosines.astype(np.float64)).mean())


def measure(samples: int, concepts: int, width: int, seed: int) -> dict[str, Any]:
    """Run both sides."""
    matrix = mixture(samples, concepts * 3 // 2, width, seed)
    points = Points(matrix=matrix, rows=np.arange(samples))
    # faiss would otherwise thin out the points to 256 a centre.
    flat = faiss.Kmeans(width, concepts, niter=FAISS_ITERATIONS, spherical=True, max_points_per_centroid=samples)
    begin = time.perf_counter()
    flat.train(matrix)
    flat_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    ours, search = two_level_kmeans(points, concepts, iterations=ITERATIONS, probe=PROBE, seed=seed)
    our_seconds = time.perf_counter() - begin
    assert flat.centroids is not None
    flat_error, our_error = mean_squared_error(points, flat.centroids), mean_squared_error(points, ours.centres)
    return {
        "samples": samples,
        "concepts": concepts,
        "width": width,
        "seed": seed,
        "flat": {"seconds": flat_seconds, "mean_squared_error": flat_error, "rounds": FAISS_ITERATIONS},
        "two_level": {"seconds": our_seconds, "mean_squared_error": our_error, "rounds": ours.rounds, "probe": PROBE},
        "time_ratio": our_seconds / flat_seconds,
        "error_ratio": our_error / flat_error,
        "agreement_of_10_labels": agreement(points, ours.centres, 10, search, seed),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": faiss.omp_get_max_threads(),
            "faiss": faiss.__version__,
            "numpy": np.__version__,
        },
    }


def processor() -> str:
    """Name of the processor, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| k-means | rounds over all points | seconds | mean squared error |", "|---|---|---|---|"]
    names = {
        "flat": "faiss `Kmeans`, spherical",
        "two_level": f"two-level, {result['two_level']['probe']} cells searched",
    }
    for key, name in names.items():
        row = result[key]
        lines.append(f"| {name} | {row['rounds']} | {row['seconds']:.1f} | {row['mean_squared_error']:.4f} |")
    lines.append(f"| ratio | | {result['time_ratio']:.3f} | {result['error_ratio']:.4f} |")
    found, machine = result["agreement_of_10_labels"], result["machine"]
    setting = [
        f"{result['samples']} x {result['width']} points, {result['concepts']} centres, seed {result['seed']}",
        f"{machine['threads']} threads on {machine['processor']} ({machine['cores']} cores)",
        f"faiss {machine['faiss']}, numpy {machine['numpy']}.",
        f"Of {found['points']} points, the search of cells finds the nearest centre of {100 * found['nearest']:.2f} %",
        f"and {100 * found['labels']:.2f} % of the 10 nearest.",
    ]
    return "\n".join([*lines, "", *setting, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.concept_bank_build", description=__doc__)
    parser.add_argument("--samples", type=int, default=300_000)
    parser.add_argument("--concepts", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2, help="of both sides")
    parser.add_argument("--seed", type=int, default=0, help="of the points and of our draws")
    parser.add_argument("--output", type=Path, help="JSON to write")
    options = parser.parse_args(arguments)
    faiss.omp_set_num_threads(options.threads)
    result = measure(options.samples, options.concepts, options.width, options.seed)
    print(table(result))
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
