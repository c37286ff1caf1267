// Motion compensation of one H.264 picture, and what it leaves: the inner loops of codec/compensate.py. Beyond a picture its edge repeats.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include "interpolate.h"

namespace nb = nanobind;

namespace {

using namespace compensate;

constexpr int kCell = 4;               // pixels per cell side
constexpr int kQuarter = 8;            // pixels per side of a quarter of a macroblock, the finest unit that FFmpeg exports
constexpr int kCacheLine = 64;         // bytes
constexpr int kAhead = 2 * kCacheLine;  // pixels between a macroblock and the one whose pixels are asked for

using Plane = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::device::cpu>;
using Records = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Motion = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Residual = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

struct Picture {
    const std::uint8_t* data;
    std::ptrdiff_t stride;
    int height;
    int width;
    float per_frame;  // pixels a frame of one quarter of a pixel to the picture that is predicted

    Picture(const std::uint8_t* pixels, std::ptrdiff_t line, int lines, int length)
        : data(pixels), stride(line), height(lines), width(length), per_frame(0) {}
    Picture(const Plane& plane, int distance)
        : data(plane.data()), stride(plane.stride(0)), height(int(plane.shape(0))), width(int(plane.shape(1))), per_frame(0.25F / float(distance)) {
        if (plane.stride(1) != 1) throw std::invalid_argument("the pixels of a row must follow one another");
    }
};

struct Vector {
    std::int32_t x = 0;
    std::int32_t y = 0;
    bool known = false;

    bool operator==(const Vector& other) const { return x == other.x && y == other.y && known == other.known; }
};

struct Vectors {  // of one quarter of a macroblock
    Vector past;
    Vector future;

    bool operator==(const Vectors& other) const { return past == other.past && future == other.future; }
};

struct Block {
    int x, y, width, height;
};

template <int Width>
Lines predict(const Picture& source, const Block& block, const Vector& vector, Pixels& room) {
    const int x = block.x + (vector.x >> 2), y = block.y + (vector.y >> 2);
    const bool whole = ((vector.x | vector.y) & 3) == 0;
    const int before = whole ? 0 : kBefore, after = whole ? 0 : kAfter;
    const std::uint8_t* from = source.data + y * source.stride + x;
    std::ptrdiff_t stride = source.stride;
    std::array<std::uint8_t, kWindow * kWindow> window;
    if (x < before || y < before || x + Width + after > source.width || y + block.height + after > source.height) {
        for (int row = 0; row < block.height + kBefore + kAfter; ++row) {
            const std::uint8_t* line = source.data + std::clamp(y - kBefore + row, 0, source.height - 1) * source.stride;
            copy_repeating_edges(line, source.width, x - kBefore, Width + kBefore + kAfter, window.data() + row * kWindow);
        }
        from = window.data() + kBefore * kWindow + kBefore;
        stride = kWindow;
    } else if (whole) {
        return {from, kLine * stride};
    }
    const auto& [first, second] = kQuarters[(vector.y & 3) * 4 + (vector.x & 3)];
    interpolate<Width>(first.half, from + first.y * stride + first.x, stride, block.height, room.data());
    if (first.half != second.half || first.y != second.y || first.x != second.x) {
        Pixels other;
        interpolate<Width>(second.half, from + second.y * stride + second.x, stride, block.height, other.data());
        average<Width>({room.data(), kMacroblock}, {other.data(), kMacroblock}, block.height, room);
    }
    return {room.data(), kMacroblock};
}

struct Fit {
    int past = 0, future = 0;  // which reference of either list
    std::int32_t total = 0;    // sum of |picture - prediction|
    std::array<std::int32_t, 16> cells;  // the same, per cell of a macroblock-wide raster
};

// Sums over the cells of one line of cells; `Width` is that of the block.
template <int Width>
Vec<std::int32_t, Width / kCell> add_lines(const Lines& one, const Lines& other) {
    Vec<std::uint16_t, Width / 2> pairs{};
    for (int line = 0; line < kCell / kLine; ++line) {
        const auto a = load<std::uint8_t, std::uint8_t, Width>(one.data + line * one.stride);
        const auto b = load<std::uint8_t, std::uint8_t, Width>(other.data + line * other.stride);
        const Vec<std::uint8_t, Width> difference = (a > b ? a : b) - (a < b ? a : b);
        const auto two = reinterpret_cast<Vec<std::uint16_t, Width / 2>>(difference);
        pairs += (two & 0xFF) + (two >> 8);
    }
    const auto two = reinterpret_cast<Vec<std::uint32_t, Width / 4>>(pairs);
    return reinterpret_cast<Vec<std::int32_t, Width / 4>>((two & 0xFFFF) + (two >> 16));
}

template <int Width>
void measure(const Picture& picture, const Block& block, const Lines& prediction, Fit& fit) {
    Vec<std::int32_t, Width / kCell> total{};
    for (int top = 0; top < block.height; top += kCell) {
        const Lines one{picture.data + (block.y + top) * picture.stride + block.x, kLine * picture.stride};
        const Lines other{prediction.data + top / kLine * prediction.stride, prediction.stride};
        const auto sums = add_lines<Width>(one, other);
        std::memcpy(&fit.cells[std::size_t(top)], &sums, sizeof sums);
        total += sums;
    }
    fit.total = 0;
    for (int cell = 0; cell < Width / kCell; ++cell) fit.total += total[cell];
}

// The same where the picture's edge cuts the block: what lies outside does not count, because it is taken to be as predicted.
template <int Width>
void measure_inside(const Picture& picture, const Block& block, const Lines& prediction, Fit& fit) {
    const int height = std::min(block.height, picture.height - block.y), width = std::min(block.width, picture.width - block.x);
    Pixels inside;
    for (int line = 0; line < block.height / kLine; ++line) {
        std::uint8_t* to = inside.data() + line * kMacroblock;
        std::memcpy(to, prediction.data + line * prediction.stride, Width);
        if (line * kLine < height) std::memcpy(to, picture.data + (block.y + line * kLine) * picture.stride + block.x, std::size_t(width));
    }
    measure<Width>({inside.data(), kMacroblock / kLine, block.height, Width}, {0, 0, Width, block.height}, prediction, fit);
}

class Describer {
public:
    Describer(const Picture& picture, const std::vector<Picture>& past, const std::vector<Picture>& future, float good_fit, float advantage,
              float* motion, float* residual)
        : picture_(picture), past_(past), future_(future), good_fit_(good_fit), advantage_(advantage), motion_(motion), residual_(residual) {}

