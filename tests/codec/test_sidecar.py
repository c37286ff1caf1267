"""Sidecars: what goes in comes out, the same every time, and damage is noticed."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

import codec
from tests.codec.clips import encode, moving_square, panning


@pytest.fixture(scope="module")
def clip() -> bytes:
    return encode(panning(20, (112, 168), (2, 1)), options={"x264-params": "keyint=8:min-keyint=8:scenecut=0"})


@pytest.fixture(scope="module")
def sidecar(clip: bytes) -> codec.Sidecar:
    return codec.analyse(clip, (8, 12), virtual_frames=16, config=codec.REFERENCE)


def test_a_sidecar_holds_what_its_clip_says(clip: bytes, sidecar: codec.Sidecar) -> None:
    indices = codec.frame_indices(20, 16)
    frames = codec.sample(codec.signals(clip), indices)
    maps = codec.saliency(frames, (8, 12), config=codec.REFERENCE)
    np.testing.assert_allclose(sidecar.saliency / 255, maps, atol=0.5 / 255 + 1e-6)
    assert np.array_equal(sidecar.frame_indices, indices)
    assert sidecar.frame_types == "".join(frame.type for frame in frames)
    assert (sidecar.height, sidecar.width, sidecar.source_codec, sidecar.estimated) == (112, 168, "h264", False)
    assert not sidecar.is_static


def test_round_trip_and_stable_bytes(clip: bytes, sidecar: codec.Sidecar) -> None:
    data = codec.dumps(sidecar)
    again = codec.loads(data)
    assert np.array_equal(again.saliency, sidecar.saliency)
    assert np.array_equal(again.frame_indices, sidecar.frame_indices)
    assert again.config == sidecar.config
    assert codec.dumps(again) == data
    fresh = codec.analyse(clip, (8, 12), virtual_frames=16, config=codec.REFERENCE)
    assert codec.dumps(fresh) == data
    assert len(data) < sidecar.saliency.size + 1000
    assert codec.analyse(clip, virtual_frames=4).saliency.shape == (4, *codec.patch_grid(112, 168))


def test_a_few_kilobytes_a_clip() -> None:
    """A moving object over a still floor, 64 frames of 16 x 16 patches: 16 KiB before packing."""
    frames, _ = moving_square(64, (224, 224), (2, 1), side=48)
    assert len(codec.dumps(codec.analyse(encode(frames), (16, 16)))) < 6000


def test_another_process_writes_the_same_bytes(tmp_path, clip: bytes, sidecar: codec.Sidecar) -> None:
    path, output = tmp_path / "clip.mp4", tmp_path / "clip.saliency"
    path.write_bytes(clip)
    command = [sys.executable, "-m", "codec", "analyze", str(path), "-o", str(tmp_path), "--grid", "8x12"]
    subprocess.run([*command, "--frames", "16", "--saliency", "reference"], check=True)
    assert output.read_bytes() == codec.dumps(sidecar)


def test_a_sidecar_of_another_clip_is_stale(tmp_path, clip: bytes, sidecar: codec.Sidecar) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip)
    sidecar.verify(clip)
    sidecar.verify(path)
    path.write_bytes(clip[:-1] + bytes([clip[-1] ^ 1]))
    with pytest.raises(codec.CodecError, match=r"clip\.mp4.*stale"):
        sidecar.verify(path)
    with pytest.raises(codec.CodecError, match="stale"):
        sidecar.verify(clip[:-1])
    with pytest.raises(codec.CodecError, match="gone"):
        sidecar.verify(tmp_path / "gone")


def test_every_damaged_byte_of_the_maps_is_noticed(sidecar: codec.Sidecar) -> None:
    data = codec.dumps(sidecar)
    maps_begin = 8 + int.from_bytes(data[:8], "little")
    for position in [0, 5, 9, 40, maps_begin, maps_begin + 77, len(data) - 1]:
        broken = data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]
        with pytest.raises(codec.CodecError, match=r"shard:7"):
            codec.loads(broken, name="shard:7")


@pytest.mark.parametrize("share", [0, 0.001, 0.2, 0.5, 0.999])
def test_cut_sidecars(sidecar: codec.Sidecar, share: float) -> None:
    data = codec.dumps(sidecar)
    with pytest.raises(codec.CodecError, match="damaged"):
        codec.loads(data[: int(share * len(data))])


def test_foreign_and_future_files(sidecar: codec.Sidecar) -> None:
    with pytest.raises(codec.CodecError, match="not a sidecar"):
        codec.loads(save({"saliency": sidecar.saliency}))
    with pytest.raises(codec.CodecError, match="not a sidecar"):
        codec.loads(b"P" * 500)
    data = codec.dumps(sidecar)
    future = json.dumps(json.dumps({"version": 3}))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["sidecar"] = json.loads(future)
    encoded = json.dumps(header).encode()
    with pytest.raises(codec.CodecError, match="version 3"):
        codec.loads(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


def test_inconsistent_contents_are_noticed(sidecar: codec.Sidecar) -> None:
    with pytest.raises(codec.CodecError, match="types"):
        codec.loads(codec.dumps(replace(sidecar, clip_types=sidecar.clip_types[:-1])))
    with pytest.raises(ValueError, match="float32"):
        codec.dumps(replace(sidecar, saliency=sidecar.saliency.astype(np.float32)))


def test_a_static_clip_is_flagged_and_still_selects() -> None:
    still = codec.analyse(encode([np.full((64, 80), 100, np.uint8)] * 5), (4, 5))
    assert codec.loads(codec.dumps(still)).is_static
    assert len(codec.select(still.saliency, 33, "keep", frame_types=still.frame_types)) == 33
