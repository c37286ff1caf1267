// Motion compensation of one H.264 picture, and what it leaves: the inner loops of codec/compensate.py.
//
// Luma sample interpolation is that of ITU-T H.264, 8.4.2.2.1: half samples by the six-tap filter (1, -5, 20, 20, -5, 1) / 32,
// quarter samples by the rounded mean of two neighbours among integer and half samples. Beyond the picture its edge repeats.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

namespace nb = nanobind;

namespace {

constexpr int kCell = 4;         // pixels per cell side
constexpr int kQuarter = 8;      // pixels per side of a quarter of a macroblock, the finest unit that FFmpeg exports
constexpr int kMacroblock = 16;
constexpr int kLine = 2;         // every second line is predicted and compared, see codec/h264.py
constexpr int kBefore = 2;       // samples that the six taps read before and after a position
constexpr int kAfter = 3;
constexpr int kWindow = kMacroblock + kBefore + kAfter;

using Plane = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::device::cpu>;
using Records = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Motion = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Residual = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Pixels = std::array<std::uint8_t, kMacroblock * kMacroblock / kLine>;  // every second line of a block, rows of 16

struct Picture {
    const std::uint8_t* data;
    std::ptrdiff_t stride;
    int height;
    int width;
    float per_frame;  // pixels a frame of one quarter of a pixel to the picture that is predicted

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

// Sixteen samples at a time, in the vector extensions of GCC and Clang; blocks of eight waste half of them.
template <typename Scalar, int Lanes>
struct Vectorised {
    using Type __attribute__((vector_size(sizeof(Scalar) * Lanes))) = Scalar;
};
template <typename Scalar, int Lanes>
using Vec = typename Vectorised<Scalar, Lanes>::Type;

template <typename Wide, typename Narrow, int Lanes>
Vec<Wide, Lanes> load(const Narrow* at) {
    Vec<Narrow, Lanes> narrow;
    std::memcpy(&narrow, at, sizeof narrow);
    return __builtin_convertvector(narrow, Vec<Wide, Lanes>);
}

template <typename Wide, int Lanes>
void store_clipped(std::uint8_t* to, Vec<Wide, Lanes> samples) {
    using V = Vec<Wide, Lanes>;
    samples = samples < 0 ? V{} : samples;
    samples = samples > 255 ? V{} + 255 : samples;
    const auto bytes = __builtin_convertvector(samples, Vec<std::uint8_t, Lanes>);
    std::memcpy(to, &bytes, sizeof bytes);
}

// Unrounded half samples: a - 5 b + 20 c, by shifts because SSE2 cannot multiply words. From bytes, between -2550 and 10710.
template <typename Wide, int Lanes, typename Narrow>
Vec<Wide, Lanes> six_taps(const Narrow* at, std::ptrdiff_t step) {
    const auto pair = [&](std::ptrdiff_t one, std::ptrdiff_t other) __attribute__((always_inline)) {
        return load<Wide, Narrow, Lanes>(at + one * step) + load<Wide, Narrow, Lanes>(at + other * step);
    };
    const auto inner = (pair(0, 1) << 2) - pair(-1, 2);
    return pair(-2, 3) + (inner << 2) + inner;
}

enum Half { kFull, kRight, kDown, kBoth };

// Samples at integer positions, half a pixel to the right, half a pixel down, or both.
template <int Width>
void interpolate(Half half, const std::uint8_t* from, std::ptrdiff_t stride, int height, std::uint8_t* to) {
    if (half == kFull) {
        for (int y = 0; y < height; y += kLine, to += kMacroblock) std::memcpy(to, from + y * stride, Width);
    } else if (half != kBoth) {
        const std::ptrdiff_t step = half == kRight ? 1 : stride;
        for (int y = 0; y < height; y += kLine, to += kMacroblock)
            store_clipped<std::int16_t, Width>(to, (six_taps<std::int16_t, Width>(from + y * stride, step) + 16) >> 5);
    } else {
        std::int16_t across[kWindow * Width];
        for (int y = 0; y < height + kBefore + kAfter; ++y) {
            const auto sums = six_taps<std::int16_t, Width>(from + (y - kBefore) * stride, 1);
            std::memcpy(across + y * Width, &sums, sizeof sums);
        }
        for (int y = 0; y < height; y += kLine, to += kMacroblock)
            for (int x = 0; x < Width; x += 8)
                store_clipped<std::int32_t, 8>(
                    to + x, (six_taps<std::int32_t, 8>(across + (y + kBefore) * Width + x, Width) + 512) >> 10);
    }
}

void average(Pixels& one, const Pixels& other) {
    for (std::size_t i = 0; i < one.size(); ++i) one[i] = std::uint8_t((one[i] + other[i] + 1) >> 1);
}

struct Sample {
    Half half;
    int y, x;
};

// For each quarter position, y * 4 + x: the two samples whose rounded mean it is (H.264, figure 8-4).
constexpr Sample kQuarters[16][2] = {
    {{kFull, 0, 0}, {kFull, 0, 0}},   {{kFull, 0, 0}, {kRight, 0, 0}},  {{kRight, 0, 0}, {kRight, 0, 0}}, {{kRight, 0, 0}, {kFull, 0, 1}},
    {{kFull, 0, 0}, {kDown, 0, 0}},   {{kRight, 0, 0}, {kDown, 0, 0}},  {{kRight, 0, 0}, {kBoth, 0, 0}},  {{kRight, 0, 0}, {kDown, 0, 1}},
    {{kDown, 0, 0}, {kDown, 0, 0}},   {{kDown, 0, 0}, {kBoth, 0, 0}},   {{kBoth, 0, 0}, {kBoth, 0, 0}},   {{kBoth, 0, 0}, {kDown, 0, 1}},
    {{kDown, 0, 0}, {kFull, 1, 0}},   {{kDown, 0, 0}, {kRight, 1, 0}},  {{kBoth, 0, 0}, {kRight, 1, 0}},  {{kDown, 0, 1}, {kRight, 1, 0}},
};

// `count` samples of a line from position `first`, which may lie outside of it.
void copy_repeating_edges(const std::uint8_t* line, int length, int first, int count, std::uint8_t* to) {
    const int left = std::clamp(-first, 0, count), right = std::clamp(first + count - length, 0, count - left);
    std::memset(to, line[0], std::size_t(left));
    std::memcpy(to + left, line + first + left, std::size_t(count - left - right));
    std::memset(to + count - right, line[length - 1], std::size_t(right));
}

template <int Width>
void predict_wide(const Picture& source, const Block& block, const Vector& vector, Pixels& to) {
    const int x = block.x + (vector.x >> 2), y = block.y + (vector.y >> 2);
    const std::uint8_t* from = source.data + y * source.stride + x;
    std::ptrdiff_t stride = source.stride;
    std::array<std::uint8_t, kWindow * kWindow> window;
    const int before = (vector.x | vector.y) & 3 ? kBefore : 0, after = (vector.x | vector.y) & 3 ? kAfter : 0;
    const bool inside = x >= before && y >= before && x + Width + after <= source.width && y + block.height + after <= source.height;
    if (!inside) {
        for (int row = 0; row < block.height + kBefore + kAfter; ++row) {
            const std::uint8_t* line = source.data + std::clamp(y - kBefore + row, 0, source.height - 1) * source.stride;
            copy_repeating_edges(line, source.width, x - kBefore, Width + kBefore + kAfter, window.data() + row * kWindow);
        }
        from = window.data() + kBefore * kWindow + kBefore;
        stride = kWindow;
    }
    const auto& [first, second] = kQuarters[(vector.y & 3) * 4 + (vector.x & 3)];
    interpolate<Width>(first.half, from + first.y * stride + first.x, stride, block.height, to.data());
    if (first.half != second.half || first.y != second.y || first.x != second.x) {
        Pixels other;
        interpolate<Width>(second.half, from + second.y * stride + second.x, stride, block.height, other.data());
        average(to, other);
    }
}

void predict(const Picture& source, const Block& block, const Vector& vector, Pixels& to) {
    if (block.width == kMacroblock) {
        predict_wide<kMacroblock>(source, block, vector, to);
    } else {
        predict_wide<kQuarter>(source, block, vector, to);
    }
}

struct Fit {
    int past = 0, future = 0;  // which reference of either list
    std::uint32_t total = 0;   // sum of |picture - prediction|
    std::array<std::uint16_t, 16> cells{};  // the same, per cell of a macroblock-wide raster
};

// Sums over the cells of one line of cells; `Width` is that of the block.
template <int Width>
void add_lines(const std::uint8_t* one, std::ptrdiff_t stride, const std::uint8_t* other, int lines, std::uint16_t* cells) {
    Vec<std::int16_t, Width> columns{};
    for (int line = 0; line < lines; ++line) {
        const auto difference = load<std::int16_t, std::uint8_t, Width>(one + line * stride) -
                                load<std::int16_t, std::uint8_t, Width>(other + line * kMacroblock);
        columns += difference < 0 ? -difference : difference;
    }
    // Sums of two neighbours, then of two pairs, in place: no lane is more than 16 bits full.
    const auto halves = reinterpret_cast<Vec<std::uint32_t, Width / 2>>(columns);
    const auto pairs = (halves & 0xFFFF) + (halves >> 16);
    const auto wide = reinterpret_cast<Vec<std::uint64_t, Width / 4>>(pairs);
    const auto sums = (wide & 0xFFFFFFFF) + (wide >> 32);
    for (int cell = 0; cell < Width / kCell; ++cell) cells[cell] = std::uint16_t(sums[cell]);
}

void measure(const Picture& picture, const Block& block, const Pixels& prediction, Fit& fit) {
    const int height = std::min(block.height, picture.height - block.y), width = std::min(block.width, picture.width - block.x);
    for (int top = 0; top < height; top += kCell) {
        const std::uint8_t* one = picture.data + (block.y + top) * picture.stride + block.x;
        const std::uint8_t* other = prediction.data() + top / kLine * kMacroblock;
        std::ptrdiff_t stride = kLine * picture.stride;
        const int lines = (std::min(kCell, height - top) + kLine - 1) / kLine;
        Pixels inside;
        if (width < block.width) {  // what lies outside of the picture must not count: it is taken to be as predicted
            std::memcpy(inside.data(), other, kCell / kLine * kMacroblock);
            for (int line = 0; line < lines; ++line) std::memcpy(inside.data() + line * kMacroblock, one + line * stride, std::size_t(width));
            one = inside.data();
            stride = kMacroblock;
        }
        if (block.width == kMacroblock) {
            add_lines<kMacroblock>(one, stride, other, lines, &fit.cells[std::size_t(top)]);
        } else {
            add_lines<kQuarter>(one, stride, other, lines, &fit.cells[std::size_t(top)]);
        }
    }
    for (const auto cell : fit.cells) fit.total += cell;
}

class Describer {
public:
    Describer(const Picture& picture, const std::vector<Picture>& past, const std::vector<Picture>& future, float good_fit, float advantage,
              float* motion, float* residual)
        : picture_(picture), past_(past), future_(future), good_fit_(good_fit), advantage_(advantage), motion_(motion), residual_(residual) {}