    // Asks for the pixels of a macroblock to come: they have left the nearest caches since they were decoded.
    void fetch(int x, int y) const {
        if (x % kCacheLine != 0 || x >= picture_.width) return;
        for (int line = y; line < std::min(y + kMacroblock, picture_.height); ++line) {
            if (line % kLine == 0) __builtin_prefetch(picture_.data + line * picture_.stride + x);
            __builtin_prefetch(past_[0].data + line * past_[0].stride + x);
            if (!future_.empty()) __builtin_prefetch(future_[0].data + line * future_[0].stride + x);
        }
    }

    void describe(const Block& block, const Vectors& vectors) const {
        if (block.x >= picture_.width || block.y >= picture_.height) return;
        if (block.width == kMacroblock) {
            describe_wide<kMacroblock>(block, vectors);
        } else {
            describe_wide<kQuarter>(block, vectors);
        }
    }

private:
    template <int Width>
    void describe_wide(const Block& block, const Vectors& vectors) const {
        Fit fit;
        const bool cut = block.x + Width > picture_.width || block.y + block.height > picture_.height;
        if (cut) {
            best<Width, true>(block, vectors, fit);
        } else {
            best<Width, false>(block, vectors, fit);
        }
        float x = 0, y = 0;
        const float directions = float(vectors.past.known + vectors.future.known);
        if (vectors.past.known) {  // content came from where the vector leads
            const float scale = -past_[fit.past].per_frame / directions;
            x += scale * float(vectors.past.x);
            y += scale * float(vectors.past.y);
        }
        if (vectors.future.known) {  // content goes there
            const float scale = future_[fit.future].per_frame / directions;
            x += scale * float(vectors.future.x);
            y += scale * float(vectors.future.y);
        }
        if (cut) {
            write_inside(block, fit, x, y);
        } else {
            write<Width>(block, fit, x, y);
        }
    }

