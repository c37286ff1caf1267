"""Streams whose tools, partitions and references are all drawn from a seed: combinations that nobody thought of."""

from functools import partial
from random import Random

from tests.codec.hevc_streams.coding_tree import Choices
from tests.codec.hevc_streams.groups import PYRAMID, STREAMS
from tests.codec.hevc_streams.parameter_sets import Pps, ScalingCode, Sps
from tests.codec.hevc_streams.reference_sets import LongTerm
from tests.codec.hevc_streams.sequence import IDR_W_RADL, Frame, Stream, Writer
from tests.codec.hevc_streams.slice_header import SliceHeader, Weight
from tests.codec.hevc_streams.slice_writer import SegmentPlan, TileMap

REGISTERED = 16


def random_stream(seed: int) -> Stream:
    """Any stream of the Main and Main 10 profiles that the writer can make."""
    random = Random(seed)
    sps = _draw_sps(random)
    pps = _draw_pps(random, sps)
    writer = Writer(sps, [pps], _draw_choices(random, sps), seed)
    writer.add(Frame(0, _draw_segments(random, sps, pps, 0), IDR_W_RADL))
    before: tuple[int, ...]
    if random.random() < 0.5:
        for base in (0, 4):
            for offset, earlier, later in PYRAMID:
                before, after = tuple(base + o for o in earlier), tuple(base + o for o in later)
                slices = _draw_segments(random, sps, pps, len(before + after))
                writer.add(Frame(base + offset, slices, before=before, after=after))
    else:
        for poc in range(1, 7):
            before = tuple(range(poc - 1, max(poc - 3, 0 if sps.long_term_present else -1), -1))
            long = (LongTerm(0, msb_present=random.random() < 0.5),) if sps.long_term_present else ()
            slices = _draw_segments(random, sps, pps, len(before + long))
            writer.add(Frame(poc, slices, before=before, long=long))
    return writer.finish()


