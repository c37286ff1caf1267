"""Streams that exercise reference pictures, motion prediction and the order of pictures."""

from collections.abc import Mapping
from random import Random

from tests.codec.hevc_streams.coding_tree import Choices
from tests.codec.hevc_streams.groups import (
    add_low_delay,
    add_open_group,
    add_pyramid,
    bipredicted,
    predicted,
    simple,
    stream,
    whole,
)
from tests.codec.hevc_streams.parameter_sets import Pps, Sps
from tests.codec.hevc_streams.reference_sets import LongTerm, ShortTermSet
from tests.codec.hevc_streams.sequence import IDR_N_LP, IDR_W_RADL, RADL, TSA, Frame, Stream, Writer
from tests.codec.hevc_streams.slice_header import SliceHeader
from tests.codec.hevc_streams.slice_writer import SegmentPlan

MOVING = Choices(intra=0.08, skip=0.35, merge=0.5, split=0.6)


@stream
def low_delay_p() -> Stream:
    return simple(choices=MOVING, slices=predicted, low_delay=5, seed=60)


@stream
def low_delay_b() -> Stream:
    """Both lists hold earlier pictures only: NoBackwardPredFlag."""
    return simple(choices=MOVING, slices=lambda n: whole("B", n), low_delay=6, seed=61)


@stream
def pyramid() -> Stream:
    return simple(choices=MOVING, groups=3, seed=62)


@stream
def pyramid_far_vectors() -> Stream:
    """Vectors that point far outside the picture, scaled ones included."""
    choices = Choices(intra=0.08, skip=0.3, vector=3000)
    return simple(choices=choices, groups=2, seed=63)


@stream
def vectors_at_the_limits() -> Stream:
    """Vector differences of up to 15 bits: sums wrap around, scaled vectors saturate."""
    return simple(choices=Choices(intra=0.08, vector=32767), groups=2, seed=64)


def _poc_gaps(vector: int, seed: int) -> Stream:
    """Uneven POC distances, from 1 to over 128: all rounding and clipping of scaled vectors."""
    choices = Choices(intra=0.05, skip=0.3, merge=0.5, split=0.6, vector=vector)
    writer = Writer(Sps(log2_max_poc_lsb=10, reorder=3), [Pps()], choices, seed)
    pocs = (0, 5, 12, 13, 150, 157, 162, 400, 401, 414, 437)
    writer.add(Frame(0, nal=IDR_W_RADL))
    for index, poc in enumerate(pocs[1:], 1):
        before = pocs[max(index - 4, 0) : index][::-1]
        count = len(before)
        slices = whole("B" if index % 3 else "P", count, collocated_ref=index % count)
        writer.add(Frame(poc, slices, before=before))
    writer.add(Frame(720, whole("B", 3), before=(437, 414, 401)))
    for poc in (530, 500, 470):
        after = tuple(later for later in (500, 530, 720) if later > poc)
        writer.add(Frame(poc, whole("B", 3), before=(437, 414), after=after))
    return writer.finish()


@stream
def poc_gaps() -> Stream:
    return _poc_gaps(400, 98)


@stream
def poc_gaps_far_vectors() -> Stream:
    return _poc_gaps(9000, 99)


@stream
def many_references() -> Stream:
    return simple(choices=MOVING, slices=lambda n: whole("B", 5), groups=2, seed=65)


@stream
def unequal_lists() -> Stream:
    """Three references in list 0, one in list 1."""
    header = SliceHeader("B", (3, 1), temporal_mvp=True, collocated_from_l0=False)
    slices = lambda n: (SegmentPlan(0, header),)  # noqa: E731
    return simple(choices=MOVING, slices=slices, groups=2, seed=66)


def _max_merge(count: int) -> Stream:
    return simple(choices=MOVING, slices=lambda n: whole("B", 2, max_merge=count), groups=2, seed=67 + count)


@stream
def max_merge_1() -> Stream:
    return _max_merge(1)


@stream
def max_merge_2() -> Stream:
    return _max_merge(2)


@stream
def max_merge_3() -> Stream:
    return _max_merge(3)


def _parallel_merge(level: int, log2_ctb: int) -> Stream:
    sps, pps = Sps(log2_ctb=log2_ctb, amp_enabled=True), Pps(log2_parallel_merge_level=level)
    choices = Choices(intra=0.08, merge=0.8, parts=0.7, split=0.8)
    return simple(sps, pps, choices, groups=2, seed=73 + level)


@stream
def parallel_merge_3() -> Stream:
    """8x8 coding units share one candidate list."""
    return _parallel_merge(3, 5)


@stream
def parallel_merge_4() -> Stream:
    return _parallel_merge(4, 5)


@stream
def parallel_merge_6() -> Stream:
    return _parallel_merge(6, 6)


