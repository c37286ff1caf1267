"""The reader against x265, with FFmpeg's decoder as the judge.

Over the matrix of configurations, every slice's parse ends where the slice does, the same frames are shown and bits add up; and
where no loop filter hides it, motion and residual are exact.
"""

import io
import re
from dataclasses import replace
from functools import cache

import av
import numpy as np
import pytest

from codec import hevc
from tests.codec.hevc.prediction import by_sequence, predict
from tests.codec.hevc_streams.judge import decode
from tests.codec.hevc_streams.matrix import Configuration, configurations, encode

CONFIGURATIONS = configurations()
FILTERS = ("no-deblock=0", "no-sao=0", "deblock=")
"""In a configuration's parameters: samples differ from prediction and residual."""
UNFILTERED = [
    name
    for name, made in CONFIGURATIONS.items()
    if made.frames > 1 and not any(word in made.params for word in (*FILTERS, "weight", "keyint=1", "lossless"))
]
"""Their frames are decoded anew without weighted prediction, which `prediction` does not know."""
FINE = re.compile(r"(^|:)qp=([0-9]|1[0-9]|2[0-4])(:|$)")
"""In a configuration's parameters: a quantiser so fine that hardly a block is without residual."""
PICTURE_TYPES = " IPB"


@cache
def read(configuration: Configuration) -> tuple[bytes, list[hevc.HevcFrame]]:
    data = encode(configuration)
    return data, list(hevc.frames(data))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_slice_is_read_to_its_end(name: str) -> None:
    """A slice that is parsed wrongly does not end at its end, and raises."""
    configuration = CONFIGURATIONS[name]
    data, frames = read(configuration)
    assert len(frames) == configuration.frames
    with av.open(io.BytesIO(data)) as clip:
        shown = [(PICTURE_TYPES[int(f.pict_type)], bool(f.key_frame), f.width, f.height) for f in clip.decode(video=0)]
    assert [(frame.type, frame.key_frame, frame.width, frame.height) for frame in frames] == shown
    assert sorted(frame.order for frame in frames) == list(range(len(frames)))
    for frame in frames:
        assert frame.mode.all()  # 0 is none: every cell belongs to a unit
        assert frame.bits.sum() + frame.other_bits == pytest.approx(frame.slice_data_bits, rel=0.01)


@pytest.mark.parametrize("name", [name for name in UNFILTERED if not FINE.search(CONFIGURATIONS[name].params)])
def test_blocks_without_residual_are_predicted_bit_for_bit(name: str) -> None:
    """Skipped units, and transform blocks of others that have no coefficient."""
    configuration = unweighted(name)
    data, frames = read(configuration)
    planes, _ = decode(data, configuration.container)
    count = 0
    for frame, plane, references in zip(frames, planes, by_sequence(frames, planes), strict=True):
        cells = predictable(frame, configuration) & (frame.residual_energy == 0)
        predicted, at = predict(frame, cells, references, configuration.bit_depth)
        np.testing.assert_array_equal(predicted, blocks(plane, at))
        count += len(at)
    assert count > 50


@pytest.mark.parametrize("name", UNFILTERED)
def test_residual_is_what_prediction_leaves(name: str) -> None:
    configuration = unweighted(name)
    data, frames = read(configuration)
    planes, _ = decode(data, configuration.container)
    measured, ours = [], []
    for frame, plane, references in zip(frames, planes, by_sequence(frames, planes), strict=True):
        cells = predictable(frame, configuration)
        predicted, at = predict(frame, cells, references, configuration.bit_depth)
        difference = (blocks(plane, at) - predicted) / 2.0 ** (configuration.bit_depth - 8)
        measured.append((difference**2).mean(axis=(1, 2)))
        ours.append(frame.residual_energy[cells])
    energy, coded = np.concatenate(measured), np.concatenate(ours)
    assert energy.any() == coded.any()
    if energy.any():
        assert np.corrcoef(energy, coded)[0, 1] >= 0.99
        assert coded.sum() == pytest.approx(energy.sum(), rel=0.1)


def unweighted(name: str) -> Configuration:
    configuration = CONFIGURATIONS[name]
    return replace(configuration, params=f"{configuration.params}:weightp=0:weightb=0".lstrip(":"))


def predictable(frame: hevc.HevcFrame, configuration: Configuration) -> np.ndarray:
    """Inter cells [rows, cols] that lie in the picture, as do the samples they are predicted from where its edge is cropped: beyond
    that edge a decoder has samples, and we have none."""
    rows, cols = np.indices(frame.mode.shape)
    smallest = re.search(r"min-cu-size=(\d+)", configuration.params)
    unit = int(smallest[1]) if smallest else 8
    found = frame.predicted.any(axis=-1)
    for at, length, axis in ((rows, frame.height, 1), (cols, frame.width, 0)):
        if length % unit:
            reach = 4 * at[:, :, None] + 8 + (frame.vectors[..., axis] >> 2)
            found &= (4 * at + 4 <= length) & ((reach <= length) | ~frame.predicted).all(axis=-1)
    return found


def blocks(plane: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Cells of a plane [count, 4, 4] at (row, col)."""
    y = 4 * at[:, 0, None] + np.arange(4)
    x = 4 * at[:, 1, None] + np.arange(4)
    return plane[y[:, :, None], x[:, None, :]].astype(np.int64)
