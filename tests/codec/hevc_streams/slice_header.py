"""Slice segment headers (H.265 clause 7.3.6)."""

from dataclasses import dataclass, field

from tests.codec.hevc_streams.bits import BitWriter, bits_needed
from tests.codec.hevc_streams.parameter_sets import Pps, Sps
from tests.codec.hevc_streams.reference_sets import ReferenceSet, write_slice_short_term_set

SLICE_TYPE = {"B": 0, "P": 1, "I": 2}
IDR = (19, 20)


@dataclass
class Weight:
    """Explicit weighted prediction of one reference picture: luma weight and offset, chroma weights and offsets."""

    luma: tuple[int, int] | None = None
    chroma: tuple[tuple[int, int], tuple[int, int]] | None = None  # (delta weight, coded delta offset) of Cb and Cr


@dataclass
class SliceHeader:
    """What one slice decides; a dependent segment repeats the header object of its slice."""

    type: str = "I"
    refs: tuple[int, int] = (1, 1)  # num_ref_idx_l0_active, num_ref_idx_l1_active
    list_entries: tuple[list[int] | None, list[int] | None] = (None, None)
    mvd_l1_zero: bool = False
    cabac_init: bool = False
    temporal_mvp: bool = False
    collocated_from_l0: bool = True
    collocated_ref: int = 0
    weight_denominators: tuple[int, int] = (0, 0)
    weights: tuple[list[Weight], list[Weight]] = field(default_factory=lambda: ([], []))
    max_merge: int = 5
    qp: int = 26
    chroma_qp_offsets: tuple[int, int] = (0, 0)
    sao: tuple[bool, bool] = (False, False)
    override_deblocking: bool = False
    extension: bytes = b"\x00\x00\x01"

    def is_weighted(self, pps: Pps) -> bool:
        return (self.type == "P" and pps.weighted_pred) or (self.type == "B" and pps.weighted_bipred)


@dataclass(frozen=True)
class PictureHeader:
    """What all slices of a picture share."""

    poc: int
    nal_type: int
    references: ReferenceSet
    output: bool = True


@dataclass(frozen=True)
class Segment:
    """Place of a slice segment: address of its first coding tree block in raster scan, entry points in bytes."""

    address: int
    dependent: bool
    entry_sizes: tuple[int, ...] = ()


def write_slice_header(sps: Sps, pps: Pps, picture: PictureHeader, header: SliceHeader, segment: Segment) -> BitWriter:
    bits = BitWriter()
    bits.u(int(segment.address == 0))
    if 16 <= picture.nal_type <= 23:
        bits.u(0)
    bits.ue(pps.pps_id)
    columns, rows = sps.ctbs
    if segment.address:
        if pps.dependent_slices_enabled:
            bits.u(int(segment.dependent))
        bits.u(segment.address, bits_needed(columns * rows))
    if not segment.dependent:
        _write_independent(bits, sps, pps, picture, header)
    if pps.tiles is not None or pps.entropy_coding_sync:
        sizes = segment.entry_sizes
        bits.ue(len(sizes))
        if sizes:
            length = max(size - 1 for size in sizes).bit_length() or 1
            bits.ue(length - 1)
            for size in sizes:
                bits.u(size - 1, length)
    if pps.slice_header_extension:
        bits.ue(len(header.extension))
        for byte in header.extension:
            bits.u(byte, 8)
    bits.trail()
    return bits