@stream
def collocated_anywhere() -> Stream:
    """The collocated picture is any entry of either list."""
    random = Random(5)

    def slices(n: int) -> tuple[SegmentPlan, ...]:
        return whole("B", 3, collocated_from_l0=random.random() < 0.5, collocated_ref=random.randrange(3))

    return simple(choices=MOVING, slices=slices, groups=3, seed=80)


@stream
def no_temporal_mvp() -> Stream:
    slices = lambda n: whole("B", 2, temporal_mvp=False)  # noqa: E731
    return simple(Sps(temporal_mvp_enabled=False), choices=MOVING, slices=slices, seed=81)


@stream
def temporal_mvp_in_some() -> Stream:
    """slice_temporal_mvp_enabled_flag differs from picture to picture."""
    slices = lambda n: whole("B", 2, temporal_mvp=n != 2)  # noqa: E731
    return simple(choices=MOVING, slices=slices, groups=2, seed=82)


@stream
def mvd_l1_zero() -> Stream:
    slices = lambda n: whole("B", 2, mvd_l1_zero=True)  # noqa: E731
    return simple(choices=Choices(bi=0.8, merge=0.2, intra=0.08), slices=slices, groups=2, seed=83)


@stream
def lists_modified() -> Stream:
    """ref_pic_lists_modification(): entries repeated and out of order."""

    def slices(n: int) -> tuple[SegmentPlan, ...]:
        entries = ([n - 1, 0, n - 1], [0, n - 1, 0]) if n > 1 else (None, None)
        return whole("B", 3, list_entries=entries, collocated_ref=1)

    return simple(pps=Pps(lists_modification=True), choices=MOVING, slices=slices, groups=2, seed=84)


def _with_long_terms(sps: Sps, entries: Mapping[int, tuple[LongTerm, ...]], kind: str, seed: int) -> Stream:
    """Eleven pictures after an IDR, each referring to the one before and to the long-term ones of `entries`."""
    writer = Writer(sps, [Pps(lists_modification=True)], MOVING, seed)
    writer.add(Frame(0, nal=IDR_W_RADL))
    for poc in range(1, 12):
        long = entries.get(poc, ())
        before = tuple(range(poc - 1, max(poc - 3, -1), -1))
        before = tuple(p for p in before if p not in [entry.poc for entry in long])
        count = len(before) + sum(entry.used for entry in long)
        swap = [count - 1, *range(count - 1)] if poc % 2 else None
        slices = whole(kind, count, list_entries=(swap, None), collocated_ref=poc % count)
        writer.add(Frame(poc, slices, before=before, long=long))
    return writer.finish()


@stream
def long_term_in_header() -> Stream:
    """A long-term picture coded by its lsb: candidates of long and short references do not mix."""
    entries = {poc: (LongTerm(0),) for poc in range(2, 12)}
    return _with_long_terms(Sps(long_term_present=True), entries, "B", 85)


@stream
def long_term_msb() -> Stream:
    """POC lsb of 4 bits: most significant bits are coded, for two long-term pictures, one of them unused at times."""
    entries = {}
    for poc in range(3, 12):
        entries[poc] = (LongTerm(1, poc % 3 > 0, poc > 8), LongTerm(0, msb_present=poc % 2 == 0))
    return _with_long_terms(Sps(long_term_present=True, log2_max_poc_lsb=4), entries, "B", 86)


@stream
def long_term_msb_wrapped() -> Stream:
    """Long-term pictures several cycles of the lsb ago."""
    sps = Sps(width=64, height=48, long_term_present=True, log2_max_poc_lsb=4)
    writer = Writer(sps, [Pps()], MOVING, 87)
    writer.add(Frame(0, nal=IDR_W_RADL))
    for poc in range(1, 40):
        long: tuple[LongTerm, ...] = ()
        if poc > 2:
            long = (LongTerm(1, msb_present=True), LongTerm(0, poc % 4 > 0, msb_present=True))
        before = (poc - 1,) if poc > 2 else tuple(range(poc - 1, -1, -1))
        count = len(before) + sum(entry.used for entry in long)
        writer.add(Frame(poc, whole("B", count, collocated_ref=poc % count), before=before, long=long))
    return writer.finish()


@stream
def long_term_in_sps() -> Stream:
    """Long-term pictures by index into the SPS's list, together with one coded in the header."""
    sps = Sps(long_term_present=True, long_term_lsbs=[(5, True), (0, True), (1, False)])
    entries = {}
    for poc in range(3, 12):
        zero = LongTerm(0, sps_index=1, msb_present=poc > 7)
        entries[poc] = (zero, LongTerm(1, False, sps_index=2), LongTerm(2)) if poc < 7 else (zero, LongTerm(2))
    return _with_long_terms(sps, entries, "P", 88)


