"""FFmpeg decodes every written stream to the samples that the writer intended."""

import numpy as np
import pytest

from tests.codec.hevc_streams.judge import decode
from tests.codec.hevc_streams.picture import INTRA, SKIP
from tests.codec.hevc_streams.streams import STREAMS


@pytest.mark.parametrize("name", STREAMS)
def test_ffmpeg_decodes_what_was_intended(name: str) -> None:
    stream = STREAMS[name]()
    planes, complaints = decode(stream.data)
    assert not complaints
    assert len(planes) == len(stream.planes) == sum(truth.shown for truth in stream.truth)
    for decoded, intended in zip(planes, stream.planes, strict=True):
        np.testing.assert_array_equal(decoded, intended)
    assert np.mean([plane.std() for plane in planes]) > 1  # pixels that are all alike would judge nothing


@pytest.mark.parametrize("name", [name for name in STREAMS if name.startswith("wavefront")])
def test_entry_points_serve_parallel_decoding(name: str) -> None:
    stream = STREAMS[name]()
    planes, _ = decode(stream.data, slice_threads=2)
    np.testing.assert_array_equal(np.stack(planes), np.stack(stream.planes))


def test_truth_is_consistent() -> None:
    """The truth's grids agree with one another in a stream that uses all tools."""
    stream = STREAMS["everything_on"]()
    for truth in stream.truth:
        intra = truth.mode == INTRA
        assert not truth.used[intra].any() and truth.used[~intra].any(axis=-1).all()
        assert not truth.mv[~truth.used].any() and not truth.ref_poc[~truth.used].any()
        rows, cols = truth.mode.shape
        energy = (truth.residual.reshape(rows, 4, cols, 4) ** 2).sum(axis=(1, 3))
        assert not energy[truth.pcm].any() and not energy[truth.mode == SKIP].any()
        assert energy.any()
    assert any(truth.pcm.any() and truth.bypass.any() for truth in stream.truth)


def test_bits_add_up() -> None:
    """The coding units' bits are the stream's but for headers, split flags and the coder's own overhead."""
    for name in ("large_levels", "pcm"):
        stream = STREAMS[name]()
        spent = sum(truth.bits.sum() for truth in stream.truth)
        assert 0.95 * 8 * len(stream.data) < spent < 8 * len(stream.data)


def test_streams_are_reproducible() -> None:
    first, second = STREAMS["collocated_anywhere"](), STREAMS["collocated_anywhere"]()
    assert first.data == second.data
