"""Keys that are set and never read: a configuration that says one thing and does another is refused.

A key counts as set where its value is not the default's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from megatron_ovenc.config.tree import DataConfig, RunConfig, SourceConfig


def idle_keys(config: RunConfig) -> Iterator[str]:
    """A problem for each key of the data that changes nothing beside the others."""
    yield from _loading(config.data)
    for head in config.heads:
        yield from _source(head.source, f"heads.{head.name}.source")


def _loading(data: DataConfig) -> Iterator[str]:
    # Not what is for workers where there are none: they are switched off for a moment, to look for a defect.
    if data.cache_dir is None:
        yield from _named(data, "data", ("cache_gb",), "no data.cache_dir, the folder that it bounds")


def _source(source: SourceConfig, key: str) -> Iterator[str]:
    if source.kind == "image":
        clips = ("modes", "num_frames", "clip_frames", "i_frames")
        yield from _named(source, key, clips, f"{key}.kind=image: it is for clips")
        if source.resize == "square":
            yield from _named(source, key, ("tokens",), f"{key}.resize=square, which fills `size` x `size`")
    elif source.modes.codec == 0:
        yield from _named(
            source, key, ("tokens", "i_frames"), f"{key}.modes.codec=0, the only mode that selects patches"
        )


def _named(config: Any, prefix: str, keys: tuple[str, ...], reason: str) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if field.name in keys and value != default:
            yield f"{prefix}.{field.name} has no effect with {reason}; remove it"
