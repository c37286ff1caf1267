"""Features of a data set: every sample decoded and encoded once, whatever is then measured on them.

    features = extract(encoder, view, dataset)                          # in memory
    features = extract(encoder, view, dataset, cache=Path("cache"))     # on disk, reused by the next call

Samples are worked on in blocks of BLOCK. Block b belongs to rank b modulo the number of ranks; what a block holds does not depend
on that number. With a cache, a block is on disk as soon as it is finished (see `eval.blocks`), so that an interrupted call goes on
where it stopped. Pooled embeddings end up on every rank, tokens stay where they were computed.

Legend: N samples, V clips of a sample, L tokens of a clip, D hidden size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track

from eval.blocks import BLOCK, Block, BlockStore, check_room
from eval.datasets import Dataset
from eval.ranks import ALONE, Ranks
from eval.reading import look
from eval.views import SampleView
from eval.workers import ordered_map
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.views import View

if TYPE_CHECKING:
    # Processes that decode clips import this module; they have no use for torch.
    from eval.encoder import FrozenEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A sample without features."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Features:
    """N samples, in the order of the data set; those that could not be read keep their row and have length 0."""

    classes: tuple[str, ...]
    labels: np.ndarray
    """int64 [N], or bool [N, classes] where a sample has any number of classes."""
    pooled: np.ndarray
    """float32 [N, V, D]."""
    lengths: np.ndarray
    """int64 [N, V]: tokens of each clip, 0 = unanswered."""
    failures: tuple[Failure, ...]
    """Samples of length 0, named."""
    blocks: BlockStore
    """Tokens of this rank's samples."""
    ranks: Ranks = ALONE
    """Who shares the samples."""

    @property
    def answered(self) -> np.ndarray:
        """bool [N]: samples that have features."""
        return np.all(self.lengths > 0, axis=1)

    @property
    def mine(self) -> np.ndarray:
        """bool [N]: samples whose tokens this rank holds; every sample is one rank's."""
        return np.arange(len(self.lengths)) // BLOCK % self.ranks.world == self.ranks.rank

    @property
    def embeddings(self) -> np.ndarray:
        """float32 [N, D]: one vector a sample, the mean of its clips' unit vectors; zero where unanswered."""
        norms = np.linalg.norm(self.pooled, axis=2, keepdims=True)
        return (self.pooled / np.maximum(norms, 1e-12)).mean(axis=1)

    def tokens(self, samples: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens float16 [n, L, D], zero beyond the lengths, and lengths int64 [n], of n clips of this rank's samples."""
        lengths = self.lengths[samples, clips]
        found = np.zeros((len(samples), lengths.max(initial=0), self.pooled.shape[2]), np.float16)
        for row, (sample, clip, length) in enumerate(zip(samples, clips, lengths, strict=True)):
            found[row, :length] = self.blocks.tokens(sample // BLOCK)[sample % BLOCK, clip, :length]
        return found, lengths


def extract(
    encoder: FrozenEncoder,
    view: SampleView,
    dataset: Dataset,
    *,
    clips: int = 1,
    keep_tokens: bool = True,
    batch_size: int = 8,
    workers: int = 1,
    cache: Path | None = None,
    console: Console | None = None,
    title: str = "features",
    ranks: Ranks = ALONE,
) -> Features:
    """Decode and encode every sample of a data set. Collective over `ranks`.

    Args:
        encoder: frozen.
        view: what of each clip it sees.
        dataset: the samples.
        clips: equal parts of each video that are seen one by one.
        keep_tokens: False keeps pooled embeddings alone, a thousandth of the room.
        batch_size: samples of a forward pass.
        workers: decoding processes of this rank; 1 decodes in this one.
        cache: directory of features of earlier calls; None keeps them in memory alone.
        console: where progress is shown.
        title: what the progress bar is called.
        ranks: who shares the work.

    Raises:
        ValueError: the model gives features that are not finite, or there is no room for them.
    """
    entry = None if cache is None else cache / _fingerprint(encoder, view, dataset, clips)
    store, count = BlockStore(entry), len(dataset.samples)
    mine = range(ranks.rank, -(-count // BLOCK), ranks.world)
    pending = [block for block in mine if not store.holds(block, keep_tokens)]
    if keep_tokens:
        check_room(len(pending) * BLOCK * clips * view.max_tokens * encoder.width * 2, cache, ranks)
    todo = [sample for block in pending for sample in dataset.samples[block * BLOCK : (block + 1) * BLOCK]]
    looks = ordered_map(partial(look, view, clips), todo, workers)
    shown = track(looks, title, total=len(todo), console=console, disable=console is None)
    iterator = iter(shown)
    for block in pending:
        names = [sample.name for sample in dataset.samples[block * BLOCK : (block + 1) * BLOCK]]
        store.put(block, _encode(encoder, iterator, names, clips, batch_size, keep_tokens, ranks))
    for _ in iterator:  # lets the progress bar finish
        pass
    facts = {
        block: fact
        for part in ranks.gather({block: store.facts(block) for block in mine})
        for block, fact in part.items()
    }
    ordered = [facts[block] for block in range(len(facts))]
    failures = [
        Failure(path=dataset.samples[block * BLOCK + row].name, reason=reason)
        for block, fact in enumerate(ordered)
        for row, reason in sorted(fact.failures.items())
    ]
    return Features(
        classes=dataset.classes,
        labels=_labels(dataset),
        pooled=np.concatenate([fact.pooled for fact in ordered]),
        lengths=np.concatenate([fact.lengths for fact in ordered]),
        failures=tuple(failures),
        blocks=store,
        ranks=ranks,
    )


def _encode(
    encoder: FrozenEncoder,
    looks: Iterator[list[View] | BadSample],
    names: Sequence[str],
    clips: int,
    batch_size: int,
    keep_tokens: bool,
    ranks: Ranks,
) -> Block:
    """The features of one block."""
    count = len(names)
    pooled, lengths = np.zeros((count, clips, encoder.width), np.float32), np.zeros((count, clips), np.int64)
    found: dict[tuple[int, int], np.ndarray] = {}
    failures: dict[int, str] = {}
    for start in range(0, count, batch_size):
        ranks.progress()
        batch = list(enumerate(islice(looks, min(batch_size, count - start)), start))
        failures |= {row: str(views) for row, views in batch if isinstance(views, BadSample)}
        seen = [(row, clip, view) for row, views in batch if isinstance(views, list) for clip, view in enumerate(views)]
        if not seen:
            continue
        tokens, embeddings = encoder([view for _, _, view in seen])
        for (row, clip, _), one, embedding in zip(seen, tokens, embeddings, strict=True):
            half = one.half()
            if not (half.isfinite().all() and embedding.isfinite().all()):
                raise ValueError(
                    f"the model's features of {names[row]} are not finite in float16; its weights are damaged"
                )
            lengths[row, clip], pooled[row, clip] = len(one), embedding.numpy()
            if keep_tokens:
                found[row, clip] = half.numpy()
    return Block(
        pooled=pooled, lengths=lengths, failures=failures, tokens=_padded(found, pooled) if keep_tokens else None
    )


def _padded(found: dict[tuple[int, int], np.ndarray], pooled: np.ndarray) -> np.ndarray:
    """float16 [n, V, L, D], L being the longest of the block."""
    count, clips, width = pooled.shape
    tokens = np.zeros((count, clips, max(map(len, found.values()), default=0), width), np.float16)
    for (row, clip), one in found.items():
        tokens[row, clip, : len(one)] = one
    return tokens


def _labels(dataset: Dataset) -> np.ndarray:
    if not dataset.multi_label:
        return np.array([sample.labels[0] for sample in dataset.samples], np.int64)
    labels = np.zeros((len(dataset.samples), len(dataset.classes)), bool)
    for row, sample in enumerate(dataset.samples):
        labels[row, list(sample.labels)] = True
    return labels


def _fingerprint(encoder: FrozenEncoder, view: SampleView, dataset: Dataset, clips: int) -> str:
    """Of everything that features depend on; labels are not among it."""
    files = {path: _state(path) for path in {sample.path for sample in dataset.samples}}
    samples = [(str(sample.path.absolute()), sample.seconds, files[sample.path]) for sample in dataset.samples]
    facts = json.dumps([encoder.fingerprint, repr(view), clips, BLOCK, samples])
    return hashlib.sha256(facts.encode()).hexdigest()[:24]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
