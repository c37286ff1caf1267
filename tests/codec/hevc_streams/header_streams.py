"""Streams that exercise parameter sets, other NAL units and random access."""

from dataclasses import replace

from tests.codec.hevc_streams.bits import escape, nal_unit
from tests.codec.hevc_streams.coding_tree import Choices
from tests.codec.hevc_streams.groups import (
    add_low_delay,
    add_open_group,
    add_pyramid,
    bipredicted,
    intra_slices,
    predicted,
    simple,
    stream,
    whole,
)
from tests.codec.hevc_streams.parameter_sets import Pps, Sps
from tests.codec.hevc_streams.sequence import BLA, CRA, IDR_W_RADL, TSA, Frame, Stream, Writer

DELIMITER, END_OF_SEQUENCE, FILLER, PREFIX_SEI, SUFFIX_SEI, RESERVED = 35, 36, 38, 39, 40, 45


@stream
def parameter_set_ids() -> Stream:
    """Identifiers other than zero, and two picture parameter sets sent once and used in turn."""
    sps = Sps(vps_id=9, sps_id=7)
    first = Pps(pps_id=41, sps_id=7, qp_delta_depth=1, init_qp=30)
    second = Pps(pps_id=3, sps_id=7, sign_hiding=True, transform_skip_enabled=True, default_refs=(2, 2))
    writer = Writer(sps, [first, second], seed=100)
    writer.add(Frame(0, nal=IDR_W_RADL))
    for poc in range(1, 6):
        before = tuple(range(poc - 1, max(poc - 3, -1), -1))
        writer.add(Frame(poc, predicted(len(before)), before=before, pps=poc % 2))
    return writer.finish()


@stream
def usability_information() -> Stream:
    return simple(Sps(usability=True), seed=101)


@stream
def sub_layer_information() -> Stream:
    """Three temporal layers with profiles, levels and decoder models of their own, but one ordering for all."""
    sps = Sps(temporal_layers=3, usability=True, sub_layer_profiles=True, sub_layer_ordering=False)
    writer = Writer(sps, [Pps()], seed=102)
    writer.add(Frame(0, nal=IDR_W_RADL))
    writer.add(Frame(4, bipredicted(1), before=(0,)))
    writer.add(Frame(2, bipredicted(2), TSA, before=(0,), after=(4,), temporal_id=1))
    writer.add(Frame(1, bipredicted(3), TSA - 1, before=(0,), after=(2, 4), temporal_id=2))
    return writer.finish()


@stream
def other_nal_units() -> Stream:
    """Delimiters, SEI, filler data, reserved and unspecified types, and zero words after slice data."""
    writer = Writer(Sps(), [Pps()], seed=103)
    message = escape(b"\x05\x12" + bytes(18) + b"\x80")
    for poc in range(4):
        writer.data += nal_unit(DELIMITER, b"\x50") + nal_unit(PREFIX_SEI, message)
        if poc:
            writer.add(Frame(poc, predicted(1), before=(poc - 1,)))
        else:
            writer.add(Frame(0, nal=IDR_W_RADL))
        writer.data += b"\x00\x00\x03" * 2  # cabac_zero_words
        writer.data += nal_unit(SUFFIX_SEI, message) + nal_unit(FILLER, b"\xff" * 9 + b"\x80")
        writer.data += nal_unit(RESERVED, b"\x12\x80") + nal_unit(60, b"\x34\x80")
    return writer.finish()


@stream
def start_codes_of_three_bytes() -> Stream:
    """Three-byte start codes between the slices, and a zero byte before others."""
    made = simple(slices=predicted, low_delay=3, seed=104)
    head, *units = made.data.split(b"\x00\x00\x00\x01")
    data = head + b"".join((b"\x00\x00\x01", b"\x00\x00\x00\x00\x01")[i % 2] + unit for i, unit in enumerate(units))
    return replace(made, data=data)


@stream
def size_changes() -> Stream:
    """New parameter sets under the same identifiers: another size, block size and bit depth of PCM."""
    parts = [
        simple(Sps(), seed=105),
        simple(Sps(width=96, height=112, log2_ctb=4, log2_max_tb=4, pcm_bits=(8, 8)), seed=106),
        simple(Sps(width=200, height=72, log2_ctb=6, window=(1, 0, 0, 2)), Pps(qp_delta_depth=1), seed=107),
    ]
    return Stream(
        b"".join(part.data for part in parts),
        [plane for part in parts for plane in part.planes],
        [truth for part in parts for truth in part.truth],
    )


def _without_leading(writer: Writer, base: int) -> None:
    """Take the RASL pictures of the last open group away again from what is shown."""
    writer.pictures = [(p, shown and not base - 4 < p.poc < base) for p, shown in writer.pictures]
    writer.shown[-1] = [picture for picture in writer.shown[-1] if picture.poc >= base]


@stream
def broken_link() -> Stream:
    """A spliced stream: a BLA picture whose RASL pictures cannot be decoded and are not shown."""
    writer = Writer(Sps(), [Pps()], seed=108)
    writer.add(Frame(0, nal=IDR_W_RADL))
    add_low_delay(writer, 3)
    other = Writer(Sps(), [Pps()], seed=109)
    other.add(Frame(0, nal=IDR_W_RADL))
    add_pyramid(other, 2)
    other.data, other.shown, done = b"", [[]], len(other.pictures)
    add_open_group(other, 12, BLA)
    other.pictures = other.pictures[done:]
    _without_leading(other, 12)
    first, second = writer.finish(), other.finish()
    return Stream(first.data + second.data, first.planes + second.planes, first.truth + second.truth)


@stream
def end_of_sequence() -> Stream:
    """A CRA picture after an end of sequence starts a new one: its RASL pictures are not shown."""
    # Nothing is reordered: a CRA picture at the start of a sequence discards what waits for output (C.5.2.2).
    writer = Writer(Sps(reorder=0), [Pps()], seed=110)
    writer.add(Frame(0, nal=IDR_W_RADL))
    add_low_delay(writer, 4)
    writer.data += nal_unit(END_OF_SEQUENCE, b"")
    writer.shown.append([])
    done = len(writer.pictures)
    add_open_group(writer, 8, CRA)
    later = [(p, not 4 < p.poc < 8) for p, _ in writer.pictures[done:]]
    writer.pictures[done:] = later
    writer.shown[-1] = [picture for picture, shown in later if shown]
    return writer.finish()


@stream
def intra_pictures_between() -> Stream:
    """I slices in pictures that are no random access points, and references across them."""
    writer = Writer(Sps(), [Pps()], Choices(intra=0.1), 111)
    writer.add(Frame(0, nal=IDR_W_RADL))
    for poc in range(1, 7):
        before = tuple(range(poc - 1, max(poc - 3, -1), -1))
        writer.add(Frame(poc, intra_slices() if poc % 3 == 0 else whole("B", len(before)), before=before))
    return writer.finish()
