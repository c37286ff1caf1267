"""Streams that exercise slices, dependent slice segments, tiles and wavefronts.

Tiles and wavefronts at once are left out: the Main profiles forbid them (clause A.3.2)."""

from dataclasses import replace

from tests.codec.hevc_streams.coding_tree import Choices
from tests.codec.hevc_streams.groups import Slicer, simple, stream
from tests.codec.hevc_streams.parameter_sets import Pps, Sps
from tests.codec.hevc_streams.sequence import Stream
from tests.codec.hevc_streams.slice_header import SliceHeader
from tests.codec.hevc_streams.slice_writer import SegmentPlan, uniform_tiles

# 9 x 5 coding tree blocks of 16.
SMALL = Sps(width=144, height=80, log2_ctb=4, log2_max_tb=4)
INTRA = SliceHeader()


def _plan(header: SliceHeader, *starts: int, dependent: tuple[int, ...] = ()) -> tuple[SegmentPlan, ...]:
    """Slices of one header object each at `starts`, dependent segments at `dependent`."""
    plans = [SegmentPlan(start, replace(header)) for start in starts]
    return tuple(sorted(plans + [SegmentPlan(start, None) for start in dependent], key=lambda plan: plan.start))


def _inter(*starts: int, dependent: tuple[int, ...] = (), kind: str = "B") -> Slicer:
    return lambda n: _plan(SliceHeader(kind, (2, 2) if kind == "B" else (n, n), temporal_mvp=True), *starts,
                           dependent=dependent)  # fmt: skip


def _partitioned(
    pps: Pps,
    starts: tuple[int, ...],
    dependent: tuple[int, ...] = (),
    seed: int = 0,
    sps: Sps = SMALL,
    groups: int = 1,
    choices: Choices | None = None,
) -> Stream:
    """The same segments in an intra picture and in B pictures."""
    first = _plan(INTRA, *starts, dependent=dependent)
    return simple(sps, pps, choices, seed, _inter(*starts, dependent=dependent), first, groups=groups)


@stream
def slices_anywhere() -> Stream:
    """Slices that begin and end within rows, one of a single block."""
    return _partitioned(Pps(), (0, 5, 6, 17, 30, 44), seed=40)


@stream
def slices_every_block() -> Stream:
    """A slice per coding tree block: end_of_slice_segment_flag in all places."""
    sps = Sps(width=64, height=48, log2_ctb=4, log2_max_tb=4)
    return _partitioned(Pps(qp_delta_depth=1), tuple(range(12)), seed=41, sps=sps, groups=2)


@stream
def slices_of_all_types() -> Stream:
    """I, P and B slices with their own QP, merge sizes and references in one picture."""

    def slices(n: int) -> tuple[SegmentPlan, ...]:
        return (
            SegmentPlan(0, SliceHeader("P", (1, 1), temporal_mvp=True, max_merge=2, qp=30)),
            SegmentPlan(7, SliceHeader("I", temporal_mvp=True, qp=22)),
            SegmentPlan(13, SliceHeader("B", (1, 2), temporal_mvp=True, max_merge=5, qp=35)),
            SegmentPlan(29, SliceHeader("B", (2, 1), temporal_mvp=True, max_merge=1, qp=24)),
            SegmentPlan(40, SliceHeader("P", (2, 1), temporal_mvp=True, max_merge=3, qp=28)),
        )

    return simple(SMALL, Pps(qp_delta_depth=1, dependent_slices_enabled=True), slices=slices, seed=42, groups=2)


@stream
def dependent_slices() -> Stream:
    """Dependent segments that begin within and at the start of rows; contexts go on from the segment before."""
    pps = Pps(dependent_slices_enabled=True, qp_delta_depth=1)
    return _partitioned(pps, (0, 20), (3, 9, 11, 25, 26, 36), seed=43)


@stream
def wavefront() -> Stream:
    return _partitioned(Pps(entropy_coding_sync=True, qp_delta_depth=1), (0,), seed=44)


@stream
def wavefront_slices() -> Stream:
    """Slices with wavefronts: some end within the row they begin in, others span rows."""
    pps = Pps(entropy_coding_sync=True, qp_delta_depth=1)
    return _partitioned(pps, (0, 4, 9, 27, 29, 36), seed=45)


