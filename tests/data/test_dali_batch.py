"""`decoder: dali_gpu`: one pipeline decodes a micro-batch in the training process, and nothing but rounding tells it from Pillow.

Here with DALI's CPU operators; tests/gpu has the same for a GPU.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_ovenc.config.tree import HeadConfig
from megatron_ovenc.data import dali, dali_batch, encoded
from megatron_ovenc.data.dali import dali_pixels
from megatron_ovenc.data.dali_batch import BatchDecoder
from megatron_ovenc.data.dataset import MAX_ATTEMPTS
from megatron_ovenc.data.encoded import Encoded, complete_jpeg
from megatron_ovenc.data.errors import BadSample, DataError
from megatron_ovenc.data.views import View, whole
from megatron_ovenc.data.windows import square
from tests.data.samples import image_bytes, image_head, write_shard
from tests.data.streams import loader, records, stream
from tests.data.test_dali import jpeg, photograph

pytestmark = pytest.mark.skipif(not dali.installed(), reason="DALI is not installed: pip install '.[dali]'")

CPU = torch.device("cpu")
FRAMING = partial(square, size=56, rng=None)


def without_tables(content: bytes) -> bytes:
    """Every segment is there and whole, but Huffman tables that the scan asks for; to be found out by decoding only."""
    damaged = bytearray(content)
    damaged[content.index(b"\xff\xda") + 6] = 0x33
    return bytes(damaged)


def with_garbage(content: bytes) -> bytes:
    """Bytes between two segments, which libjpeg passes over and DALI does not."""
    place = content.index(b"\xff\xdb")
    return content[:place] + b"garbage" + content[place:]


def pictures(count: int) -> list[dict[str, bytes]]:
    """Photographs of odd sizes: mostly JPEGs in colour, some grey, progressive or with restart markers, and other formats."""
    samples = []
    for n in range(count):
        crop = photograph().crop((11 * n, 3 * n, 11 * n + 61 + 7 * n, 3 * n + 45 + (5 * n) % 90))
        if n % 7 == 3:
            samples.append({"png": image_bytes(np.asarray(crop))})
            continue
        mode = {4: "L", 5: "CMYK"}.get(n % 7, "RGB")
        samples.append(
            {"jpg": jpeg(crop.convert(mode), progressive=n % 5 == 1, restart_marker_rows=n % 3, subsampling=n % 3)}
        )
    return samples


def head_of(samples: Sequence[dict[str, bytes]], folder: Path, decoder: str = "dali_gpu", **changes: Any) -> HeadConfig:
    count = len(samples)
    write_shard(folder / "photos.tar", samples, np.arange(2 * count).reshape(count, 2) % 50)
    return with_decoder(image_head(str(folder / "photos.tar"), batch=12), decoder, **changes)


def with_decoder(head: HeadConfig, decoder: str, **changes: Any) -> HeadConfig:
    return replace(head, source=replace(head.source, decoder=decoder, **changes))  # type: ignore[arg-type]


def of_batch(micro_batches: Sequence[Sequence[tuple]]) -> tuple[list[tuple], np.ndarray]:
    """Names, labels and positions, and all pixels."""
    flat = [one for batch in micro_batches for one in batch]
    pixels = np.concatenate([np.frombuffer(patches, np.uint8) for *_, patches in flat])
    return [tuple(kept) for *kept, _ in flat], pixels.astype(int)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("resize", ["square", "native"])
def test_batches_are_those_of_the_workers_decoders(tmp_path: Path, resize: str, workers: int) -> None:
    head, log = head_of(pictures(24), tmp_path, resize=resize, tokens=20), tmp_path / "bad.jsonl"
    ours = stream(head, log, 5, workers=workers)
    assert ours == stream(with_decoder(head, "dali"), log, 5)
    kept, pixels = of_batch(ours)
    expected, other = of_batch(stream(with_decoder(head, "pillow"), log, 5))
    assert kept == expected
    assert np.abs(pixels - other).mean() < 1.5  # levels of 255; Pillow decodes the largest at a half or less
    assert records(log) == []


def test_ranks_and_resumption_do_not_matter(tmp_path: Path) -> None:
    head, log = head_of(pictures(20), tmp_path), tmp_path / "bad.jsonl"
    alone = stream(head, log, 6)
    assert alone == stream(head, log, 6, ranks=3)
    assert alone[4:] == stream(head, log, 2, ranks=2, workers=1, consumed=4 * 6)


@pytest.mark.parametrize(
    ("damage", "workers"),
    [
        (lambda content: content[:-30], 2),
        (lambda content: content[:-2], 0),
        (lambda content: b"\xff\xd8\xff nothing", 0),
        (without_tables, 0),
        (without_tables, 2),
    ],
    ids=["truncated", "endless", "nothing", "tables", "tables-workers"],
)
def test_bad_pictures_are_pillow_s_wherever_they_are_found(
    tmp_path: Path, damage: Callable[[bytes], bytes], workers: int
) -> None:
    samples = pictures(24)
    for n in (0, 8, 9, 15, 16):  # several follow each other, so that replacements are replaced
        samples[n] = {"jpg": damage(jpeg(photograph().crop((n, n, 100, 80))))}
    head = head_of(samples, tmp_path)
    found = {
        decoder: stream(with_decoder(head, decoder), tmp_path / f"{decoder}.jsonl", 8, workers=workers)
        for decoder in ("dali_gpu", "pillow")
    }
    assert of_batch(found["dali_gpu"])[0] == of_batch(found["pillow"])[0]
    ours, expected = (records(tmp_path / f"{decoder}.jsonl") for decoder in found)
    assert sorted(map(repr, ours)) == sorted(map(repr, expected))
    assert len(ours) >= 10
    assert any(line["replaced_by"] == other["sample_id"] for line in ours for other in ours)


def test_a_bad_picture_changes_no_other_of_its_batch() -> None:
    contents = [jpeg(photograph().crop((9 * n, 0, 9 * n + 80, 60))) for n in range(9)]
    for bad in ([4], [0, 8], [3, 4]):
        damaged = [without_tables(content) if n in bad else content for n, content in enumerate(contents)]
        views = [encoded.encoded(content, FRAMING, patch_size=14, sample_id="") for content in damaged]
        decoder = BatchDecoder(patch_size=14, device=CPU, threads=2)
        for _ in range(2):
            found = decoder.decode([view for view in views if view is not None])
            for n, one in enumerate(found):
                if n in bad:
                    assert isinstance(one, BadSample)
                else:
                    assert (np.asarray(one) == whole(dali_pixels(contents[n], FRAMING)[None], 14).patches).all()


def test_what_dali_alone_fails_on_is_pillow_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [{"jpg": jpeg(photograph().crop((9 * n, 0, 9 * n + 80, 60)))} for n in range(12)]
    samples[3] = {"jpg": with_garbage(samples[3]["jpg"])}
    head, log = head_of(samples, tmp_path), tmp_path / "bad.jsonl"
    pillow, theirs = (dict_of(stream(with_decoder(head, decoder), log, 2)) for decoder in ("pillow", "dali_gpu"))
    (garbled,) = [name for name in pillow if name.endswith("photos-003")]
    assert theirs[garbled] == pillow[garbled]  # a worker saw that it is not one segment after the other
    monkeypatch.setattr(encoded, "complete_jpeg", lambda content: True)
    with caplog.at_level(logging.WARNING):
        ours = dict_of(stream(head, log, 2))
    assert ours == theirs
    assert "photos-003" in caplog.text
    assert records(log) == []


class Small:
    """A pipeline in whose memory there is room for two pictures."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def run(self, stream: None, **batch: list[np.ndarray]) -> Any:
        if len(batch["file"]) > 2:
            raise MemoryError("std::bad_alloc")
        return self.pipeline.run(stream, **batch)


