"""What is in a data set: every sample is read and its checksum compared; of clips the packets are counted, not decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codec.source import open_clip, packets
from codec.types import CodecError
from megatron_ovenc.data.dataset import IMAGE_EXTENSIONS, SIDECAR_EXTENSION, VIDEO_EXTENSIONS
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.data.images import open_picture
from megatron_ovenc.data.shards import ShardSet
from megatron_ovenc.data.storage.base import RawSample

_MOST_FREQUENT = 10


@dataclass(kw_only=True, slots=True)
class Statistics:
    """Grows by a sample at a time."""

    samples: int = 0
    stored: Counter[str] = field(default_factory=Counter)
    """Bytes by extension."""
    formats: Counter[str] = field(default_factory=Counter)
    """Pictures by file format, clips by codec."""
    heights: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    gops: Counter[int] = field(default_factory=Counter)
    """Frames from a key frame to the next or to the end."""
    sidecars: int = 0
    unlabelled: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Sample ids with reasons."""

    def add(self, raw: RawSample) -> None:
        """Count a sample that could be read.

        Raises:
            BadSample, CodecError: its picture or clip is none.
        """
        self.samples += 1
        for extension, content in raw.members.items():
            self.stored[extension] += len(content)
        self.sidecars += SIDECAR_EXTENSION in raw.members
        labels = np.unique(raw.labels[raw.labels != -1]).tolist()
        self.unlabelled += not labels
        self.labels.update(labels)
        for extension, content in raw.members.items():
            if extension in IMAGE_EXTENSIONS:
                self._add_picture(content)
            elif extension in VIDEO_EXTENSIONS:
                self._add_clip(content)

    def _add_picture(self, content: bytes) -> None:
        file, width, height = open_picture(content)
        self.formats[str(file.format)] += 1
        self.widths.append(width)
        self.heights.append(height)

    def _add_clip(self, content: bytes) -> None:
        with open_clip(content, "the clip") as clip:
            keys = [packet.is_keyframe for packet in packets(clip) if packet is not None]
            stream = clip.stream
            self.formats[clip.codec] += 1
            self.widths.append(stream.width)
            self.heights.append(stream.height)
            self.frames.append(len(keys))
            if stream.average_rate:
                self.seconds.append(len(keys) / float(stream.average_rate))
        starts = np.flatnonzero(keys)
        self.gops.update(np.diff([*starts.tolist(), len(keys)]).tolist())

    def as_json(self) -> dict[str, Any]:
        """Plain types; ranges are [least, median, most]."""
        return {
            "samples": self.samples,
            "bytes": dict(self.stored),
            "formats": dict(self.formats),
            "height": _range(self.heights),
            "width": _range(self.widths),
            "frames": _range(self.frames),
            "seconds": _range(self.seconds),
            "gops": {str(length): count for length, count in sorted(self.gops.items())},
            "sidecars": self.sidecars,
            "unlabelled": self.unlabelled,
            "classes": len(self.labels),
            "samples_per_class": _range(list(self.labels.values())),
            "most_frequent": [[label, count] for label, count in self.labels.most_common(_MOST_FREQUENT)],
            "damaged": [{"sample_id": sample_id, "reason": reason} for sample_id, reason in self.damaged],
        }


def gather(shards: ShardSet, advance: Callable[[], None] = lambda: None) -> Statistics:
    """Read every sample; `advance` is called after each."""
    statistics = Statistics()
    for number in range(len(shards)):
        try:
            statistics.add(shards.read(number))
        except (BadSample, CodecError) as error:
            statistics.damaged.append((shards.sample_id(number), str(error)))
        advance()
    return statistics


def _range(values: list[int] | list[float]) -> list[float] | None:
    if not values:
        return None
    return [round(float(value), 3) for value in (min(values), np.median(values), max(values))]
