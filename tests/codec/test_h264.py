"""H.264 signals against clips whose motion is known, and against FFmpeg's decoder."""

import gc
import io
import itertools
from collections import Counter

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.video.frame import PictureType

import codec
from codec.types import FrameSignals
from tests.codec.clips import FLAT_B, P_ONLY, PYRAMID, encode, moving_square, panning, texture

# So coarse that nothing but the prediction is coded, no filter behind it, and only partitions whose vectors are exported.
PREDICTION_ONLY = "qp=51:no-deblock=1:partitions=p8x8,b8x8,i8x8,i4x4:"
CELL = 4


def square_cells(corner: tuple[int, int], side: int = 32) -> tuple[slice, slice]:
    """Cells well inside the square."""
    x, y = corner
    return slice(y // CELL + 2, (y + side) // CELL - 2), slice(x // CELL + 2, (x + side) // CELL - 2)


@pytest.mark.parametrize(
    ("options", "velocity"), [(P_ONLY, (4, 2)), (P_ONLY, (-3, 1)), (FLAT_B, (2, 1)), (PYRAMID, (2, 1))]
)
def test_motion_is_the_squares_velocity_whatever_the_distance_and_direction_of_references(
    options: dict[str, str], velocity: tuple[int, int]
) -> None:
    start = (80, 16) if velocity[0] < 0 else (16, 16)
    frames, corners = moving_square(13, (128, 160), velocity, start=start)
    signals = list(codec.signals(encode(frames, options=options)))
    for frame, corner in list(zip(signals, corners, strict=True))[1:]:
        found = np.median(frame.motion[square_cells(corner)], axis=(0, 1))
        np.testing.assert_allclose(found, velocity, atol=0.3, err_msg=f"frame {frame.index} ({frame.type})")
        assert np.median(np.abs(frame.motion)) == 0
    assert ("B" in {frame.type for frame in signals}) == (options is not P_ONLY)


@pytest.mark.parametrize("options", [P_ONLY, PYRAMID], ids=["P", "B"])
def test_prediction_is_the_decoders_at_every_quarter_position(options: dict[str, str]) -> None:
    settings = {"x264-params": PREDICTION_ONLY + options["x264-params"]}
    positions: Counter[int] = Counter()
    for seed, velocity in enumerate([(1.25, -0.75), (-0.5, 0.25), (0.25, -1.25), (0.75, 0.5)]):
        clip = encode(panning(10, (128, 144), velocity, seed), options=settings)
        for frame in list(codec.signals(clip))[1:]:
            # Some residual may survive even this quantiser; FFmpeg does not say where.
            assert (frame.residual == 0).mean() > 0.93, f"{velocity}, frame {frame.index}"
        with av.open(io.BytesIO(clip), mode="r") as container:
            container.streams.video[0].codec_context.flags2 |= av.codec.context.Flags2.export_mvs
            for decoded in container.decode(video=0):
                if exported := decoded.side_data.get("MOTION_VECTORS"):
                    vectors = exported.to_ndarray()
                    positions.update(((vectors["motion_y"] & 3) * 4 + (vectors["motion_x"] & 3)).tolist())
    assert set(positions) == set(range(16)), "the clips no longer exercise every position"


def test_odd_sizes_are_compensated_up_to_their_edges() -> None:
    settings = {"x264-params": PREDICTION_ONLY + P_ONLY["x264-params"]}
    frames = [texture(98, 42)] * 8
    for frame in codec.signals(encode(frames, options=settings)):
        assert frame.motion.shape == (25, 11, 2)
        assert frame.residual.shape == (25, 11)
        assert not frame.residual.any()


def test_residual_is_what_motion_cannot_explain() -> None:
    frames = panning(8, (128, 160), (3, 1))
    for frame in list(codec.signals(encode(frames, options={**P_ONLY, "crf": "20"})))[1:]:
        uncompensated = np.abs(frames[frame.index].astype(int) - frames[frame.index - 1]).mean()
        assert frame.residual.mean() < uncompensated / 10


def test_new_content_has_no_motion_but_residual() -> None:
    frames = [np.full((96, 128), 128, np.uint8) for _ in range(6)]
    for frame in frames[3:]:
        frame[32:64, 48:80] = texture(32, 32)
    signals = list(codec.signals(encode(frames, options=P_ONLY)))
    appeared = signals[3]
    inside = appeared.residual[8:16, 12:20]
    assert appeared.type == "P"
    assert not appeared.motion[9:15, 13:19].any()
    assert inside.mean() > 20
    assert appeared.residual.sum() == pytest.approx(inside.sum(), rel=0.05)
    assert signals[2].residual.max() < 1


def test_intra_frames_have_no_signals_and_predict_what_follows() -> None:
    options = {"x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=2"}
    signals = list(codec.signals(encode(panning(20, (64, 80), (2, 0)), options=options)))
    intra = [frame for frame in signals if frame.type == "I"]
    assert [frame.index for frame in intra] == [0, 8, 16]
    assert all(frame.key_frame and not frame.motion.any() and not frame.residual.any() for frame in intra)
    assert not any(frame.key_frame for frame in signals if frame.type != "I")
    # A group's last B frames must not be predicted from the key frame behind them, nor its first from before it.
    for frame in signals:
        if frame.type != "I":
            np.testing.assert_allclose(np.median(frame.motion, axis=(0, 1)), [2, 0], atol=0.3)


def test_b_frames_that_are_no_references_are_not_taken_for_one() -> None:
    for frame in list(codec.signals(encode(panning(13, (128, 144), (1.25, -0.5)), options=FLAT_B)))[1:]:
        np.testing.assert_allclose(np.median(frame.motion, axis=(0, 1)), [1.25, -0.5], atol=0.1)
        assert frame.residual.mean() < 3


def test_several_references_still_give_the_motion() -> None:
    frames, corners = moving_square(13, (128, 160), (2, 1))
    options = {"x264-params": "ref=4:bframes=3:b-pyramid=normal:keyint=16"}
    signals = list(codec.signals(encode(frames, options=options)))
    found = [np.median(frame.motion[square_cells(at)], axis=(0, 1)) for frame, at in zip(signals, corners, strict=True)]
    np.testing.assert_allclose(np.median(found[1:], axis=0), [2, 1], atol=0.3)


def test_the_reference_that_a_vector_names_is_found() -> None:
    """Two scenes take turns, so that the reference is the picture before the last."""
    velocities = [(1.25, -0.75), (-0.5, 0.25)]
    one, other = (panning(16, (128, 144), velocity, seed) for seed, velocity in enumerate(velocities))
    turns = [pair[t % 2] for t, pair in enumerate(zip(one, other, strict=True))]
    options = "qp=51:no-deblock=1:partitions=p8x8,i8x8,i4x4:bframes=0:ref=4:weightp=0:keyint=1000:scenecut=0:mbtree=0"
    signals = list(codec.signals(encode(turns, options={"x264-params": options})))
    for frame in signals[2:]:
        assert (frame.residual == 0).mean() > 0.8, frame.index
        expected = velocities[frame.index % 2]
        np.testing.assert_allclose(np.median(frame.motion, axis=(0, 1)), expected, atol=0.15)


def test_frames_come_in_display_order_with_their_pixels_and_packets() -> None:
    clip = encode(panning(24, (64, 80), (1, 1)), options={"x264-params": "keyint=12:bframes=3:b-pyramid=normal"})
    pairs = list(codec.decode(clip))
    with av.open(io.BytesIO(clip), mode="r") as container:
        expected = [
            (frame.pts, PictureType(frame.pict_type).name, codec.luma(frame).copy())
            for frame in container.decode(video=0)
        ]
    with av.open(io.BytesIO(clip), mode="r") as container:
        sizes = {packet.pts: packet.size for packet in container.demux(video=0) if packet.size}
    assert len(pairs) == len(expected) == codec.frame_count(clip) == 24
    for index, ((frame, signals), (pts, kind, picture)) in enumerate(zip(pairs, expected, strict=True)):
        assert (signals.index, signals.pts, signals.type) == (index, pts, kind)
        assert signals.time == pytest.approx(index / 25)
        assert signals.frame_bytes == sizes[pts]
        assert (signals.height, signals.width, signals.block_size) == (64, 80, 4)
        assert signals.bits is None
        assert not signals.estimated
        assert np.array_equal(codec.luma(frame), picture)


def test_a_raw_stream_gives_the_same_signals_as_its_container(tmp_path) -> None:
    frames = panning(16, (64, 80), (2, 1))
    options = {"x264-params": "keyint=16:bframes=3:b-pyramid=normal"}
    clip = encode(frames, options=options)
    path = tmp_path / "clip.h264"
    # Not encoded again: x264 does not always give the same stream twice.
    with av.open(io.BytesIO(clip), mode="r") as container, path.open("wb") as raw_file:
        stream = container.streams.video[0]
        to_units = BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in [*container.demux(stream), None]:
            if packet is None or packet.size:
                raw_file.writelines(bytes(unit) for unit in to_units.filter(packet))
    for raw, boxed in zip(codec.signals(path), codec.signals(clip), strict=True):
        assert_same_fields(raw, boxed)


def test_a_path_and_its_bytes_give_the_same(tmp_path) -> None:
    clip = encode(panning(6, (64, 80), (2, 1)))
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip)
    for one, other in zip(codec.signals(path), codec.signals(clip), strict=True):
        assert_same_fields(one, other)


def test_frames_are_let_go_as_reading_goes_on() -> None:
    clip = encode(panning(60, (64, 80), (1, 0)), options={"x264-params": "bframes=3:b-pyramid=normal"})
    gc.collect()
    gc.disable()
    try:
        most = max(
            sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects())
            for _ in itertools.islice(codec.decode(clip), 59)
        )
    finally:
        gc.enable()
    # The references remembered and the few that wait for theirs; not the whole clip.
    assert most < 25


def assert_same_fields(one: FrameSignals, other: FrameSignals) -> None:
    assert (one.index, one.type, one.key_frame) == (other.index, other.type, other.key_frame)
    assert np.array_equal(one.motion, other.motion)
    assert np.array_equal(one.residual, other.residual)


def test_without_the_compiled_core_signals_are_estimated_and_the_remedy_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codec.compensate._compensate", None)
    frames, _ = moving_square(5, (64, 64), (2, 1), start=(16, 16))
    with pytest.warns(UserWarning, match="H.264 reader is not compiled: install a C\\+\\+ compiler"):
        found = list(codec.signals(encode(frames)))
    assert len(found) == 5
    assert all(frame.estimated for frame in found)
