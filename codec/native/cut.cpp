// Patches of one decoded picture, resampled from their own surroundings: the inner loops of codec/cut.py. Every output pixel is a
// weighted sum of the input around it, down the columns first, then along the rows, then from Y'CbCr to RGB. Sums are of single
// products in a fixed order (setup.py forbids fused ones), so every processor gives the same bytes.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

namespace nb = nanobind;

namespace {

constexpr int kLanes = 8;
constexpr int kRows = 2;
constexpr double kFarthest = 1 << 20;  // pixels
constexpr double kSharpness = -0.6;  // swscale's bicubic

using Plane = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Places = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Patches = nb::ndarray<std::uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Float8 __attribute__((vector_size(4 * kLanes))) = float;
using Int8 __attribute__((vector_size(4 * kLanes))) = std::int32_t;
using Short8 __attribute__((vector_size(2 * kLanes))) = std::int16_t;
using Byte8 __attribute__((vector_size(kLanes))) = std::uint8_t;

double cubic(double x) {
    x = std::abs(x);
    if (x < 1) return ((kSharpness + 2) * x - (kSharpness + 3)) * x * x + 1;
    return x < 2 ? kSharpness * (((x - 5) * x + 8) * x - 4) : 0;
}

struct Taps {  // of one output pixel: weights of the input pixels first, first + 1, ...
    int first;
    std::vector<float> weights;
    int last() const { return first + int(weights.size()); }
};

// One axis of a plane of `length` pixels, whose part from `from` to `to` becomes `count` pixels; from > to mirrors it.
std::vector<Taps> filter(int length, double from, double to, int count) {
    const double step = (to - from) / count, width = std::max(1.0, std::abs(step));  // widened where it reduces: no aliasing
    std::vector<Taps> taps;
    for (int pixel = 0; pixel < count; ++pixel) {
        const double centre = from + (pixel + 0.5) * step;
        const int begin = int(std::ceil(centre - 2 * width - 0.5)), end = int(std::floor(centre + 2 * width - 0.5)) + 1;
        const int first = std::clamp(begin, 0, length - 1), last = std::clamp(end, first + 1, length);
        std::vector<double> weights(std::size_t(last - first), 0.0);
        double total = 0;
        for (int place = begin; place < end; ++place) {  // beyond the picture its edge repeats
            const double weight = cubic((place + 0.5 - centre) / width);
            weights[std::size_t(std::clamp(place, first, last - 1) - first)] += weight;
            total += weight;
        }
        taps.push_back({first, {}});
        for (const double weight : weights) taps.back().weights.push_back(float(weight / total));
    }
    return taps;
}

struct Lanes {  // eight neighbouring output pixels of a row: a weight each for every input pixel from `first` on
    int first;
    std::vector<float> weights;
};

struct Column {  // of patches
    int first, last;  // input pixels that it sees
    std::vector<Lanes> lanes;
};

Column column(const std::vector<Taps>& taps, int begin, int size) {
    Column result{taps[std::size_t(begin)].first, 0, {}};
    for (int lane = 0; lane < size; lane += kLanes) {
        const auto from = taps.begin() + begin + lane, to = from + std::min(kLanes, size - lane);
        int first = from->first, last = from->last();
        for (auto one = from; one != to; ++one) first = std::min(first, one->first), last = std::max(last, one->last());
        Lanes lanes{first, std::vector<float>(std::size_t(last - first) * kLanes)};
        for (auto one = from; one != to; ++one)
            for (std::size_t tap = 0; tap < one->weights.size(); ++tap)
                lanes.weights[(tap + std::size_t(one->first - first)) * kLanes + std::size_t(one - from)] = one->weights[tap];
        result.first = std::min(result.first, first), result.last = std::max(result.last, last);
        result.lanes.push_back(std::move(lanes));
    }
    return result;
}

struct PlaneFilters {
    int height, width;
    std::vector<Taps> down;
    std::vector<Column> across;
};

// Memory is copied to and from vectors: what holds it need not be aligned to them.
Float8 load(const float* at) {
    Float8 values;
    std::memcpy(&values, at, sizeof values);
    return values;
}

Float8 load(const std::uint8_t* at, int left) {
    Byte8 bytes{};
    if (left >= kLanes)
        std::memcpy(&bytes, at, kLanes);
    else
        std::memcpy(&bytes, at, std::size_t(left));
    // Step by step: GCC converts from bytes to words and on by single instructions, but to floats at once one by one.
    return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(bytes, Short8), Int8), Float8);
}

