#include "slice_header.h"

#include <algorithm>

namespace hevc {

namespace {

void read_long_term(BitReader& bits, SliceHeader& header) {
    const Sps& sps = *header.sps;
    const auto candidates = std::uint32_t(sps.long_term.size());
    const std::uint32_t from_sps = candidates ? bits.ue(std::min(candidates, std::uint32_t(kMaxReferences))) : 0;
    const std::uint32_t count = from_sps + bits.ue(std::uint32_t(kMaxReferences) - from_sps);
    std::int64_t cycles = 0;
    for (std::uint32_t n = 0; n < count; ++n) {
        LongTermReference reference{};
        if (n < from_sps) {
            const std::uint32_t index = candidates > 1 ? bits.u(ceil_log2(candidates)) : 0;
            require(index < candidates, "a slice names a long-term picture that its sequence does not list");
            reference.poc = std::int32_t(sps.long_term[index].poc_lsb);
            reference.used = sps.long_term[index].used;
        } else {
            reference.poc = std::int32_t(bits.u(sps.log2_max_poc_lsb));
            reference.used = bits.flag();
        }
        reference.has_msb = bits.flag();
        if (n == 0 || n == from_sps) cycles = 0;
        if (reference.has_msb) cycles += bits.ue(0x7FFFFFFFU);
        // Equation 7-52, less the current picture's own most significant bits, which the decoder adds.
        if (reference.has_msb) reference.poc = std::int32_t(std::uint32_t(reference.poc) - std::uint32_t(cycles << sps.log2_max_poc_lsb));
        header.long_term.push_back(reference);
    }
}

void read_references(BitReader& bits, SliceHeader& header) {
    const Sps& sps = *header.sps;
    header.poc_lsb = bits.u(sps.log2_max_poc_lsb);
    const std::size_t sets = sps.reference_sets.size();
    if (!bits.flag()) {
        header.reference_set = read_reference_set(bits, sps.reference_sets, sets, true);
    } else {
        require(sets > 0, "a slice uses a reference picture set that its sequence does not list");
        const std::uint32_t index = bits.u(ceil_log2(std::uint32_t(sets)));
        require(index < sets, "a slice uses a reference picture set that its sequence does not list");
        header.reference_set = sps.reference_sets[index];
    }
    if (sps.long_term_present) read_long_term(bits, header);
    if (sps.temporal_mvp) header.temporal_mvp = bits.flag();
}

void read_list_modification(BitReader& bits, SliceHeader& header, int lists) {
    const int total = header.references_used();
    const int length = ceil_log2(std::uint32_t(total));
    for (std::size_t list = 0; list < std::size_t(lists); ++list) {
        header.modified[list] = bits.flag();
        if (!header.modified[list]) continue;
        for (std::size_t n = 0; n < std::size_t(header.active[list]); ++n) {
            const std::uint32_t entry = bits.u(length);
            require(entry < std::uint32_t(total), "a slice's reference list names a picture beyond its reference picture set");
            header.list_entry[list][n] = std::uint8_t(entry);
        }
    }
}

// pred_weight_table(): weights change samples only, but stand before what is needed.
void skip_weights(BitReader& bits, const SliceHeader& header, int lists) {
    const bool chroma = header.sps->chroma_format != 0;
    bits.ue(7);
    if (chroma) bits.se(-7, 7);
    for (std::size_t list = 0; list < std::size_t(lists); ++list) {
        const auto count = std::size_t(header.active[list]);
        std::array<bool, kMaxReferences> luma_weighted{};
        std::array<bool, kMaxReferences> chroma_weighted{};
        for (std::size_t n = 0; n < count; ++n) luma_weighted[n] = bits.flag();
        if (chroma) {
            for (std::size_t n = 0; n < count; ++n) chroma_weighted[n] = bits.flag();
        }
        constexpr std::int32_t kAny = 1 << 13;
        for (std::size_t n = 0; n < count; ++n) {
            for (int value = 0; value < (luma_weighted[n] ? 2 : 0) + (chroma_weighted[n] ? 4 : 0); ++value) bits.se(-kAny, kAny);
        }
    }
}

void read_prediction(BitReader& bits, SliceHeader& header) {
    const Pps& pps = *header.pps;
    const int lists = header.type == kB ? 2 : 1;
    const bool overridden = bits.flag();
    for (std::size_t list = 0; list < std::size_t(lists); ++list) {
        header.active[list] = overridden ? int(bits.ue(kMaxReferences - 2)) + 1 : pps.default_active[list];
    }
    require(header.references_used() > 0, "a P or B slice has no reference picture");
    if (pps.lists_modification && header.references_used() > 1) read_list_modification(bits, header, lists);
    if (header.type == kB) header.mvd_l1_zero = bits.flag();
    if (pps.cabac_init_present) header.cabac_init = bits.flag();
    if (header.temporal_mvp) {
        if (header.type == kB) header.collocated_from_l0 = bits.flag();
        const int candidates = header.active[header.collocated_from_l0 ? 0 : 1];
        if (candidates > 1) header.collocated_index = int(bits.ue(std::uint32_t(candidates - 1)));
    }
    if (header.type == kP ? pps.weighted_pred : pps.weighted_bipred) skip_weights(bits, header, lists);
    header.max_merge_candidates = 5 - int(bits.ue(4));
}

void read_independent(BitReader& bits, SliceHeader& header) {
    const Sps& sps = *header.sps;
    const Pps& pps = *header.pps;
    header.slice_address = header.segment_address;
    bits.skip(std::size_t(pps.extra_slice_header_bits));
    header.type = int(bits.ue(2));
    if (pps.output_flag_present) header.pic_output = bits.flag();
    if (!is_idr(header.nal_type)) read_references(bits, header);
    if (sps.sao_enabled) {
        header.sao_luma = bits.flag();
        if (sps.chroma_format != 0) header.sao_chroma = bits.flag();
    }
    if (header.type != kI) read_prediction(bits, header);
    header.qp = pps.init_qp + bits.se(-87, 87);
    require(header.qp >= -sps.qp_offset() && header.qp <= 51, "a slice's QP is out of range");
    if (pps.slice_chroma_qp_offsets) {
        bits.se(-12, 12);
        bits.se(-12, 12);
    }
    const bool overridden = pps.deblocking_override && bits.flag();
    bool deblocking_disabled = pps.deblocking_disabled;
    if (overridden) {
        deblocking_disabled = bits.flag();
        if (!deblocking_disabled) {
            bits.se(-6, 6);
            bits.se(-6, 6);
        }
    }
    if (pps.loop_filter_across_slices && (header.sao_luma || header.sao_chroma || !deblocking_disabled)) bits.skip(1);
}

}  // namespace

int SliceHeader::references_used() const {
    int count = 0;
    for (int n = 0; n < reference_set.count; ++n) count += reference_set.used[std::size_t(n)];
    for (const LongTermReference& reference : long_term) count += reference.used;
    return count;
}

SliceHeader read_slice_header(BitReader& bits, int nal_type, const ParameterSets& sets, const SliceHeader* previous) {
    const bool first = bits.flag();
    const bool no_output_of_prior_pics = is_irap(nal_type) && bits.flag();
    const auto pps_id = bits.ue(63);
    const auto pps = sets.pps[pps_id];
    require(pps != nullptr, "a slice refers to a picture parameter set that is missing");
    const auto sps = sets.sps[std::size_t(pps->sps_id)];
    require(sps != nullptr, "a slice refers to a sequence parameter set that is missing");
    const bool dependent = !first && pps->dependent_slices && bits.flag();
    int address = 0;
    if (!first) {
        const int count = sps->width_ctbs() * sps->height_ctbs();
        address = int(bits.u(ceil_log2(std::uint32_t(count))));
        require(address > 0 && address < count, "a slice starts outside its picture");
    }
    require(first || previous != nullptr, "a picture's first slice is missing");
    require(first || int(pps_id) == previous->pps_id || !dependent, "a dependent slice segment changes its parameter sets");
    SliceHeader header;
    if (dependent) header = *previous;
    header.sps = sps;
    header.pps = pps;
    header.nal_type = nal_type;
    header.first_in_picture = first;
    header.no_output_of_prior_pics = no_output_of_prior_pics;
    header.pps_id = int(pps_id);
    header.dependent = dependent;
    header.segment_address = address;
    if (!dependent) read_independent(bits, header);
    if (pps->tiles || pps->entropy_sync) {
        // Substreams follow one another, so where each starts is known without their offsets.
        const std::uint32_t count = bits.ue(440 * 17);
        if (count > 0) {
            const std::size_t length = bits.ue(31) + 1;
            bits.skip(length * count);
        }
    }
    if (pps->slice_header_extension) bits.skip(std::size_t{8} * bits.ue(256));
    header.data_offset = bits.aligned();
    return header;
}

}  // namespace hevc