@stream
def short_term_sets_in_sps() -> Stream:
    """Reference picture sets of the SPS, coded from one another, and one in the header predicted from the last."""
    sets = [
        ShortTermSet(((-4, True),), ()),
        ShortTermSet(((-2, True),), ((2, True),)),
        ShortTermSet(((-1, True),), ((1, True), (3, True))),
        ShortTermSet(((-1, True), (-3, True)), ((1, True),)),
    ]
    writer = Writer(Sps(short_term_sets=sets, predict_sets=True), [Pps()], MOVING, 89)
    writer.add(Frame(0, nal=IDR_W_RADL))
    orders = ((4, (0,), ()), (2, (0,), (4,)), (1, (0,), (2, 4)), (3, (2, 0), (4,)))
    for base in (0, 4, 8):
        for index, (offset, before, after) in enumerate(orders):
            pocs = tuple(base + o for o in before), tuple(base + o for o in after)
            listed = None if base == 8 else index
            writer.add(Frame(base + offset, bipredicted(3), before=pocs[0], after=pocs[1], sps_set=listed))
    return writer.finish()


@stream
def unused_references() -> Stream:
    """Pictures kept for later but not used by the current one."""
    writer = Writer(Sps(), [Pps()], MOVING, 90)
    writer.add(Frame(0, nal=IDR_W_RADL))
    for poc in range(1, 9):
        before = tuple(range(poc - 1, max(poc - 5, -1), -1))
        kept = before[1:3] if poc > 3 else ()
        writer.add(Frame(poc, predicted(len(before) - len(kept)), before=before, kept=kept))
    return writer.finish()


@stream
def poc_wraps() -> Stream:
    sps = Sps(width=64, height=48, log2_max_poc_lsb=4)
    return simple(sps, choices=MOVING, groups=9, seed=91)


@stream
def idr_in_the_middle() -> Stream:
    writer = Writer(Sps(), [Pps()], MOVING, 92)
    for kind in (IDR_W_RADL, IDR_N_LP, IDR_W_RADL):
        writer.add(Frame(0, nal=kind))
        add_pyramid(writer, 1)
    return writer.finish()


@stream
def idr_with_radl() -> Stream:
    writer = Writer(Sps(), [Pps()], MOVING, 93)
    writer.add(Frame(0, nal=IDR_W_RADL))
    add_low_delay(writer, 2)
    writer.add(Frame(0, nal=IDR_W_RADL))
    writer.add(Frame(-2, whole("P"), RADL, after=(0,)))
    writer.add(Frame(-1, whole("B", 2), RADL, before=(-2,), after=(0,)))
    writer.add(Frame(1, whole("P"), before=(0,)))
    return writer.finish()


@stream
def cra_in_the_middle() -> Stream:
    writer = Writer(Sps(), [Pps()], MOVING, 94)
    writer.add(Frame(0, nal=IDR_W_RADL))
    add_pyramid(writer, 1)
    add_open_group(writer, 8)
    return writer.finish()


@stream
def cra_at_the_start() -> Stream:
    """The stream is cut at a CRA picture: its RASL pictures cannot be decoded and are not shown."""
    writer = Writer(Sps(), [Pps()], MOVING, 95)
    writer.add(Frame(0, nal=IDR_W_RADL))
    add_pyramid(writer, 1)
    done = len(writer.pictures)
    writer.data = writer.parameter_sets()
    add_open_group(writer, 8)
    cut = writer.pictures[done:]
    writer.pictures = [(picture, picture.poc >= 8) for picture, _ in cut]
    writer.shown = [[picture for picture, shown in writer.pictures if shown]]
    return writer.finish()


@stream
def hidden_pictures() -> Stream:
    """pic_output_flag 0 on some pictures, which others refer to."""
    writer = Writer(Sps(), [Pps(output_flag_present=True)], MOVING, 96)
    writer.add(Frame(0, nal=IDR_W_RADL))
    for poc in range(1, 8):
        writer.add(Frame(poc, predicted(1), before=(poc - 1,), output=poc % 3 > 0))
    return writer.finish()


@stream
def temporal_layers() -> Stream:
    writer = Writer(Sps(temporal_layers=3), [Pps()], MOVING, 97)
    writer.add(Frame(0, nal=IDR_W_RADL))
    for base in (0, 4):
        writer.add(Frame(base + 4, bipredicted(1), before=(base,)))
        writer.add(Frame(base + 2, bipredicted(2), TSA, before=(base,), after=(base + 4,), temporal_id=1))
        later = base + 2, base + 4
        writer.add(Frame(base + 1, bipredicted(3), TSA - 1, before=(base,), after=later, temporal_id=2))
        writer.add(Frame(base + 3, bipredicted(2), TSA - 1, before=(base + 2,), after=(base + 4,), temporal_id=2))
    return writer.finish()