void store(float* to, Float8 values) { std::memcpy(to, &values, sizeof values); }

void store(std::uint8_t* to, Float8 values, std::size_t count) {
    const auto bytes = __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(values, Int8), Short8), Byte8);
    if (count >= std::size_t(kLanes))
        std::memcpy(to, &bytes, kLanes);
    else
        for (std::size_t i = 0; i < count; ++i) to[i] = bytes[i];
}

struct Room {  // as much as any patch needs: nothing is allocated, or thrown, in code that is compiled once for each processor
    std::vector<float> window, rows, channels;
};

// One patch of one plane: `size` rows of whole lanes.
void resample(const PlaneFilters& filters, const std::uint8_t* plane, std::ptrdiff_t stride, int row, int col, int size, Room& room,
              float* out) {
    const Column& column = filters.across[std::size_t(col)];
    const auto down = filters.down.begin() + row * size;
    const int first = down->first, rows = down[size - 1].last() - first;
    const int left = filters.width - column.first, wide = (column.last - column.first + kLanes - 1) / kLanes * kLanes;
    float* to = room.window.data();
    for (int y = first; y < first + rows; ++y)
        for (int x = 0; x < wide; x += kLanes, to += kLanes) store(to, load(plane + y * stride + column.first + x, left - x));
    to = room.rows.data();
    for (int y = 0; y < size; ++y) {
        const float* top = room.window.data() + (down[y].first - first) * wide;
        for (int x = 0; x < wide; x += kLanes, to += kLanes) {
            const float* at = top + x;
            Float8 sum{};
            for (const float weight : down[y].weights) {
                sum += weight * load(at);
                at += wide;
            }
            store(to, sum);
        }
    }
    const int across = int(column.lanes.size()) * kLanes;
    for (const Lanes& lanes : column.lanes) {
        const float* in = room.rows.data() + (lanes.first - column.first);
        const float* const end = lanes.weights.data() + lanes.weights.size();
        for (int y = 0; y < size; y += kRows) {
            // Several rows at a time, so that sums need not wait for each other; the last ones may come up twice.
            const int top = std::max(0, std::min(y, size - kRows)), given = std::min(kRows, size);
            Float8 sums[kRows] = {};
            const float* at = in + top * wide;
            for (const float* weights = lanes.weights.data(); weights != end; weights += kLanes, ++at) {
                const Float8 weight = load(weights);
                for (int i = 0; i < kRows; ++i) sums[i] += at[i * wide] * weight;
            }
            for (int i = 0; i < given; ++i) store(out + (top + i) * across, sums[i]);
        }
        out += kLanes;
    }
}

#if defined(__x86_64__) && defined(__linux__)
// Compiled twice, with everything it calls; the loader takes the version that the processor can run.
#define FOR_EACH_PROCESSOR __attribute__((flatten, target_clones("avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

struct Source {
    const std::uint8_t* pixels;
    std::ptrdiff_t stride;
    const PlaneFilters* filters;
};

FOR_EACH_PROCESSOR
void cut_patch(const std::vector<Source>& planes, const std::array<float, 12>& matrix, int row, int col, int size, Room& room,
               std::uint8_t* out) {
    const std::size_t wide = std::size_t((size + kLanes - 1) / kLanes * kLanes), area = wide * std::size_t(size);
    for (std::size_t plane = 0; plane < planes.size(); ++plane) {
        const Source& source = planes[plane];
        resample(*source.filters, source.pixels, source.stride, row, col, size, room, room.channels.data() + plane * area);
    }
    if (planes.size() == 1) std::fill(room.channels.begin() + std::ptrdiff_t(area), room.channels.end(), 128.0F);
    for (int channel = 0; channel < 3; ++channel) {
        const float* weights = matrix.data() + 4 * channel;
        for (int y = 0; y < size; ++y)
            for (std::size_t x = 0; x < wide; x += kLanes) {
                const float* at = room.channels.data() + std::size_t(y) * wide + x;
                Float8 value = weights[0] * load(at) + weights[1] * load(at + area);
                value += weights[2] * load(at + 2 * area) + (weights[3] + 0.5F);
                value = value < 0 ? Float8{} : value;
                value = value > 255 ? Float8{} + 255 : value;
                const std::size_t left = std::min(std::size_t(kLanes), std::size_t(size) - x);
                store(out, value, left);
                out += left;
            }
    }
}

