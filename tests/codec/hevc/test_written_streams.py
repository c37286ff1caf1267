"""The reader finds in every written stream what the writer put there: `Truth`, which FFmpeg's decoder has confirmed."""

import numpy as np
import pytest

from codec import CodecError, hevc
from tests.codec.hevc_streams import picture as written
from tests.codec.hevc_streams.picture import Truth
from tests.codec.hevc_streams.streams import STREAMS

MODES = {written.SKIP: hevc.SKIPPED, written.INTER: hevc.INTER, written.INTRA: hevc.INTRA}
SLICE_TYPES = "BPI"
SPLIT_BITS = 32
"""More bits than the split flags before a unit can take: three flags of at most six bits each, and what is rounded."""


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "size_changes"])
def test_reader_finds_what_was_written(name: str) -> None:
    stream = STREAMS[name]()
    frames = list(hevc.frames(stream.data, name=name))
    assert len(frames) == len(stream.planes)
    assert {frame.order for frame in frames} == {order for order, truth in enumerate(stream.truth) if truth.shown}
    for frame in frames:
        compare(frame, stream.truth[frame.order], 8 if stream.planes[0].dtype == np.uint8 else 10)


def test_frames_before_a_change_of_size_are_read() -> None:
    stream = STREAMS["size_changes"]()
    frames: list[hevc.HevcFrame] = []
    with pytest.raises(CodecError, match=r"spliced: the picture size changes from \d+x\d+ to 96x112 at frame 5"):
        frames.extend(hevc.frames(stream.data, name="spliced"))
    assert len(frames) == 5
    for frame in frames:
        compare(frame, stream.truth[frame.order], 8)


def compare(frame: hevc.HevcFrame, truth: Truth, bit_depth: int) -> None:
    rows, cols = frame.qp.shape
    window = slice(0, rows), slice(0, cols)
    assert frame.poc == truth.poc
    assert frame.type == SLICE_TYPES[truth.slice_type.min()]
    np.testing.assert_array_equal(frame.log2_size, truth.log2_cu_size[window])
    np.testing.assert_array_equal(frame.mode, np.vectorize(MODES.get)(truth.mode[window]))
    np.testing.assert_array_equal(frame.qp, truth.qp[window])
    np.testing.assert_array_equal(frame.predicted, truth.used[window])
    np.testing.assert_array_equal(frame.vectors, truth.mv[window])
    np.testing.assert_array_equal(frame.reference_poc, truth.ref_poc[window])
    cells = 4.0 ** (truth.log2_cu_size[window].astype(float) - 2)
    extra = (frame.bits - truth.bits[window]) * cells
    assert extra.min() > -0.01
    assert extra.max() < SPLIT_BITS
    assert frame.bits.sum() + frame.other_bits == pytest.approx(frame.slice_data_bits, rel=0.01)
    compare_residual(frame, truth, bit_depth)


def compare_residual(frame: hevc.HevcFrame, truth: Truth, bit_depth: int) -> None:
    """Cell by cell, but for PCM blocks. The reader does not round and clip residual samples, which is worth up to half a level."""
    rows, cols = frame.qp.shape
    levels = truth.residual[: 4 * rows, : 4 * cols] / 2.0 ** (bit_depth - 8)
    energy = (levels.reshape(rows, 4, cols, 4) ** 2).mean(axis=(1, 3))
    coded = ~truth.pcm[:rows, :cols]
    np.testing.assert_allclose(np.sqrt(frame.residual_energy[coded]), np.sqrt(energy[coded]), rtol=0.01, atol=0.5)
