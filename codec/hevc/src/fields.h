// A picture's grids as its users see them: one value a cell of 4x4 pixels, cropped to the conformance window.

#pragma once

#include <algorithm>
#include <cstdint>

#include "picture.h"

namespace hevc {

class Fields {
public:
    explicit Fields(const Picture& picture)
        : picture_(picture), top_(picture.sps->crop_top / 4), left_(picture.sps->crop_left / 4) {}

    int height() const { return picture_.sps->height - picture_.sps->crop_top - picture_.sps->crop_bottom; }
    int width() const { return picture_.sps->width - picture_.sps->crop_left - picture_.sps->crop_right; }
    int rows() const { return (height() + 3) / 4; }
    int columns() const { return (width() + 3) / 4; }

    // Calls visit(cell number, x, y) for every cell, in row order, with a pixel of it. A window that starts inside a cell shows it.
    template <typename Visit>
    void each(Visit visit) const {
        std::size_t n = 0;
        for (int row = top_; row < top_ + rows(); ++row) {
            for (int column = left_; column < left_ + columns(); ++column) visit(n++, 4 * column, 4 * row);
        }
    }

    // A unit's bits, shared by those of its cells that the window shows.
    float bits(int x, int y) const {
        const Unit& unit = picture_.unit_at(x, y);
        const int side = 1 << (unit.log2_size - 2);
        const int shown = shown_of(y / 4 & -side, side, top_, rows()) * shown_of(x / 4 & -side, side, left_, columns());
        return unit.bits / float(shown);
    }

    // Pixels (x, y) by which a cell's content moved in `frames` units of the picture order count: the mean of what its short-term
    // references say; {0, 0} where there is none.
    std::array<float, 2> displacement(const Motion& motion, float frames) const {
        std::array<float, 2> sum{};
        int count = 0;
        for (std::size_t list = 0; list < 2; ++list) {
            if (motion.reference[list] < 0) continue;
            const SliceReferences& slice = picture_.slices[motion.slice];
            const auto index = std::size_t(motion.reference[list]);
            const std::int64_t distance = std::int64_t{picture_.poc} - slice.poc[list][index];
            if (slice.long_term[list][index] || distance == 0) continue;
            // A vector leads to where content was (in quarter pixels), or will be if the reference follows.
            const float scale = -0.25F * frames / float(distance);
            sum[0] += scale * motion.vector[list].x;
            sum[1] += scale * motion.vector[list].y;
            ++count;
        }
        if (count == 2) return {sum[0] / 2, sum[1] / 2};
        return sum;
    }

private:
    // How many of `count` cells from `first` lie among the `length` shown ones from `start`.
    static int shown_of(int first, int count, int start, int length) {
        return std::min(first + count, start + length) - std::max(first, start);
    }

    const Picture& picture_;
    int top_;
    int left_;
};

}  // namespace hevc