    // The prediction of a block from the references that fit it best; the nearest ones unless others are clearly better.
    template <int Width, bool Cut>
    void best(const Block& block, const Vectors& vectors, Fit& found) const {
        const bool back = vectors.past.known || !vectors.future.known, ahead = vectors.future.known;
        Pixels before, after, tried, both;
        const auto fit = [&](const Lines& past, const Lines& future, Fit& to) {
            const Lines prediction = !ahead ? past : !back ? future : average<Width>(past, future, block.height, both);
            if constexpr (Cut) {
                measure_inside<Width>(picture_, block, prediction, to);
            } else {
                measure<Width>(picture_, block, prediction, to);
            }
        };
        Lines past{}, future{};
        if (back) past = predict<Width>(past_[0], block, vectors.past, before);
        if (ahead) future = predict<Width>(future_[0], block, vectors.future, after);
        fit(past, future, found);
        if (float(found.total) <= good_fit_ * float(Width * block.height / kLine)) return;
        if (!vectors.past.known && !vectors.future.known) return;
        const float bound = advantage_ * float(found.total);
        Fit least = found, other;
        const auto consider = [&](int nth_past, int nth_future, const Lines& from_past, const Lines& from_future) {
            fit(from_past, from_future, other);
            if (other.total >= least.total) return;
            least = other;
            least.past = nth_past;
            least.future = nth_future;
        };
        for (int nth = 1; vectors.past.known && nth < int(past_.size()); ++nth)
            consider(nth, 0, predict<Width>(past_[nth], block, vectors.past, tried), future);
        if (ahead && future_.size() > 1) {
            if (back && least.past > 0) past = predict<Width>(past_[least.past], block, vectors.past, before);
            for (int nth = 1; nth < int(future_.size()); ++nth)
                consider(least.past, nth, past, predict<Width>(future_[nth], block, vectors.future, tried));
        }
        if (float(least.total) < bound) found = least;
    }

    template <int Width>
    void write(const Block& block, const Fit& fit, float x, float y) const {
        constexpr int kCells = Width / kCell;
        const int stride = (picture_.width + kCell - 1) / kCell;
        std::ptrdiff_t first = std::ptrdiff_t(block.y / kCell) * stride + block.x / kCell;
        Vec<float, 2 * kCells> vectors;
        for (int col = 0; col < kCells; ++col) vectors[2 * col] = x, vectors[2 * col + 1] = y;
        for (int top = 0; top < block.height; top += kCell, first += stride) {
            const auto means = load<float, std::int32_t, kCells>(&fit.cells[std::size_t(top)]) * (float(kLine) / float(kCell * kCell));
            std::memcpy(motion_ + 2 * first, &vectors, sizeof vectors);
            std::memcpy(residual_ + first, &means, sizeof means);
        }
    }

    // The same where the picture's edge cuts the block.
    void write_inside(const Block& block, const Fit& fit, float x, float y) const {
        const int stride = (picture_.width + kCell - 1) / kCell;
        const int height = std::min(block.height, picture_.height - block.y), width = std::min(block.width, picture_.width - block.x);
        for (int top = 0; top < height; top += kCell)
            for (int left = 0; left < width; left += kCell) {
                const std::ptrdiff_t cell = std::ptrdiff_t((block.y + top) / kCell) * stride + (block.x + left) / kCell;
                const int pixels = (std::min(kCell, height - top) + kLine - 1) / kLine * std::min(kCell, width - left);
                motion_[2 * cell] = x;
                motion_[2 * cell + 1] = y;
                residual_[cell] = float(fit.cells[std::size_t(top + left / kCell)]) / float(pixels);
            }
    }