def _write_independent(bits: BitWriter, sps: Sps, pps: Pps, picture: PictureHeader, header: SliceHeader) -> None:
    for index in range(pps.extra_slice_header_bits):
        bits.u(index & 1 ^ 1)
    bits.ue(SLICE_TYPE[header.type])
    if pps.output_flag_present:
        bits.u(int(picture.output))
    if picture.nal_type not in IDR:
        _write_references(bits, sps, picture)
        if sps.temporal_mvp_enabled:
            bits.u(int(header.temporal_mvp))
    if sps.sao_enabled:
        bits.u(int(header.sao[0]))
        bits.u(int(header.sao[1]))
    if header.type != "I":
        _write_inter(bits, pps, picture, header)
    bits.se(header.qp - pps.init_qp)
    if pps.slice_chroma_qp_offsets:
        bits.se(header.chroma_qp_offsets[0])
        bits.se(header.chroma_qp_offsets[1])
    if pps.deblocking_override:
        bits.u(int(header.override_deblocking))
        if header.override_deblocking:
            bits.u(1)
    disabled = pps.deblocking_disabled or header.override_deblocking
    if pps.loop_filter_across_slices and (any(header.sao) or not disabled):
        bits.u(1)


def _write_references(bits: BitWriter, sps: Sps, picture: PictureHeader) -> None:
    references, lsb_mask = picture.references, (1 << sps.log2_max_poc_lsb) - 1
    bits.u(picture.poc & lsb_mask, sps.log2_max_poc_lsb)
    bits.u(int(references.sps_set is not None))
    if references.sps_set is None:
        write_slice_short_term_set(bits, sps.short_term_sets, references.short, sps.predict_sets)
    elif len(sps.short_term_sets) > 1:
        bits.u(references.sps_set, bits_needed(len(sps.short_term_sets)))
    if not sps.long_term_present:
        return
    listed = [entry for entry in references.long if entry.sps_index is not None]
    own = [entry for entry in references.long if entry.sps_index is None]
    if sps.long_term_lsbs:
        bits.ue(len(listed))
    bits.ue(len(own))
    for group in (listed, own):
        previous_cycle = 0
        for entry in group:
            if entry.sps_index is None:
                bits.u(entry.poc & lsb_mask, sps.log2_max_poc_lsb)
                bits.u(int(entry.used))
            elif len(sps.long_term_lsbs) > 1:
                bits.u(entry.sps_index, bits_needed(len(sps.long_term_lsbs)))
            bits.u(int(entry.msb_present))
            if entry.msb_present:
                cycle = (picture.poc >> sps.log2_max_poc_lsb) - (entry.poc >> sps.log2_max_poc_lsb)
                assert cycle >= previous_cycle
                bits.ue(cycle - previous_cycle)
                previous_cycle = cycle


def _write_inter(bits: BitWriter, pps: Pps, picture: PictureHeader, header: SliceHeader) -> None:
    lists = 2 if header.type == "B" else 1
    override = header.refs[:lists] != pps.default_refs[:lists]
    bits.u(int(override))
    if override:
        for count in header.refs[:lists]:
            bits.ue(count - 1)
    total = picture.references.used_count
    if pps.lists_modification and total > 1:
        for entries in header.list_entries[:lists]:
            bits.u(int(entries is not None))
            for entry in entries or []:
                bits.u(entry, bits_needed(total))
    if header.type == "B":
        bits.u(int(header.mvd_l1_zero))
    if pps.cabac_init_present:
        bits.u(int(header.cabac_init))
    if header.temporal_mvp:
        if header.type == "B":
            bits.u(int(header.collocated_from_l0))
        if header.refs[0 if header.collocated_from_l0 else 1] > 1:
            bits.ue(header.collocated_ref)
    if header.is_weighted(pps):
        _write_weights(bits, header, lists)
    bits.ue(5 - header.max_merge)


def _write_weights(bits: BitWriter, header: SliceHeader, lists: int) -> None:
    luma, chroma = header.weight_denominators
    bits.ue(luma)
    bits.se(chroma - luma)
    for entries in header.weights[:lists]:
        for weight in entries:
            bits.u(int(weight.luma is not None))
        for weight in entries:
            bits.u(int(weight.chroma is not None))
        for weight in entries:
            if weight.luma is not None:
                bits.se(weight.luma[0] - (1 << luma))
                bits.se(weight.luma[1])
            for delta, offset in weight.chroma or ():
                bits.se(delta)
                bits.se(offset)
