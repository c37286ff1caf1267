// Which blocks a block may look at (H.265, 6.4.1): those decoded before it, in the same slice and tile.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "parameter_sets.h"

namespace hevc {

// Order of the 4x4 cells within a coding tree block.
struct ZOrder {
    std::uint8_t of[16][16];
};

constexpr ZOrder make_z_order() {
    ZOrder order{};
    for (int y = 0; y < 16; ++y) {
        for (int x = 0; x < 16; ++x) {
            int z = 0;
            for (int bit = 0; bit < 4; ++bit) z |= (x >> bit & 1) << (2 * bit) | (y >> bit & 1) << (2 * bit + 1);
            order.of[y][x] = std::uint8_t(z);
        }
    }
    return order;
}

inline constexpr ZOrder kZOrder = make_z_order();

class Availability {
public:
    void start_picture(const Sps& sps, std::shared_ptr<const Layout> layout) {
        width_ = sps.width;
        height_ = sps.height;
        log2_ctb_ = sps.log2_ctb;
        width_ctbs_ = sps.width_ctbs();
        layout_ = std::move(layout);
        slice_address_.assign(layout_->tile_id.size(), -1);
    }

    bool decoded(int ctb) const { return slice_address_[std::size_t(ctb)] >= 0; }
    void start_ctb(int ctb, int slice_address) { slice_address_[std::size_t(ctb)] = slice_address; }

    // Whether a coding tree block, decoded or not, belongs to the slice and tile of another.
    bool same(int ctb, int other) const {
        return slice_address_[std::size_t(ctb)] == slice_address_[std::size_t(other)] &&
               layout_->tile_id[std::size_t(ctb)] == layout_->tile_id[std::size_t(other)];
    }

    bool available(int from_x, int from_y, int x, int y) const {
        if (x < 0 || y < 0 || x >= width_ || y >= height_) return false;
        const int from = ctb_of(from_x, from_y);
        const int ctb = ctb_of(x, y);
        if (from != ctb) return same(from, ctb);
        const int mask = (1 << log2_ctb_) - 1;
        return kZOrder.of[(y & mask) >> 2][(x & mask) >> 2] <= kZOrder.of[(from_y & mask) >> 2][(from_x & mask) >> 2];
    }

private:
    int ctb_of(int x, int y) const { return (y >> log2_ctb_) * width_ctbs_ + (x >> log2_ctb_); }

    int width_ = 0;
    int height_ = 0;
    int log2_ctb_ = 4;
    int width_ctbs_ = 0;
    std::shared_ptr<const Layout> layout_;
    std::vector<int> slice_address_;  // SliceAddrRs by CTB; -1 where none is decoded yet
};

}  // namespace hevc
