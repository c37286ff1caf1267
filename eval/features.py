"""Features of a data set: every clip decoded and encoded once, whatever is then measured on them.

    features = extract(encoder, view, dataset)                          # in memory
    features = extract(encoder, view, dataset, cache=Path("cache"))     # on disk, reused by the next call

A cache entry is `CACHE/<hash>/` with tokens.npy, pooled.npy, lengths.npy and failures.json; its hash covers the model's files, the
view and the clips' names, labels, sizes and times, so a stale one is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track

from eval.datasets import LabelledClip, VideoDataset
from eval.views import ClipView
from eval.workers import ordered_map
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.views import View

if TYPE_CHECKING:
    # Processes that decode clips import this module; they have no use for torch.
    from eval.encoder import Encoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A clip without features."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Features:
    """N clips, in the order of the data set; those that could not be read keep their row and have length 0."""

    classes: tuple[str, ...]
    labels: np.ndarray
    """int64 [N]."""
    pooled: np.ndarray
    """float32 [N, D]."""
    tokens: np.ndarray
    """float16 [N, L, D], zero beyond a clip's length."""
    lengths: np.ndarray
    """int64 [N]: tokens of each clip, 0 = unanswered."""
    failures: tuple[Failure, ...]
    """Clips of length 0, named."""

    @property
    def answered(self) -> np.ndarray:
        """bool [N]: clips that have features."""
        return self.lengths > 0


def extract(
    encoder: Encoder,
    view: ClipView,
    dataset: VideoDataset,
    *,
    batch_size: int = 8,
    workers: int = 1,
    decoded: Iterable[View | BadSample] | None = None,
    cache: Path | None = None,
    console: Console | None = None,
    title: str = "features",
) -> Features:
    """Decode and encode every clip of a data set.

    Args:
        encoder: frozen.
        view: what of each clip it sees.
        dataset: the clips.
        batch_size: clips of a forward pass.
        workers: decoding processes; 1 decodes in this one.
        decoded: what `decode` gave for this view and data set, to compare encoders without decoding twice.
        cache: directory of features of earlier calls; None keeps them in memory alone.
        console: where progress is shown.
        title: what the progress bar is called.

    Raises:
        ValueError: the model gives features that are not finite, or `decoded` is of another number of clips.
    """
    if decoded is None:
        decoded = decode(view, dataset, workers=workers)
    shown = track(decoded, title, total=len(dataset.clips), console=console, disable=console is None)
    if cache is None:
        return _encode(encoder, view, dataset, shown, batch_size, None)
    entry = cache / _fingerprint(encoder, view, dataset)
    if not entry.exists():
        unfinished = entry.with_name(f"{entry.name}.{os.getpid()}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        computed = _encode(encoder, view, dataset, shown, batch_size, unfinished)
        np.save(unfinished / "pooled.npy", computed.pooled)
        np.save(unfinished / "lengths.npy", computed.lengths)
        (unfinished / "failures.json").write_text(json.dumps([asdict(failure) for failure in computed.failures]))
        unfinished.rename(entry)
    return Features(
        classes=dataset.classes,
        labels=_labels(dataset),
        pooled=np.load(entry / "pooled.npy"),
        tokens=np.load(entry / "tokens.npy", mmap_mode="r"),
        lengths=np.load(entry / "lengths.npy"),
        failures=tuple(Failure(**failure) for failure in json.loads((entry / "failures.json").read_text())),
    )


def decode(view: ClipView, dataset: VideoDataset, *, workers: int = 1) -> Iterator[View | BadSample]:
    """What `view` shows of every clip, in order, or why it cannot be shown; as a list, ready for any number of encoders."""
    return ordered_map(partial(_look, view), dataset.clips, workers)


def _encode(
    encoder: Encoder,
    view: ClipView,
    dataset: VideoDataset,
    decoded: Iterable[View | BadSample],
    batch_size: int,
    folder: Path | None,
) -> Features:
    """The features, their tokens in a file of `folder` if there is one."""
    count, shape = len(dataset.clips), (len(dataset.clips), view.max_tokens, encoder.width)
    tokens = (
        np.zeros(shape, np.float16)
        if folder is None
        else np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.float16, shape)
    )
    pooled, lengths = np.zeros((count, encoder.width), np.float32), np.zeros(count, np.int64)
    failures = []
    for batch in _batches(zip(range(count), decoded, strict=True), batch_size):
        seen = {row: look for row, look in batch if not isinstance(look, BadSample)}
        failures += [
            Failure(path=str(dataset.clips[row].path), reason=str(look))
            for row, look in batch
            if isinstance(look, BadSample)
        ]
        if not seen:
            continue
        found, embeddings = encoder(list(seen.values()))
        for row, one, embedding in zip(seen, found, embeddings, strict=True):
            half = one.half()
            if not (half.isfinite().all() and embedding.isfinite().all()):
                raise ValueError(
                    f"the model's features of {dataset.clips[row].path} are not finite in float16; its weights are damaged"
                )
            tokens[row, : len(one)], lengths[row], pooled[row] = half.numpy(), len(one), embedding.numpy()
    return Features(
        classes=dataset.classes,
        labels=_labels(dataset),
        pooled=pooled,
        tokens=tokens,
        lengths=lengths,
        failures=tuple(failures),
    )


def _look(view: ClipView, clip: LabelledClip) -> View:
    try:
        content = clip.path.read_bytes()
    except OSError as error:
        raise BadSample(f"it cannot be read: {error.strerror}") from error
    return view(content)


def _batches(
    looks: Iterator[tuple[int, View | BadSample]], batch_size: int
) -> Iterator[list[tuple[int, View | BadSample]]]:
    while batch := list(islice(looks, batch_size)):
        yield batch


def _labels(dataset: VideoDataset) -> np.ndarray:
    return np.array([clip.label for clip in dataset.clips], np.int64)


def _fingerprint(encoder: Encoder, view: ClipView, dataset: VideoDataset) -> str:
    clips = [
        (str(clip.path.absolute()), clip.label, clip.path.stat().st_size, clip.path.stat().st_mtime_ns)
        for clip in dataset.clips
    ]
    facts = json.dumps([encoder.fingerprint, repr(view), dataset.classes, clips])
    return hashlib.sha256(facts.encode()).hexdigest()[:24]