@stream
def wavefront_dependent() -> Stream:
    """A dependent segment per row, and segments within rows, under wavefronts."""
    pps = Pps(entropy_coding_sync=True, dependent_slices_enabled=True, qp_delta_depth=1)
    return _partitioned(pps, (0, 27), (4, 9, 18, 20, 23, 36, 37), seed=46)


@stream
def wavefront_one_column() -> Stream:
    """Pictures one coding tree block wide: no block above right to take contexts from."""
    sps = Sps(width=64, height=136, log2_ctb=6)
    return _partitioned(Pps(entropy_coding_sync=True), (0,), seed=47, sps=sps)


@stream
def wavefront_two_columns() -> Stream:
    sps = Sps(width=56, height=136, log2_ctb=5)
    pps = Pps(entropy_coding_sync=True, dependent_slices_enabled=True)
    return _partitioned(pps, (0,), (2, 6), seed=48, sps=sps)


@stream
def tiles_uniform() -> Stream:
    tiles = uniform_tiles(9, 4), uniform_tiles(5, 2)
    return _partitioned(Pps(tiles=tiles, tiles_uniform=True, qp_delta_depth=1), (0,), seed=49)


@stream
def tiles_explicit() -> Stream:
    return _partitioned(Pps(tiles=([1, 5, 3], [2, 3]), qp_delta_depth=1), (0,), seed=50)


@stream
def tiles_columns_ctb_64() -> Stream:
    sps = Sps(width=200, height=120, log2_ctb=6, amp_enabled=True)
    return _partitioned(Pps(tiles=([1, 3], [2]), constrained_intra_pred=True), (0,), seed=51, sps=sps)


@stream
def tiles_slices_within() -> Stream:
    """Several slices in each tile; segments of 18, 27 blocks in two columns of tiles."""
    return _partitioned(Pps(tiles=([4, 5], [5])), (0, 3, 11, 20, 21, 33), seed=52)


@stream
def tiles_within_slices() -> Stream:
    """Slices of one and of two whole tiles; tiles begin at blocks 0, 10, 20, 32."""
    return _partitioned(Pps(tiles=([5, 4], [2, 3])), (0, 10), seed=53)


@stream
def tiles_dependent() -> Stream:
    """Dependent segments within tiles and at the start of tiles."""
    pps = Pps(tiles=([5, 4], [2, 3]), dependent_slices_enabled=True, qp_delta_depth=1)
    return _partitioned(pps, (0, 18), (4, 10, 13, 22, 33, 40), seed=54)


@stream
def tiles_sao() -> Stream:
    """SAO merge candidates stop at the borders of tiles and slices."""
    sps = replace(SMALL, sao_enabled=True)
    header = SliceHeader("B", (2, 2), temporal_mvp=True, sao=(True, True))
    slices = lambda n: _plan(header, 0, 4, 20)  # noqa: E731
    first = _plan(SliceHeader(sao=(True, True)), 0, 20)
    return simple(sps, Pps(tiles=([4, 5], [5])), None, 56, slices, first)


@stream
def tiles_pcm() -> Stream:
    sps = replace(SMALL, pcm_bits=(6, 4), log2_pcm_sizes=(3, 4))
    return _partitioned(Pps(tiles=([3, 3, 3], [5])), (0,), seed=57, sps=sps, choices=Choices(intra=0.5))


@stream
def slice_header_extras() -> Stream:
    """Extra slice header bits, header extension, deblocking override, cross-slice filter flag, default counts of refs."""
    pps = Pps(
        extra_slice_header_bits=3, slice_header_extension=True, deblocking_override=True, deblocking_disabled=False,
        loop_filter_across_slices=True, default_refs=(2, 2), output_flag_present=True, init_qp=31,
        slice_chroma_qp_offsets=True, dependent_slices_enabled=True,
    )  # fmt: skip
    first = _plan(SliceHeader(override_deblocking=True), 0, 20, dependent=(5, 25))
    header = SliceHeader("B", (2, 2), temporal_mvp=True, override_deblocking=True, extension=b"\x00" * 5)
    return simple(SMALL, pps, None, 58, lambda n: _plan(header, 0, 30, dependent=(31,)), first)
