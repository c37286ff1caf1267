#include "slice_decoder.h"

#include <algorithm>

namespace hevc {

SliceDecoder::SliceDecoder(const SliceHeader& header, const Layout& layout, Picture& picture, const ReferenceLists& lists,
                           Availability& availability, std::vector<std::uint8_t>& intra_modes, SliceState& state)
    : header_(header), sps_(*header.sps), pps_(*header.pps), layout_(layout), picture_(picture), lists_(lists), availability_(availability),
      intra_modes_(intra_modes), state_(state), predictor_(header, picture, lists, availability), ctb_mask_((1 << sps_.log2_ctb) - 1) {}

void SliceDecoder::decode(const std::uint8_t* data, std::size_t size) {
    start_substream(data, size);
    const auto count = int(layout_.ts_to_rs.size());
    int address = layout_.rs_to_ts[std::size_t(header_.segment_address)];
    bool first = true;
    for (bool end = false; !end; ++address) {
        require(address < count, "slice data go on beyond the picture");
        const int ctb = layout_.ts_to_rs[std::size_t(address)];
        start_ctb(ctb, first);
        first = false;
        const int width = sps_.width_ctbs();
        const double before = cabac_.spent();
        read_sao();
        counted_ = cabac_.spent();
        other_bits_ += counted_ - before;
        read_quadtree((ctb % width) << sps_.log2_ctb, (ctb / width) << sps_.log2_ctb, sps_.log2_ctb, 0);
        ++picture_.decoded_ctbs;
        end = finish_ctb(ctb, address + 1 < count ? layout_.ts_to_rs[std::size_t(address) + 1] : -1);
    }
    picture_.slice_data_bits += 8 * (end_ - data);
    picture_.other_bits += other_bits_;
}

void SliceDecoder::init() {
    int type = 0;
    if (header_.type == kP) type = header_.cabac_init ? 2 : 1;
    if (header_.type == kB) type = header_.cabac_init ? 1 : 2;
    init_contexts(contexts_, type, header_.qp);
}

// 9.3.1: where contexts come from.
void SliceDecoder::start_ctb(int ctb, bool first) {
    require(!availability_.decoded(ctb), "two slices hold the same coding tree block");
    availability_.start_ctb(ctb, header_.slice_address);
    const int width = sps_.width_ctbs();
    const int x = ctb % width;
    left_ctb_ = x > 0 && availability_.same(ctb, ctb - 1);
    above_ctb_ = ctb >= width && availability_.same(ctb, ctb - width);
    const int address = layout_.rs_to_ts[std::size_t(ctb)];
    const bool first_in_tile =
        address == 0 || layout_.tile_id[std::size_t(ctb)] != layout_.tile_id[std::size_t(layout_.ts_to_rs[std::size_t(address) - 1])];
    const bool first_in_row = pps_.entropy_sync && layout_.first_in_tile_row[std::size_t(ctb)];
    if (first_in_tile) {
        init();
    } else if (first_in_row) {
        const bool above_right = ctb >= width && x + 1 < width && availability_.same(ctb, ctb - width + 1);
        if (above_right && state_.has_row_contexts) {
            contexts_ = state_.row_contexts;
        } else {
            init();
        }
    } else if (first) {
        if (header_.dependent) {
            contexts_ = state_.contexts;
        } else {
            init();
        }
    }
    if (first_in_tile || first_in_row || (first && !header_.dependent)) {
        state_.previous_qp = header_.qp;
    }
    if (!pps_.cu_qp_delta) qp_ = header_.qp;
}

// Ends of slices and substreams; true at the end of the segment.
bool SliceDecoder::finish_ctb(int ctb, int next) {
    require(!cabac_.overrun(), "slice data end too early");
    const int width = sps_.width_ctbs();
    const double before = cabac_.spent();
    // 9.3.2.4: the contexts after the second block of a row start the next row.
    if (pps_.entropy_sync) {
        const bool second = ctb % width > 0 && layout_.first_in_tile_row[std::size_t(ctb) - 1] &&
                            layout_.tile_id[std::size_t(ctb)] == layout_.tile_id[std::size_t(ctb) - 1];
        if (second) {
            state_.row_contexts = contexts_;
            state_.has_row_contexts = true;
        }
    }
    if (cabac_.terminate()) {
        const std::uint8_t* rest = cabac_.finish();
        require(std::all_of(rest, cabac_.end(), [](std::uint8_t byte) { return byte == 0; }), "slice data go on behind their end");
        state_.contexts = contexts_;
        other_bits_ += cabac_.spent_at(rest) - before;
        end_ = rest;
        return true;
    }
    require(next >= 0, "slice data go on beyond the picture");
    const bool new_tile = pps_.tiles && layout_.tile_id[std::size_t(ctb)] != layout_.tile_id[std::size_t(next)];
    if (new_tile || (pps_.entropy_sync && layout_.first_in_tile_row[std::size_t(next)])) {
        require(cabac_.terminate(), "a substream does not end with its tile or row");
        const std::uint8_t* rest = cabac_.finish();
        other_bits_ += cabac_.spent_at(rest) - before;
        start_substream(rest, std::size_t(cabac_.end() - rest));
    } else {
        other_bits_ += cabac_.spent() - before;
    }
    return false;
}

void SliceDecoder::read_sao() {
    if (!header_.sao_luma && !header_.sao_chroma) return;
    const bool merged = (left_ctb_ && bin(kSaoMerge)) || (above_ctb_ && bin(kSaoMerge));
    if (!merged) {
        int type = 0;
        if (header_.sao_luma) read_sao_component(0, type);
        if (header_.sao_chroma) {
            read_sao_component(1, type);
            read_sao_component(2, type);
        }
    }
}

void SliceDecoder::read_sao_component(int component, int& type) {
    if (component != 2) type = bin(kSaoType) ? 1 + cabac_.bypass() : 0;
    if (type == 0) return;
    const int depth = component == 0 ? sps_.bit_depth_luma : sps_.bit_depth_chroma;
    const int limit = (1 << (std::min(depth, 10) - 5)) - 1;
    int nonzero = 0;
    for (int n = 0; n < 4; ++n) {
        int offset = 0;
        while (offset < limit && cabac_.bypass()) ++offset;
        nonzero += offset > 0;
    }
    if (type == 1) {
        cabac_.bypass_bits(nonzero + 5);  // signs, band position
    } else if (component != 2) {
        cabac_.bypass_bits(2);  // edge class
    }
}

void SliceDecoder::read_quadtree(int x, int y, int log2_size, int depth) {
    const int size = 1 << log2_size;
    bool split = log2_size > sps_.log2_min_cb;
    if (split && x + size <= sps_.width && y + size <= sps_.height) {
        const int deeper = int(left_available(x) && picture_.unit_at(x - 1, y).depth > depth) +
                           int(above_available(y) && picture_.unit_at(x, y - 1).depth > depth);
        split = bin(kSplitCu + deeper) != 0;
    }
    if (pps_.cu_qp_delta && log2_size >= sps_.log2_ctb - pps_.diff_cu_qp_delta_depth) start_quantisation_group(x, y);
    if (!split) {
        read_unit(x, y, log2_size, depth);
        return;
    }
    const int half = size / 2;
    for (int part = 0; part < 4; ++part) {
        const int part_x = x + (part & 1) * half;
        const int part_y = y + (part >> 1) * half;
        if (part_x < sps_.width && part_y < sps_.height) read_quadtree(part_x, part_y, log2_size - 1, depth + 1);
    }
}

// 8.6.1: the QP that the group's differences start from.
void SliceDecoder::start_quantisation_group(int x, int y) {
    qp_delta_read_ = false;
    qp_delta_ = 0;
    // Neighbours count only within the coding tree block, where they are always available.
    const int previous = state_.previous_qp;
    const int left = x & ctb_mask_ ? picture_.unit_at(x - 1, y).qp : previous;
    const int above = y & ctb_mask_ ? picture_.unit_at(x, y - 1).qp : previous;
    predicted_qp_ = (left + above + 1) >> 1;
    qp_ = predicted_qp_;
}

}  // namespace hevc