def test_batches_for_which_memory_is_short_are_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [jpeg(photograph().crop((9 * n, 0, 9 * n + 80, 60))) for n in range(5)]
    views = [encoded.encoded(content, FRAMING, patch_size=14, sample_id="") for content in contents]
    build = dali_batch._build
    monkeypatch.setattr(dali_batch, "_build", lambda *options: Small(build(*options)))
    found = BatchDecoder(patch_size=14, device=CPU, threads=1).decode([view for view in views if view is not None])
    for content, one in zip(contents, found, strict=True):
        assert (np.asarray(one) == whole(dali_pixels(content, FRAMING)[None], 14).patches).all()


def dict_of(micro_batches: Sequence[Sequence[tuple]]) -> dict[str, tuple]:
    return {one[0]: one for batch in micro_batches for one in batch}


def test_data_without_a_good_picture_ends_the_run(tmp_path: Path) -> None:
    samples = [{"jpg": without_tables(jpeg(photograph().crop((n, 0, 80, 60))))} for n in range(12)]
    one = loader(head_of(samples, tmp_path), tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match=f"{MAX_ATTEMPTS} samples in a row could not be used in head 'images'"):
        one.next()
    assert len(records(tmp_path / "bad.jsonl")) >= MAX_ATTEMPTS


@pytest.mark.parametrize("limits", [(1, 1 << 26), (4, 1 << 26), (64, 10_000), (64, 1)])
def test_large_batches_are_decoded_in_runs(monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]) -> None:
    views: list[View | Encoded] = []
    expected = []
    for n in range(11):
        content = jpeg(photograph().crop((n, n, 70 + 9 * n, 60 + 4 * n)))
        patches = whole(dali_pixels(content, FRAMING)[None], 14).patches
        picture = encoded.encoded(content, FRAMING, patch_size=14, sample_id=str(n))
        assert picture is not None
        views.append(picture if n != 5 else View(patches=patches, positions=picture.positions))
        expected.append(patches)
    monkeypatch.setattr(dali_batch, "RUN_PICTURES", limits[0])
    monkeypatch.setattr(dali_batch, "RUN_AREA", limits[1])
    decoder = BatchDecoder(patch_size=14, device=CPU, threads=2)
    first, second = decoder.decode(views), decoder.decode(views[::-1])[::-1]
    for found in (first, second):  # the first, too, which the second must not have written over
        assert all(not isinstance(one, BadSample) for one in found)
        assert all((np.asarray(one) == patches).all() for one, patches in zip(found, expected, strict=True))
    assert decoder.decode([]) == []


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 100}])
def test_a_jpeg_is_complete_with_its_last_byte(options: dict[str, Any]) -> None:
    thumbnail = io.BytesIO()
    photograph().resize((16, 16)).save(thumbnail, "jpeg")  # has an end marker of its own, inside of a segment
    content = jpeg(photograph().resize((90, 60)), comment=thumbnail.getvalue(), **options)
    assert complete_jpeg(content)
    assert complete_jpeg(content + b"\xff\x00 behind the end \xff")
    assert not any(complete_jpeg(content[:length]) for length in range(len(content)))
    padded = content[:2] + b"\xff\xff" + content[2:]  # a marker may have any number of these before it
    assert complete_jpeg(padded)
    for one in (content, padded):
        with Image.open(io.BytesIO(one)) as file:
            file.load()


def test_bytes_of_any_kind_are_not_a_complete_jpeg() -> None:
    for size in range(64):
        assert not complete_jpeg(os.urandom(2) + b"\xff" * size)
        assert not complete_jpeg(b"\xff\xd8" + b"\xff\xe0" + bytes(size))
