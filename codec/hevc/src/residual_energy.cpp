#include <algorithm>

#include "residual.h"

namespace hevc {

namespace {

// transMatrix of 8.6.4.2 by angle: the column of 64 * sqrt(2) * cos(pi * angle / 64) that the standard rounds by hand.
constexpr int kCosine[33] = {90, 90, 90, 90, 89, 88, 87, 85, 83, 82, 80, 78, 75, 73, 70, 67, 64,
                             61, 57, 54, 50, 46, 43, 38, 36, 31, 25, 22, 18, 13, 9,  4,  0};
constexpr int kSine[4][4] = {{29, 55, 74, 84}, {74, 74, 0, -74}, {84, -29, -74, 55}, {55, -84, 74, -29}};

// Two passes divide by 2^(27 - bitDepth) in all (8.6.4.2); in grey levels of 8 bits that is 2^19, or 2^9.5 a pass.
constexpr float kPass = 1.0F / 724.0773439350247F;

int cosine(int angle) {
    angle &= 127;
    if (angle > 64) angle = 128 - angle;
    return angle > 32 ? -kCosine[64 - angle] : kCosine[angle];
}

template <int Side>
struct Basis {
    alignas(16) float of[Side][Side];  // [frequency][sample]

    explicit Basis(bool sine) {
        for (int frequency = 0; frequency < Side; ++frequency) {
            for (int n = 0; n < Side; ++n) {
                const int value = sine ? kSine[frequency & 3][n & 3] : frequency == 0 ? 64 : cosine((2 * n + 1) * frequency * (32 / Side));
                of[frequency][n] = float(value) * kPass;
            }
        }
    }
};

const Basis<4> kSine4(true);
const Basis<4> kCosine4(false);
const Basis<8> kCosine8(false);
const Basis<16> kCosine16(false);
const Basis<32> kCosine32(false);

// Scaled coefficients (8.6.3), in the units that two passes of the basis turn into grey levels.
class Dequantiser {
public:
    explicit Dequantiser(const TransformBlock& block)
        : scale_(std::int64_t{kLevelScale[std::size_t(block.qp % 6)]} << (block.qp / 6)), shift_(block.bit_depth + block.log2_size - 5),
          round_(std::int64_t{1} << (shift_ - 1)), scaling_(block.scaling), log2_size_(block.log2_size) {}

    float operator()(const Coefficient& c) const {
        const int factor = scaling_ ? scaling_[(c.y << log2_size_) + c.x] : 16;
        return float(std::clamp<std::int64_t>((c.level * factor * scale_ + round_) >> shift_, -32768, 32767));
    }

private:
    std::int64_t scale_;
    int shift_;
    std::int64_t round_;
    const std::uint8_t* scaling_;
    int log2_size_;
};

// Sums squares over the cells of one row of four lines.
template <int Side>
void add_cells(const float (&squares)[Side], float* cells) {
    for (int cell = 0; cell < Side / 4; ++cell) {
        const float* s = squares + 4 * cell;
        cells[cell] += (s[0] + s[1] + s[2] + s[3]) * (1.0F / 16);
    }
}

template <int Side>
void add_transformed(const Basis<Side>& basis, const Dequantiser& dequantise, const Levels& levels, float* cells, int stride) {
    alignas(16) float columns[Side][Side];  // by horizontal frequency: the vertical pass
    std::uint8_t used[Side];
    bool seen[Side] = {};
    int used_count = 0;
    for (int n = 0; n < levels.count; ++n) {
        const Coefficient c = levels.of[std::size_t(n)];
        const float value = dequantise(c);
        float* const column = columns[c.x];
        const float* const wave = basis.of[c.y];
        if (!seen[c.x]) {
            seen[c.x] = true;
            used[used_count++] = c.x;
            for (int y = 0; y < Side; ++y) column[y] = value * wave[y];
        } else {
            for (int y = 0; y < Side; ++y) column[y] += value * wave[y];
        }
    }
    for (int top = 0; top < Side; top += 4) {
        alignas(16) float squares[Side] = {};
        for (int y = top; y < top + 4; ++y) {
            alignas(16) float line[Side] = {};
            for (int n = 0; n < used_count; ++n) {
                const float weight = columns[used[n]][y];
                const float* const wave = basis.of[used[n]];
                for (int x = 0; x < Side; ++x) line[x] += weight * wave[x];
            }
            for (int x = 0; x < Side; ++x) squares[x] += line[x] * line[x];
        }
        add_cells<Side>(squares, cells + (top / 4) * stride);
    }
}

// A block whose only level is its DC: the same everywhere.
void add_flat(const TransformBlock& block, float dc, float* cells, int stride) {
    const float sample = dc * (64 * kPass) * (64 * kPass);
    const int side = 1 << (block.log2_size - 2);
    for (int y = 0; y < side; ++y) {
        for (int x = 0; x < side; ++x) cells[y * stride + x] += sample * sample;
    }
}

}  // namespace

void add_energy(const TransformBlock& block, const Levels& levels, float* cells, int stride) {
    if (block.bypass) {  // the levels are the residual itself
        const float unit = 1.0F / float(1 << (block.bit_depth - 8));
        for (int n = 0; n < levels.count; ++n) {
            const Coefficient c = levels.of[std::size_t(n)];
            const float sample = float(c.level) * unit;
            cells[(c.y >> 2) * stride + (c.x >> 2)] += sample * sample * (1.0F / 16);
        }
        return;
    }
    const Dequantiser dequantise(block);
    if (levels.transform_skip) {  // 8.6.4.2: samples are coefficients << 7, divided like the rest
        for (int n = 0; n < levels.count; ++n) {
            const float sample = dequantise(levels.of[std::size_t(n)]) * (1.0F / 32);
            cells[0] += sample * sample * (1.0F / 16);
        }
        return;
    }
    if (levels.count == 1 && levels.of[0].x == 0 && levels.of[0].y == 0 && !block.sine) {
        add_flat(block, dequantise(levels.of[0]), cells, stride);
        return;
    }
    switch (block.log2_size) {
        case 2: add_transformed(block.sine ? kSine4 : kCosine4, dequantise, levels, cells, stride); break;
        case 3: add_transformed(kCosine8, dequantise, levels, cells, stride); break;
        case 4: add_transformed(kCosine16, dequantise, levels, cells, stride); break;
        default: add_transformed(kCosine32, dequantise, levels, cells, stride); break;
    }
}

}  // namespace hevc
