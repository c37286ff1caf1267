"""A picture of a concept bank: a batch's embeddings and the centres that it names in two dimensions, before and after training.

Drawn from the snapshots that a run leaves under <run_dir>/banks (`megatron_ovenc.train.bank_watch`), on the two principal axes of
the centres; what two axes cannot show is told in numbers above them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from safetensors import SafetensorError, safe_open

_COLOURED = 10
"""Classes that get a colour of their own: those that most samples name."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Snapshot:
    """What a look at a bank left behind."""

    step: int
    embeddings: np.ndarray
    """float32 [n, D], of length 1."""
    labels: np.ndarray
    """int64 [n]."""
    centres: np.ndarray
    """float32 [m, D], of length 1."""
    classes: np.ndarray
    """int64 [m], ascending; every label is among them."""

    @classmethod
    def read(cls, path: Path) -> Snapshot:
        """From a file.

        Raises:
            ValueError: it is missing or damaged.
        """
        try:
            with safe_open(path, framework="np") as file:
                names = ("embeddings", "labels", "centres", "classes")
                step = int((file.metadata() or {}).get("step", 0))
                return cls(step=step, **{name: file.get_tensor(name) for name in names})
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is not a readable snapshot of a bank: {error}") from error

    def cosines(self) -> tuple[float, float]:
        """Mean of the samples to their own centre, and to the other centres of the batch."""
        table = self.embeddings @ self.centres.T
        own = self.labels[:, None] == self.classes
        others = table[~own]
        return float(table[own].mean()), float(others.mean()) if len(others) else float("nan")


def heads(run: Path) -> list[str]:
    """Heads of a run that have a snapshot."""
    return sorted(path.name.removesuffix(".first.safetensors") for path in (run / "banks").glob("*.first.safetensors"))


def picture(run: Path, head: str) -> bytes:
    """PNG of a head's bank at its first and its latest look.

    Raises:
        ValueError: a snapshot is damaged.
    """
    paths = [run / "banks" / f"{head}.{name}.safetensors" for name in ("first", "last")]
    snapshots = [Snapshot.read(path) for path in paths if path.exists()]
    figure, axes = plt.subplots(1, len(snapshots), figsize=(5 * len(snapshots), 4.6), dpi=110, squeeze=False)
    for panel, snapshot in zip(axes[0], snapshots, strict=True):
        _draw(panel, snapshot)
    buffer = io.BytesIO()
    figure.savefig(buffer, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def _draw(panel: Axes, snapshot: Snapshot) -> None:
    # The centres' axes, not the embeddings': what all embeddings share would take the first one and tell no cluster apart.
    middle = snapshot.centres.mean(axis=0)
    axes = np.zeros((2, len(middle)), np.float32)
    found = np.linalg.svd(snapshot.centres - middle, full_matrices=False)[2][:2]
    axes[: len(found)] = found
    samples, centres = ((part - middle) @ axes.T for part in (snapshot.embeddings, snapshot.centres))
    classes, counts = np.unique(snapshot.labels, return_counts=True)
    coloured = {
        int(name): f"C{rank}" for rank, name in enumerate(classes[np.argsort(-counts, kind="stable")][:_COLOURED])
    }
    panel.scatter(
        samples[:, 0], samples[:, 1], s=12, alpha=0.7, c=[coloured.get(int(label), "0.8") for label in snapshot.labels]
    )
    edges = [coloured.get(int(name), "0.7") for name in snapshot.classes]
    panel.scatter(centres[:, 0], centres[:, 1], s=90, marker="X", c=edges, edgecolors="k", linewidths=0.7)
    own, others = snapshot.cosines()
    panel.set_title(f"step {snapshot.step}: cosine to own centre {own:.2f}, to others {others:.2f}", fontsize=10)
    panel.set_xticks([])
    panel.set_yticks([])
