"""What can be known of a head's data to be wrong before any process starts."""

from __future__ import annotations

import math

from megatron_ovenc.config.tree import HeadConfig, SourceConfig
from megatron_ovenc.data import dali
from megatron_ovenc.data.shards import ShardSet, labels_path

LABELS_CHECKED = 4_000_000
"""Labels read at the start; of larger sets evenly spaced rows."""
STRAY_SHARE = 0.01
"""Share of samples with labels outside the bank from which the configuration is wrong rather than the data damaged."""


def check_source(head: HeadConfig, *, patch_size: int) -> ShardSet:
    """Check a head's source against itself, its shards and its bank.

    Returns:
        The head's shards.

    Raises:
        ValueError: what is wrong, and the key to change.
    """
    source, key = head.source, f"heads.{head.name}.source"
    if source.size < patch_size or source.size % patch_size:
        raise ValueError(f"{key}.size is {source.size}; it must be a multiple of model.patch_size = {patch_size}")
    if source.decoder == "dali" and not dali.installed():
        raise ValueError(
            f"{key}.decoder is dali, which is not installed; pip install 'megatron-ovenc[dali]', or set it to pillow"
        )
    if source.kind == "video":
        _check_clips(source, key, patches=(source.size // patch_size) ** 2)
    try:
        shards = ShardSet.open(source.shards)
    except ValueError as error:
        raise ValueError(f"{key}.shards: {error}") from error
    if len(shards) == 0:
        raise ValueError(f"{key}.shards: the {len(shards.shards)} shards of {list(source.shards)} hold no sample")
    _check_labels(shards, head)
    return shards


def _check_clips(source: SourceConfig, key: str, *, patches: int) -> None:
    for name in ("num_frames", "clip_frames", "tokens"):
        if getattr(source, name) < 1:
            raise ValueError(f"{key}.{name} is {getattr(source, name)}; it must be at least 1")
    if source.num_frames > source.clip_frames:
        raise ValueError(
            f"{key}.num_frames is {source.num_frames}, more than clip_frames = {source.clip_frames}; lower num_frames"
        )
    available = source.clip_frames * patches
    if source.tokens > available:
        raise ValueError(
            f"{key}.tokens is {source.tokens}, but {source.clip_frames} frames of {patches} patches have only {available}; "
            f"lower tokens"
        )
    shares = {name: getattr(source.modes, name) for name in ("codec", "frames", "collage")}
    if min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"{key}.modes are {shares}; shares must not be negative and must sum to 1")


def _check_labels(shards: ShardSet, head: HeadConfig) -> None:
    """A few stray labels are bad samples, met and named in training; many mean that labels and bank do not belong together."""
    width = max(shard.label_width for shard in shards.shards)
    stride = max(1, math.ceil(len(shards) * max(1, width) / LABELS_CHECKED))
    looked_at, labelled, stray, example = 0, 0, 0, ""
    for shard in shards.shards:
        labels = shards.labels(shard)[::stride]
        outside = (labels < -1) | (labels >= head.bank.num_classes)
        looked_at += len(labels)
        labelled += int((labels != -1).any(axis=1).sum())
        stray += int(outside.any(axis=1).sum())
        if outside.any() and not example:
            example = f"{labels[outside][0]} in {labels_path(shard.path)}"
    if labelled == 0:
        raise ValueError(
            f"heads.{head.name}.source.shards: none of the {looked_at} samples looked at has a label; write them into the "
            f".labels.npy beside each shard (tools.make_shards does for labelled inputs, tools.build_concept_bank for clusters)"
        )
    if stray > STRAY_SHARE * looked_at:
        raise ValueError(
            f"heads.{head.name}.source.shards: {stray} of {looked_at} samples have labels outside [0, {head.bank.num_classes}), "
            f"such as {example} (-1 = none); set heads.{head.name}.bank.num_classes to the number of centres that the labels "
            f"were made for, or correct the labels"
        )
