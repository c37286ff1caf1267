"""One head's samples by position: everything random about a sample is decided here, from (seed, head, position) alone.

Workers are given this object once and positions from then on, so it pickles, and it needs neither torch nor a rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from codec.types import CLIP_EXTENSIONS
from megatron_ovenc.config.tree import HeadConfig, SourceConfig
from megatron_ovenc.data.dali import dali_pixels
from megatron_ovenc.data.encoded import Encoded, encoded
from megatron_ovenc.data.errors import BadRecord, BadSample, DataError, unexpected
from megatron_ovenc.data.images import framed_pixels
from megatron_ovenc.data.mixture import mode_at, source_at
from megatron_ovenc.data.order import generator, replacement_index, sample_indices
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage.base import VISIDX_EXTENSION, RawSample
from megatron_ovenc.data.views import Clip, View, draw_positives, whole
from megatron_ovenc.data.visidx import load_selection
from megatron_ovenc.data.windows import Framing, native, square

IMAGE_EXTENSIONS = ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif")
VIDEO_EXTENSIONS = CLIP_EXTENSIONS
SIDECAR_EXTENSION = "saliency"

MAX_ATTEMPTS = 16
"""Samples tried for one position before the data is declared unusable: bounded even where everything is bad."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """What came of one position."""

    view: View | Encoded
    """The patches, or the picture that they will be cut from."""
    labels: np.ndarray
    """int64 [K]: positive concept ids, -1 = none."""
    sample_id: str
    """Shard path, `#`, key."""
    bad: tuple[BadRecord, ...]
    """Samples that were tried before this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exhausted:
    """A position for which MAX_ATTEMPTS samples were bad."""

    bad: tuple[BadRecord, ...]
    """All of them."""


class HeadDataset:
    """The samples of one head, ready to be packed."""

    def __init__(self, head: HeadConfig, shards: ShardSet, *, patch_size: int, seed: int, micro_batch: int) -> None:
        """
        Args:
            head: the head's configuration, checked by `check_source`.
            shards: its shards, opened with its `source.shards`.
            patch_size: `model.patch_size`.
            seed: `train.seed`.
            micro_batch: samples of this head in a micro-batch over all ranks; the mixture is exact over these.
        """
        self._head = head
        self._shards = shards
        self._patch_size = patch_size
        self._seed = seed
        self._micro_batch = micro_batch

    def candidate(self, position: int, attempt: int) -> int:
        """The sample to try at a position after `attempt` bad ones."""
        first, count, order, place = self._turn(position)
        if attempt == 0:
            return first + int(sample_indices(place, count, seed=self._seed, head=order))
        return first + replacement_index(position, attempt, count, seed=self._seed, head=order)

    def _turn(self, position: int) -> tuple[int, int, str, int]:
        """What a position draws from: its first sample, number of samples, name of its order, and the place therein.

        Weighted sources have an order, and so epochs, of their own each.
        """
        name, weights, lengths = self._head.name, self._head.source.weights, self._shards.entry_lengths
        if not weights:
            return 0, len(self._shards), name, position
        entry, place = source_at(position, weights, self._micro_batch, seed=self._seed, head=name)
        return sum(lengths[:entry]), lengths[entry], f"{name}/{entry}", place

    def fetch(
        self, position: int, reasons: tuple[str, ...] = (), tell: Callable[[tuple[str, ...]], None] | None = None
    ) -> Fetched | Exhausted:
        """Load the sample at a global position, or the first good one of those that stand in for it.

        Args:
            position: place in the head's global order.
            reasons: why the first `len(reasons)` candidates are known to be bad already.
            tell: called with all reasons so far whenever one more candidate is bad.
        """
        found = list(reasons)
        while len(found) < MAX_ATTEMPTS:
            number = self.candidate(position, len(found))
            try:
                raw = self._shards.read(number)
                labels = draw_positives(
                    raw.labels,
                    self._head.bank.positives,
                    self._head.bank.num_classes,
                    self._generator("labels", position),
                )
                view = self._view(raw, position)
            except BadSample as error:
                found.append(str(error))
            except (DataError, MemoryError):
                raise
            except Exception as error:
                found.append(unexpected(error))
            else:
                return Fetched(view=view, labels=labels, sample_id=raw.sample_id, bad=self._records(position, found))
            if tell is not None:
                tell(tuple(found))
        return Exhausted(bad=self._records(position, found))

    def _view(self, raw: RawSample, position: int) -> View | Encoded:
        source = self._head.source
        rng = self._generator("view", position)
        if source.kind == "image":
            return self._picture(raw, None if source.augment is False else rng)
        clip = Clip(
            self.content(raw),
            raw.members.get(SIDECAR_EXTENSION),
            source,
            self._patch_size,
            rng=self._generator("augment", position) if source.augment else None,
        )
        match mode_at(position, source.modes, self._micro_batch, seed=self._seed, head=self._head.name):
            case "codec":
                return clip.codec_view(self.selection(raw))
            case "frames":
                return clip.frames_view(rng)
            case "collage":
                return clip.collage_view(rng)

    def _picture(self, raw: RawSample, rng: np.random.Generator | None) -> View | Encoded:
        source, content = self._head.source, self.content(raw)
        framing = image_framing(source, self._patch_size, rng)
        if source.decoder == "dali_gpu":
            picture = encoded(content, framing, patch_size=self._patch_size, sample_id=raw.sample_id)
            if picture is not None:
                return picture
        decode = dali_pixels if source.decoder == "dali" else framed_pixels
        return whole(decode(content, framing)[None], self._patch_size)

    def content(self, raw: RawSample) -> bytes:
        """The picture or clip among a sample's files.

        Raises:
            BadSample: there is none of the head's kind.
        """
        return _member(raw, VIDEO_EXTENSIONS if self._head.source.kind == "video" else IMAGE_EXTENSIONS)

    def selection(self, raw: RawSample) -> np.ndarray | None:
        """Positions int32 [tokens, 3] that a clip's `visidx.npy` selects, if it has one.

        Raises:
            BadSample: it selects nothing that this head could train on.
        """
        content = raw.members.get(VISIDX_EXTENSION)
        if content is None:
            return None
        source, side = self._head.source, self._head.source.size // self._patch_size
        return load_selection(content, grid=(source.clip_frames, side, side), tokens=source.tokens)

    def _generator(self, purpose: str, position: int) -> np.random.Generator:
        return generator(purpose, self._seed, self._head.name, position)

    def _records(self, position: int, reasons: list[str]) -> tuple[BadRecord, ...]:
        if not reasons:
            return ()
        names = [self._shards.sample_id(self.candidate(position, attempt)) for attempt in range(len(reasons) + 1)]
        return tuple(
            BadRecord(
                head=self._head.name,
                sample_id=names[attempt],
                position=position,
                reason=reason,
                replaced_by=names[attempt + 1],
            )
            for attempt, reason in enumerate(reasons)
        )


def image_framing(source: SourceConfig, patch_size: int, rng: np.random.Generator | None) -> Framing:
    """How a source shows its pictures; without `rng` neither crop nor flip is random."""
    if source.resize == "native":
        return partial(native, tokens=source.tokens, patch_size=patch_size, rng=rng)
    return partial(square, size=source.size, rng=rng)


def _member(raw: RawSample, extensions: tuple[str, ...]) -> bytes:
    content = next((raw.members[extension] for extension in extensions if extension in raw.members), None)
    if content is None:
        raise BadSample(f"it has none of .{', .'.join(extensions)}, only .{', .'.join(raw.members) or 'nothing'}")
    return content