    const Picture& picture_;
    const std::vector<Picture>& past_;
    const std::vector<Picture>& future_;
    float good_fit_, advantage_;
    float* motion_;    // [rows, cols, 2]
    float* residual_;  // [rows, cols]
};

struct MotionRecord {  // AVMotionVector of libavutil/motion_vector.h
    std::int32_t source;
    std::uint8_t width, height;
    std::int16_t src_x, src_y, dst_x, dst_y;
    std::uint64_t flags;
    std::int32_t motion_x, motion_y;
    std::uint16_t motion_scale;
};
static_assert(sizeof(MotionRecord) == 40);

// The vectors of each quarter of each macroblock, raster order.
std::vector<Vectors> quarters_of(const Records& records, int rows, int cols, bool has_future) {
    std::vector<Vectors> quarters(std::size_t(rows) * std::size_t(cols));
    for (std::size_t i = 0; i < records.shape(0); ++i) {
        MotionRecord record;
        std::memcpy(&record, records.data() + i * sizeof(MotionRecord), sizeof(MotionRecord));
        if (record.source > 0 && !has_future) continue;
        // dst is the centre of the block.
        const int top = std::max(0, (record.dst_y - record.height / 2) / kQuarter);
        const int left = std::max(0, (record.dst_x - record.width / 2) / kQuarter);
        const int bottom = std::min(rows, top + std::max(1, record.height / kQuarter));
        const int right = std::min(cols, left + std::max(1, record.width / kQuarter));
        for (int row = top; row < bottom; ++row)
            for (int col = left; col < right; ++col) {
                Vectors& quarter = quarters[std::size_t(row) * std::size_t(cols) + std::size_t(col)];
                (record.source < 0 ? quarter.past : quarter.future) = Vector{record.motion_x, record.motion_y, true};
            }
    }
    return quarters;
}

std::vector<Picture> pictures_of(const std::vector<Plane>& planes, const std::vector<int>& distances, const Picture& like) {
    if (planes.size() != distances.size()) throw std::invalid_argument("one distance a reference");
    std::vector<Picture> pictures;
    for (std::size_t i = 0; i < planes.size(); ++i) {
        pictures.emplace_back(planes[i], distances[i]);
        if (pictures.back().height != like.height || pictures.back().width != like.width)
            throw std::invalid_argument("a reference has another size than the picture");
    }
    return pictures;
}

#if defined(__x86_64__) && defined(__linux__)
// Compiled twice, with everything it calls; the loader takes the version that the processor can run.
#define FOR_EACH_PROCESSOR __attribute__((flatten, target_clones("avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

FOR_EACH_PROCESSOR
void describe_blocks(const Describer& describer, const std::vector<Vectors>& quarters, int high, int wide) {
    const auto emit = [&](int col, int row, int across, int down) {
        const Block block{col * kQuarter, row * kQuarter, across * kQuarter, down * kQuarter};
        describer.describe(block, quarters[std::size_t(row) * std::size_t(wide) + std::size_t(col)]);
    };
    for (int row = 0; row < high; row += 2)
        for (int col = 0; col < wide; col += 2) {
            describer.fetch(col * kQuarter + kAhead, row * kQuarter);
            const Vectors* upper = &quarters[std::size_t(row) * std::size_t(wide) + std::size_t(col)];
            const Vectors* lower = upper + wide;
            // Equal quarters are predicted as one block: fewer and longer rows.
            const bool across = upper[0] == upper[1] && lower[0] == lower[1];
            const bool down = upper[0] == lower[0] && upper[1] == lower[1];
            const int width = across ? 2 : 1, height = down ? 2 : 1;
            for (int y = 0; y < 2; y += height)
                for (int x = 0; x < 2; x += width) emit(col + x, row + y, width, height);
        }
}

void describe(const Plane& plane, const std::vector<Plane>& past_planes, const std::vector<int>& past_distances,
              const std::vector<Plane>& future_planes, const std::vector<int>& future_distances, const Records& records,
              float good_fit, float advantage, Motion motion, Residual residual) {
    const Picture picture(plane, 1);
    const auto past = pictures_of(past_planes, past_distances, picture), future = pictures_of(future_planes, future_distances, picture);
    const int rows = (picture.height + kCell - 1) / kCell, cols = (picture.width + kCell - 1) / kCell;
    if (past.empty()) throw std::invalid_argument("a reference from the past is needed");
    if (records.shape(1) != sizeof(MotionRecord)) throw std::invalid_argument("vectors must be AVMotionVector records of 40 bytes");
    if (int(motion.shape(0)) != rows || int(motion.shape(1)) != cols || motion.shape(2) != 2 || int(residual.shape(0)) != rows ||
        int(residual.shape(1)) != cols)
        throw std::invalid_argument("motion must be [rows, cols, 2] and residual [rows, cols] of 4x4 cells");
    nb::gil_scoped_release release;
    const int high = 2 * ((picture.height + kMacroblock - 1) / kMacroblock), wide = 2 * ((picture.width + kMacroblock - 1) / kMacroblock);
    const auto quarters = quarters_of(records, high, wide, !future.empty());
    describe_blocks(Describer(picture, past, future, good_fit, advantage, motion.data(), residual.data()), quarters, high, wide);
}

}  // namespace

NB_MODULE(_compensate, module) { module.def("describe", &describe); }