class Cutter {
   public:
    // `sizes`: (height, width) of each plane, luma first; `box`: left, top, right, bottom as shares of the picture.
    Cutter(const std::vector<std::array<int, 2>>& sizes, const std::vector<std::array<double, 4>>& boxes, int rows, int cols, int size,
           const std::array<float, 12>& matrix)
        : rows_(rows), cols_(cols), size_(size), matrix_(matrix) {
        if (sizes.size() != boxes.size() || (sizes.size() != 1 && sizes.size() != 3)) throw std::invalid_argument("one or three planes");
        if (rows < 1 || cols < 1 || size < 1) throw std::invalid_argument("a grid and a patch have at least one row and column");
        for (std::size_t plane = 0; plane < sizes.size(); ++plane) {
            const auto [height, width] = sizes[plane];
            const auto [left, top, right, bottom] = boxes[plane];
            if (height < 1 || width < 1) throw std::invalid_argument("an empty plane");
            for (const double edge : {left, top, right, bottom})
                if (!(std::abs(edge) <= kFarthest)) throw std::invalid_argument("a box far outside of the picture");
            if (!(top < bottom) || left == right) throw std::invalid_argument("an empty box, or one that is upside down");
            PlaneFilters filters{height, width, filter(height, top, bottom, rows * size), {}};
            const auto taps = filter(width, left, right, cols * size);
            for (int col = 0; col < cols; ++col) filters.across.push_back(column(taps, col * size, size));
            filters_.push_back(std::move(filters));
        }
        const std::size_t side = std::size_t(size), padded = (side + kLanes - 1) / kLanes * kLanes;
        channels_ = 3 * side * padded;
        for (const PlaneFilters& filters : filters_) {
            int wide = 0, high = 0;
            for (const Column& column : filters.across) wide = std::max(wide, column.last - column.first + kLanes - 1);
            for (int row = 0; row < rows; ++row)
                high = std::max(high, filters.down[std::size_t((row + 1) * size - 1)].last() - filters.down[std::size_t(row * size)].first);
            window_ = std::max(window_, std::size_t(high) * std::size_t(wide));
            lines_ = std::max(lines_, std::max(side, std::size_t(kRows)) * std::size_t(wide));
        }
    }

    // `strides`: bytes from row to row of each plane.
    void cut(const std::vector<Plane>& planes, const std::vector<std::ptrdiff_t>& strides, const Places& rows, const Places& cols,
             Patches out) const {
        if (planes.size() != filters_.size() || strides.size() != filters_.size())
            throw std::invalid_argument("another number of planes than the cutter was made for");
        std::vector<Source> sources;
        for (std::size_t i = 0; i < planes.size(); ++i) {
            const auto& [height, width, down, across] = filters_[i];
            if (strides[i] < width || std::ptrdiff_t(planes[i].shape(0)) < strides[i] * (height - 1) + width)
                throw std::invalid_argument("a plane is smaller than those that the cutter was made for");
            sources.push_back({planes[i].data(), strides[i], &filters_[i]});
        }
        const std::size_t count = rows.shape(0), side = std::size_t(size_);
        if (cols.shape(0) != count || out.shape(0) != count || out.shape(1) != 3 || out.shape(2) != side || out.shape(3) != side)
            throw std::invalid_argument("rows [n], cols [n] and patches [n, 3, size, size] must belong together");
        for (std::size_t i = 0; i < count; ++i)
            if (rows.data()[i] < 0 || rows.data()[i] >= rows_ || cols.data()[i] < 0 || cols.data()[i] >= cols_)
                throw std::invalid_argument("a patch outside of the grid");
        nb::gil_scoped_release release;
        Room room{std::vector<float>(window_), std::vector<float>(lines_), std::vector<float>(channels_)};
        for (std::size_t i = 0; i < count; ++i)
            cut_patch(sources, matrix_, rows.data()[i], cols.data()[i], size_, room, out.data() + i * 3 * side * side);
    }

   private:
    int rows_, cols_, size_;
    std::array<float, 12> matrix_;
    std::vector<PlaneFilters> filters_;
    std::size_t window_ = 0, lines_ = 0, channels_ = 0;  // floats of each part of the room
};

}  // namespace

NB_MODULE(_cut, module) {
    nb::class_<Cutter>(module, "Cutter")
        .def(nb::init<const std::vector<std::array<int, 2>>&, const std::vector<std::array<double, 4>>&, int, int, int,
                      const std::array<float, 12>&>())
        .def("cut", &Cutter::cut);
}
