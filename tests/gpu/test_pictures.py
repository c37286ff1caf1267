"""What only a GPU can say about pictures that it decodes. Never run yet: see docs/gpu.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_ovenc.data import dali
from megatron_ovenc.data.dali_batch import BatchDecoder
from megatron_ovenc.data.encoded import Encoded, encoded
from megatron_ovenc.data.errors import BadSample
from megatron_ovenc.parallel.topology import Topology
from tests.data.streams import loader, records, stream
from tests.data.test_dali import jpeg, photograph
from tests.data.test_dali_batch import FRAMING, head_of, of_batch, pictures, with_decoder, without_tables

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not dali.installed(), reason="DALI is not installed: pip install '.[dali]'"),
]


def views(count: int) -> list[Encoded]:
    found = []
    for n in range(count):
        content = jpeg(photograph().crop((7 * n % 300, n % 50, 320 + 5 * n % 200, 250 + n % 90)))
        picture = encoded(content, FRAMING, patch_size=14, sample_id=str(n))
        assert picture is not None
        found.append(picture)
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("resize", ["square", "native"])
def test_batches_are_pillow_s_but_for_rounding(topology: Topology, tmp_path: Path, resize: str, workers: int) -> None:
    head, log = head_of(pictures(24), tmp_path, resize=resize, tokens=20), tmp_path / "bad.jsonl"
    one = loader(head, log, device=topology.device)
    batch = one.next()
    assert batch.patches.device == topology.device
    assert batch.patches.dtype == torch.uint8
    one.close()
    kept, pixels = of_batch(stream(head, log, 5, workers=workers, device=topology.device))
    expected, other = of_batch(stream(with_decoder(head, "pillow"), log, 5))
    assert kept == expected
    assert np.abs(pixels - other).mean() < 2  # levels of 255
    assert records(log) == []


def test_ranks_and_resumption_change_no_pixel(topology: Topology, tmp_path: Path) -> None:
    """Which of nvJPEG's decoders a picture meets does not depend on its batch."""
    head, log = head_of(pictures(20), tmp_path), tmp_path / "bad.jsonl"
    alone = stream(head, log, 6, device=topology.device)
    assert alone == stream(head, log, 6, ranks=3, device=topology.device)
    assert alone[4:] == stream(head, log, 2, ranks=2, consumed=4 * 6, device=topology.device)


@pytest.mark.parametrize("damage", [lambda content: content[:-30], without_tables], ids=["truncated", "tables"])
def test_bad_pictures_are_pillow_s(topology: Topology, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    samples = pictures(24)
    for n in (0, 8, 9, 15, 16):
        samples[n] = {"jpg": damage(jpeg(photograph().crop((n, n, 100, 80))))}
    head = head_of(samples, tmp_path)
    ours = stream(head, tmp_path / "gpu.jsonl", 8, device=topology.device)
    expected = stream(with_decoder(head, "pillow"), tmp_path / "pillow.jsonl", 8)
    assert of_batch(ours)[0] == of_batch(expected)[0]
    assert sorted(map(repr, records(tmp_path / "gpu.jsonl"))) == sorted(map(repr, records(tmp_path / "pillow.jsonl")))


def test_a_bad_picture_changes_no_other_of_its_batch(topology: Topology) -> None:
    sound = views(12)
    bad = encoded(without_tables(jpeg(photograph())), FRAMING, patch_size=14, sample_id="bad")
    assert bad is not None
    decoder = BatchDecoder(patch_size=14, device=topology.device, threads=2)
    expected = decoder.decode(sound)
    found = decoder.decode([*sound[:5], bad, *sound[5:]])
    assert isinstance(found.pop(5), BadSample)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        assert torch.equal(one, other)


def test_memory_is_not_used_again_before_it_is_read(topology: Topology) -> None:
    """The host decodes one batch after the other while the GPU is busy with something else."""
    device = topology.device
    decoder = BatchDecoder(patch_size=14, device=device, threads=2)
    batches = [views(96)[n : n + 32] for n in (0, 32, 64)]
    expected = [torch.cat([torch.as_tensor(one).cpu() for one in decoder.decode(batch)]) for batch in batches]
    busy = torch.randn(8192, 8192, device=device)
    found = []
    for _ in range(4):
        for batch in batches:
            torch.mm(busy, busy)
            found.append(torch.cat([torch.as_tensor(one) for one in decoder.decode(batch)]))
    for n, packed in enumerate(found):
        assert torch.equal(packed.cpu(), expected[n % 3])