    // The prediction of a block from the references that fit it best; the nearest ones unless others are clearly better.
    Fit best(const Block& block, const Vectors& vectors) const {
        const bool back = vectors.past.known || !vectors.future.known, ahead = vectors.future.known;
        const auto fit_of = [&](int past, int future) {
            Pixels prediction, other;
            if (back) predict(past_[past], block, vectors.past, prediction);
            if (ahead) predict(future_[future], block, vectors.future, back ? other : prediction);
            if (back && ahead) average(prediction, other);
            Fit fit;
            fit.past = past;
            fit.future = future;
            measure(picture_, block, prediction, fit);
            return fit;
        };
        const Fit nearest = fit_of(0, 0);
        if (!vectors.past.known && !vectors.future.known) return nearest;
        if (nearest.total <= good_fit_ * float(block.width * block.height / kLine)) return nearest;
        Fit found = nearest;
        const auto consider = [&](int past, int future) {
            const Fit fit = fit_of(past, future);
            if (fit.total < found.total) found = fit;
        };
        for (int past = 1; vectors.past.known && past < int(past_.size()); ++past) consider(past, 0);
        for (int future = 1; ahead && future < int(future_.size()); ++future) consider(found.past, future);
        return found.total < advantage_ * float(nearest.total) ? found : nearest;
    }