def _draw_sps(random: Random) -> Sps:
    def coin() -> bool:
        return random.random() < 0.5

    log2_ctb = random.randint(4, 6)
    log2_min_cb = random.choice([size for size in (3, 3, 3, 4, 5, 6) if size <= log2_ctb])
    log2_min_tb = random.randint(2, min(log2_min_cb - 1, 5))
    log2_max_tb = random.randint(log2_min_tb, min(log2_ctb, 5))
    deepest = log2_ctb - log2_min_tb
    bit_depth = random.choice((8, 8, 10))
    unit = 1 << log2_min_cb
    pcm_low = random.randint(max(log2_min_cb, 3), max(min(log2_ctb, 5), log2_min_cb))
    return Sps(
        width=unit * random.randint(-(-40 // unit), max(176 // unit, 2)),
        height=unit * random.randint(-(-40 // unit), max(112 // unit, 2)),
        profile=1 if bit_depth == 8 else 2,
        bit_depth=bit_depth,
        log2_max_poc_lsb=random.randint(4, 16),
        log2_min_cb=log2_min_cb,
        log2_ctb=log2_ctb,
        log2_min_tb=log2_min_tb,
        log2_max_tb=log2_max_tb,
        max_transform_hierarchy_depth_inter=random.randint(0, deepest),
        max_transform_hierarchy_depth_intra=random.randint(0, deepest),
        scaling_list_enabled=coin(),
        scaling=_draw_scaling(random) if coin() else None,
        amp_enabled=coin(),
        sao_enabled=coin(),
        pcm_bits=(random.randint(1, bit_depth), random.randint(1, bit_depth)) if coin() and pcm_low <= 5 else None,
        log2_pcm_sizes=(pcm_low, random.randint(pcm_low, max(min(log2_ctb, 5), pcm_low))),
        pcm_loop_filter_disabled=coin(),
        long_term_present=coin(),
        temporal_mvp_enabled=random.random() < 0.8,
        strong_intra_smoothing=coin(),
        usability=random.random() < 0.2,
    )


def _draw_scaling(random: Random) -> ScalingCode:
    code = ScalingCode()
    for size in range(4):
        step = 3 if size == 3 else 1
        for matrix in range(0, 6, step):
            kind = random.randrange(3)
            if kind == 0:
                values = [random.randint(1, 60) for _ in range(16 if size == 0 else 64)]
                code.explicit[size, matrix] = values, random.randint(1, 60) if size > 1 else 16
            elif kind == 1 and matrix:
                code.copied[size, matrix] = random.randrange(0, matrix, step)
    return code


def _draw_pps(random: Random, sps: Sps) -> Pps:
    def coin() -> bool:
        return random.random() < 0.5

    columns, rows = sps.ctbs
    tiles, uniform = None, False
    if coin() and columns * rows > 1:
        tiles = _split(random, columns), _split(random, rows)
        if len(tiles[0]) == len(tiles[1]) == 1:
            tiles = None
    depth = random.randint(0, sps.log2_ctb - sps.log2_min_cb)
    return Pps(
        dependent_slices_enabled=coin(),
        output_flag_present=coin(),
        extra_slice_header_bits=random.randrange(3),
        sign_hiding=coin(),
        cabac_init_present=coin(),
        default_refs=(random.randint(1, 3), random.randint(1, 3)),
        init_qp=random.randint(20, 36),
        # FFmpeg errs on blocks smaller than half the minimum coding block, even where all blocks are intra.
        constrained_intra_pred=sps.log2_min_tb >= sps.log2_min_cb - 1 and random.random() < 0.5,
        transform_skip_enabled=coin(),
        qp_delta_depth=depth if coin() else None,
        chroma_qp_offsets=(random.randint(-12, 12), random.randint(-12, 12)) if coin() else (0, 0),
        slice_chroma_qp_offsets=False,
        weighted_pred=coin(),
        weighted_bipred=coin(),
        transquant_bypass_enabled=coin(),
        tiles=tiles,
        tiles_uniform=uniform,
        entropy_coding_sync=tiles is None and coin(),
        loop_filter_across_slices=coin(),
        scaling=_draw_scaling(random) if sps.scaling_list_enabled and coin() else None,
        lists_modification=coin(),
        log2_parallel_merge_level=random.randint(2, sps.log2_ctb),
        slice_header_extension=coin(),
    )


def _split(random: Random, total: int) -> list[int]:
    cuts = sorted(random.sample(range(1, total), random.randint(0, min(total - 1, 3))))
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]


def _draw_choices(random: Random, sps: Sps) -> Choices:
    return Choices(
        split=random.choice((0.3, 0.6, 0.9)),
        skip=random.choice((0.1, 0.4)),
        intra=random.choice((0.05, 0.2, 0.5)),
        parts=random.random(),
        merge=random.random(),
        bi=random.random(),
        split_transform=random.random(),
        cbf_luma=random.choice((0.3, 0.7)),
        cbf_chroma=random.choice((0.1, 0.5)),
        qp_delta=random.choice((1, 5, 20)),
        qp_range=random.choice(((18, 38), (0, 51), (-sps.qp_offset, 30))),
        coefficient=random.choice((500, 3000, 12000)),
        vector=random.choice((8, 60, 600)),
    )


def _draw_segments(random: Random, sps: Sps, pps: Pps, references: int) -> tuple[SegmentPlan, ...]:
    """Slice segments that the constraints on slices, tiles and wavefronts allow."""
    order = TileMap(sps, pps)
    total = len(order.order)
    starts = {0} | {random.randrange(total) for _ in range(random.choice((0, 0, 1, 3, 6)))}
    if pps.tiles is not None and len(starts) > 1:
        # All slices of a tile with a start within it lie within it: start anew where the next tile begins.
        starts |= {i for i in range(1, total) if order.tile[i] != order.tile[i - 1]}
    if pps.entropy_coding_sync:
        # What begins within a row ends in it.
        for start in sorted(starts):
            if start % order.columns:
                starts.add(start - start % order.columns + order.columns)
        starts = {start for start in starts if start < total}
    shared = random.random() < 0.8, random.random() < 0.5, random.randrange(16)
    plans = []
    new_slice_due = False
    for start in sorted(starts):
        at_boundary = pps.tiles is not None or (pps.entropy_coding_sync and new_slice_due)
        dependent = start > 0 and pps.dependent_slices_enabled and not at_boundary and random.random() < 0.5
        plans.append(SegmentPlan(start, None if dependent else _draw_header(random, sps, pps, references, shared)))
        if not dependent:
            new_slice_due = start % order.columns > 0
    return tuple(plans)


def _draw_header(random: Random, sps: Sps, pps: Pps, references: int, shared: tuple[bool, bool, int]) -> SliceHeader:
    """`shared` fixes what all slices of a picture agree on: temporal prediction and the collocated picture."""
    kind = random.choice("BBBP") if references else "I"
    counts = random.randint(1, 4), random.randint(1, 4)
    if references and shared[0]:
        kind, counts = random.choice("BP"), (references, references)
    entries: list[list[int] | None] = [None, None]
    weights: tuple[list[Weight], list[Weight]] = ([], [])
    for side in range(2):
        if references > 1 and pps.lists_modification and not shared[0] and random.random() < 0.5:
            entries[side] = [random.randrange(references) for _ in range(counts[side])]
        for _ in range(counts[side]):
            luma = (random.randint(-20, 100), random.randint(-128, 127)) if random.random() < 0.5 else None
            weights[side].append(Weight(luma, ((1, 2), (3, 4)) if random.random() < 0.3 else None))
    if kind == "P":
        weights = weights[0], []
    return SliceHeader(
        kind,
        counts,
        list_entries=(entries[0], entries[1]),
        mvd_l1_zero=random.random() < 0.3,
        cabac_init=pps.cabac_init_present and random.random() < 0.5,
        temporal_mvp=sps.temporal_mvp_enabled and shared[0],
        collocated_from_l0=True,
        collocated_ref=shared[2] % max(references, 1),
        weight_denominators=(5, 4),
        weights=weights,
        max_merge=random.randint(1, 5),
        qp=random.randint(16, 40),
        sao=(sps.sao_enabled and random.random() < 0.5, sps.sao_enabled and random.random() < 0.5),
    )


STREAMS.update({f"random_{seed}": partial(random_stream, seed) for seed in range(REGISTERED)})
