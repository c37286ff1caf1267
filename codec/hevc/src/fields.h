// A picture's grids as its users see them: one value a cell of 4x4 pixels, cropped to the conformance window.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

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

    // [rows, columns]: mean square of the residual.
    void energy(float* out) const {
        for (int row = 0; row < rows(); ++row, out += columns()) std::copy_n(energy_row(row), columns(), out);
    }

    // [rows, columns]: root mean square of the residual.
    void residual(float* out) const {
        for (int row = 0; row < rows(); ++row, out += columns()) {
            const float* const from = energy_row(row);
            for (int column = 0; column < columns(); ++column) out[column] = std::sqrt(from[column]);
        }
    }

    // [rows, columns]: a unit's bits, shared by those of its cells that the window shows.
    void bits(float* out) const {
        const int unit_cells = 1 << (picture_.sps->log2_min_cb - 2);
        const int end = left_ + columns();
        for (int row = top_; row < top_ + rows(); ++row, out += columns()) {
            if (row > top_ && row & (unit_cells - 1)) {  // the same units as in the row above
                std::copy_n(out - columns(), columns(), out);
                continue;
            }
            for (int x = left_ & -unit_cells; x < end; x += unit_cells) {
                const Unit& unit = picture_.unit_at(4 * x, 4 * row);
                const int side = 1 << (unit.log2_size - 2);
                const int shown = shown_of(row & -side, side, top_, rows()) * shown_of(x & -side, side, left_, columns());
                const int first = std::max(x, left_);
                std::fill(out + (first - left_), out + (std::min(x + unit_cells, end) - left_), unit.bits / float(shown));
            }
        }
    }

    // [rows, columns, 2]: pixels (x, y) by which a cell's content moved in `frames` units of the picture order count: the mean of
    // what its short-term references say; 0 where there is none.
    void displacement(float frames, float* out) const {
        const std::vector<Scales> scales = displacement_scales(frames);
        for (int row = top_; row < top_ + rows(); ++row) {
            const Motion* const from = &picture_.motion_at(4 * left_, 4 * row);
            for (int column = 0; column < columns(); ++column, out += 2) {
                const Motion& motion = from[column];
                out[0] = out[1] = 0;
                if (!motion.is_inter()) continue;
                const Scales& scale = scales[motion.slice];
                const float first = motion.uses(0) ? scale[0][std::size_t(motion.reference[0])] : 0;
                const float second = motion.uses(1) ? scale[1][std::size_t(motion.reference[1])] : 0;
                const float share = first != 0 && second != 0 ? 0.5F : 1.0F;
                out[0] = share * (first * motion.vector[0].x + second * motion.vector[1].x);
                out[1] = share * (first * motion.vector[0].y + second * motion.vector[1].y);
            }
        }
    }

private:
    using Scales = std::array<std::array<float, kMaxReferences>, 2>;  // by list and reference index

    // What a vector to each reference of each slice is multiplied with: it leads to where content was (in quarter pixels), or will
    // be if the reference follows. 0 for long-term references, which say nothing of speed.
    std::vector<Scales> displacement_scales(float frames) const {
        std::vector<Scales> scales(picture_.slices.size());
        for (std::size_t slice = 0; slice < scales.size(); ++slice) {
            const SliceReferences& references = picture_.slices[slice];
            for (std::size_t list = 0; list < 2; ++list) {
                for (std::size_t n = 0; n < kMaxReferences; ++n) {
                    const std::int64_t distance = std::int64_t{picture_.poc} - references.poc[list][n];
                    const bool known = distance != 0 && !references.long_term[list][n];
                    scales[slice][list][n] = known ? -0.25F * frames / float(distance) : 0.0F;
                }
            }
        }
        return scales;
    }

    const float* energy_row(int row) const { return picture_.energy_at(4 * left_, 4 * (top_ + row)); }

    // How many of `count` cells from `first` lie among the `length` shown ones from `start`.
    static int shown_of(int first, int count, int start, int length) {
        return std::min(first + count, start + length) - std::max(first, start);
    }

    const Picture& picture_;
    int top_;
    int left_;
};

}  // namespace hevc