    void describe(const Block& block, const Vectors& vectors) const {
        if (block.x >= picture_.width || block.y >= picture_.height) return;
        const Fit fit = best(block, vectors);
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
        if (block.x + block.width > picture_.width || block.y + block.height > picture_.height) {
            write<0>(block, fit, x, y);
        } else if (block.width == kMacroblock) {
            write<kMacroblock>(block, fit, x, y);
        } else {
            write<kQuarter>(block, fit, x, y);
        }
    }

private:
    // `Width` is a constant where the block lies in the picture, and 0 where the picture's edge cuts it.
    template <int Width>
    void write(const Block& block, const Fit& fit, float x, float y) const {
        const int stride = (picture_.width + kCell - 1) / kCell;
        const int rows = (std::min(block.height, picture_.height - block.y) + kCell - 1) / kCell;
        const int cols = ((Width ? Width : std::min(block.width, picture_.width - block.x)) + kCell - 1) / kCell;
        for (int row = 0; row < rows; ++row) {
            const std::ptrdiff_t first = std::ptrdiff_t(block.y / kCell + row) * stride + block.x / kCell;
            const int lines = Width ? kCell / kLine : (std::min(kCell, picture_.height - block.y - row * kCell) + kLine - 1) / kLine;
            for (int col = 0; col < cols; ++col) {
                const int wide = Width ? kCell : std::min(kCell, picture_.width - block.x - col * kCell);
                motion_[2 * (first + col)] = x;
                motion_[2 * (first + col) + 1] = y;
                residual_[first + col] = float(fit.cells[std::size_t(row * kCell + col)]) / float(lines * wide);
            }
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
