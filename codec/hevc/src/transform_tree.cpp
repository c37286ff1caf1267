// transform_tree(), transform_unit() and cu_qp_delta (H.265, 7.3.8.8, 7.3.8.10, 8.6.1).

#include <algorithm>

#include "slice_decoder.h"

namespace hevc {

namespace {

// 7.4.9.11: small intra blocks are scanned across their prediction's direction.
Scan scan_of(int mode) {
    if (mode >= 6 && mode <= 14) return kVertical;
    if (mode >= 22 && mode <= 30) return kHorizontal;
    return kDiagonal;
}

}  // namespace

void SliceDecoder::read_transform_tree(const CodingUnit& unit, int x, int y, int log2_size, int depth, int block,
                                       Cbf parent) {
    const bool intra_split = unit.mode == kIntra && unit.part_mode == kNxN && depth == 0;
    const bool inter_split = sps_.max_depth_inter == 0 && unit.mode == kInter && unit.part_mode != k2Nx2N && depth == 0;
    bool split = log2_size > sps_.log2_max_tb || intra_split || inter_split;
    if (log2_size <= sps_.log2_max_tb && log2_size > sps_.log2_min_tb && depth < unit.max_depth && !intra_split) {
        split = bin(kSplitTransform + 5 - log2_size) != 0;
    }
    Cbf cbf = log2_size == 2 ? parent : Cbf{false, false};
    if (log2_size > 2 && sps_.chroma_format != 0) {
        cbf.cb = parent.cb && bin(kCbfChroma + depth);
        cbf.cr = parent.cr && bin(kCbfChroma + depth);
    }
    if (split) {
        const int half = 1 << (log2_size - 1);
        for (int part = 0; part < 4; ++part) {
            read_transform_tree(unit, x + (part & 1) * half, y + (part >> 1) * half, log2_size - 1, depth + 1, part, cbf);
        }
        return;
    }
    const bool cbf_luma = !(unit.mode == kIntra || depth != 0 || cbf.cb || cbf.cr) || bin(kCbfLuma + int(depth == 0));
    read_transform_unit(unit, x, y, log2_size, block, cbf_luma, cbf);
}

void SliceDecoder::read_transform_unit(const CodingUnit& unit, int x, int y, int log2_size, int block, bool cbf_luma,
                                       Cbf cbf) {
    if (!cbf_luma && !cbf.cb && !cbf.cr) return;
    if (pps_.cu_qp_delta && !qp_delta_read_) read_qp_delta();
    if (cbf_luma) read_luma(unit, x, y, log2_size);
    // The chroma of four 4x4 luma blocks is one 4x4 block, and follows the last of them.
    if (log2_size > 2) {
        read_chroma(unit, log2_size - 1, cbf);
    } else if (block == 3) {
        read_chroma(unit, 2, cbf);
    }
}

void SliceDecoder::read_luma(const CodingUnit& unit, int x, int y, int log2_size) {
    const bool intra = unit.mode == kIntra;
    TransformBlock block{};
    block.log2_size = log2_size;
    block.scan = intra && log2_size <= 3 ? scan_of(intra_mode_at(x, y)) : kDiagonal;
    block.luma = true;
    block.transform_skip_enabled = pps_.transform_skip;
    block.sign_hiding = pps_.sign_hiding;
    block.bypass = unit.bypass;
    block.sine = intra && log2_size == 2;
    block.qp = qp_ + sps_.qp_offset();
    block.bit_depth = sps_.bit_depth_luma;
    block.scaling = layout_.scaling ? layout_.scaling->factor[std::size_t(log2_size - 2)][intra ? 0 : 1].data() : nullptr;
    read_residual(cabac_, contexts_, block, levels_);
    add_energy(block, levels_, picture_.energy_at(x, y), picture_.cell_columns);
}

void SliceDecoder::read_chroma(const CodingUnit& unit, int log2_size, Cbf cbf) {
    TransformBlock block{};
    block.log2_size = log2_size;
    block.scan = unit.mode == kIntra && log2_size == 2 ? scan_of(unit.chroma_mode) : kDiagonal;
    block.transform_skip_enabled = pps_.transform_skip;
    block.sign_hiding = pps_.sign_hiding;
    block.bypass = unit.bypass;
    if (cbf.cb) read_residual(cabac_, contexts_, block, levels_);
    if (cbf.cr) read_residual(cabac_, contexts_, block, levels_);
}

void SliceDecoder::read_qp_delta() {
    int magnitude = 0;
    while (magnitude < 5 && bin(kQpDelta + int(magnitude > 0))) ++magnitude;
    if (magnitude == 5) {  // Exp-Golomb of order 0
        int order = 0;
        while (cabac_.bypass()) {
            magnitude += 1 << order;
            require(++order <= 7, "a QP difference is out of range");
        }
        magnitude += int(cabac_.bypass_bits(order));
    }
    qp_delta_read_ = true;
    qp_delta_ = magnitude != 0 && cabac_.bypass() ? -magnitude : magnitude;
    const int offset = sps_.qp_offset();
    require(qp_delta_ >= -(26 + offset / 2) && qp_delta_ <= 25 + offset / 2, "a QP difference is out of range");
    qp_ = (predicted_qp_ + qp_delta_ + 52 + 2 * offset) % (52 + offset) - offset;
}

}  // namespace hevc
