import numpy as np


def mixture(samples: int, clusters: int, width: int, seed: int) -> np.ndarray:
    """Unit vectors float32 [samples, width] of a mixture of mixtures: topics, clusters in them, of very different sizes and spreads.

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
