// The arithmetic decoder (H.265, 9.3.4.3) and its 134 contexts.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "error.h"

namespace hevc {

// First context of each syntax element; the tables of initial values have the same order.
enum Context : int {
    kSaoMerge = 0,
    kSaoType = 1,
    kSplitCu = 2,
    kTransquantBypass = 5,
    kSkip = 6,
    kPredMode = 9,
    kPartMode = 10,
    kPrevIntraLuma = 14,
    kIntraChroma = 15,
    kRootCbf = 16,
    kMerge = 17,
    kMergeIndex = 18,
    kInterPred = 19,
    kRefIndex = 24,
    kMvp = 26,
    kMvdGreater0 = 27,
    kMvdGreater1 = 28,
    kSplitTransform = 29,
    kCbfLuma = 32,
    kCbfChroma = 34,
    kTransformSkip = 38,  // luma, chroma
    kQpDelta = 40,
    kLastX = 42,
    kLastY = 60,
    kCodedSubBlock = 78,
    kSignificant = 82,
    kGreater1 = 124,
    kGreater2 = 148,
    kContexts = 154,
};

using Contexts = std::array<std::uint16_t, kContexts>;  // pStateIdx << 1 | valMps

// 9.3.2.2; init_type 0 for I slices, 1 and 2 for P and B slices (swapped by cabac_init_flag).
void init_contexts(Contexts& contexts, int init_type, int slice_qp);

struct LpsRange {
    std::uint8_t of[128][4];  // by state and two bits of the range
};

struct NextState {
    std::uint8_t mps[128];
    std::uint8_t lps[128];
};

extern const LpsRange kLpsRange;
extern const NextState kNextState;
extern const std::array<float, 512> kLog2;  // of 256..511

#define HEVC_INLINE inline __attribute__((always_inline))

// Reads bins of one substream. `value_` holds the 9 bits of ivlOffset above `ahead_` bits read in advance. Past the end it reads
// zeros; `overrun` tells.
class Cabac {
public:
    Cabac() = default;
    Cabac(const std::uint8_t* data, std::size_t size) : next_(data), begin_(data), end_(data + size) {
        refill();
        ahead_ -= 9;
    }

    HEVC_INLINE int bin(std::uint16_t& context) {
        const unsigned state = context;
        const std::uint32_t lps = kLpsRange.of[state][range_ >> 6 & 3];
        const std::uint32_t mps = range_ - lps;
        const std::uint64_t scaled = std::uint64_t{mps} << ahead_;
        int result = int(state & 1);
        if (value_ < scaled) {
            context = kNextState.mps[state];
            const int shift = mps < 256;
            range_ = mps << shift;
            ahead_ -= shift;
        } else {
            value_ -= scaled;
            context = kNextState.lps[state];
            const int shift = __builtin_clz(lps) - 23;
            range_ = lps << shift;
            ahead_ -= shift;
            result ^= 1;
        }
        if (ahead_ < kLow) refill();
        return result;
    }

    HEVC_INLINE int bypass() {
        --ahead_;
        const std::uint64_t scaled = std::uint64_t{range_} << ahead_;
        const bool one = value_ >= scaled;
        value_ -= one ? scaled : 0;
        if (ahead_ < kLow) refill();
        return one;
    }

    // `count` bypass bins, most significant first; count <= 32.
    HEVC_INLINE std::uint32_t bypass_bits(int count) {
        std::uint32_t bits = 0;
        for (int n = 0; n < count; ++n) bits = bits << 1 | std::uint32_t(bypass());
        return bits;
    }

    // A bin that, being 1, ends the substream or starts PCM samples.
    bool terminate() {
        range_ -= 2;
        const std::uint64_t scaled = std::uint64_t{range_} << ahead_;
        if (value_ >= scaled) return true;
        const int shift = range_ < 256;
        range_ <<= shift;
        ahead_ -= shift;
        if (ahead_ < kLow) refill();
        return false;
    }

    // Bits read, those of ivlOffset included.
    std::int64_t position() const { return 8 * std::int64_t(next_ - begin_) + 8 * padding_ - ahead_; }

    // Information read so far, in bits: differences of it telescope the cost -log2(range after / range before) of every bin.
    double spent() const { return double(position()) - double(kLog2[range_]); }

    // The same at the end of a substream, whose next byte is given.
    double spent_at(const std::uint8_t* rest) const { return double(8 * (rest - begin_)); }

    bool overrun() const { return position() > 8 * std::int64_t(end_ - begin_); }

    // After terminate(): the byte that follows. The last bit read must be the 1 that closes the substream, and zeros fill its byte.
    const std::uint8_t* finish() const {
        require(!overrun(), "slice data end too early");
        const auto last = std::size_t(position() - 1);
        const unsigned tail = (begin_[last >> 3] << (last & 7)) & 0xFF;
        require(tail == 0x80, "slice data are not closed where their last block ends");
        return begin_ + (last >> 3) + 1;
    }

    const std::uint8_t* end() const { return end_; }

    // Starts again at a byte of the same substream (9.3.2.5), behind PCM samples.
    void restart(const std::uint8_t* data) {
        next_ = data;
        value_ = 0;
        range_ = 510;
        ahead_ = -9;
        refill();
    }

private:
    static constexpr int kLow = 8;  // no bin consumes more

    void refill() {
        if (end_ - next_ >= 4) {
            value_ = value_ << 32 | std::uint32_t(next_[0]) << 24 | std::uint32_t(next_[1]) << 16 | std::uint32_t(next_[2]) << 8 | next_[3];
            next_ += 4;
        } else {
            for (int n = 0; n < 4; ++n) {
                const bool inside = next_ < end_;
                value_ = value_ << 8 | (inside ? *next_ : 0U);
                if (inside) {
                    ++next_;
                } else {
                    ++padding_;
                }
            }
        }
        ahead_ += 32;
    }

    std::uint64_t value_ = 0;
    std::uint32_t range_ = 510;
    int ahead_ = 0;
    const std::uint8_t* next_ = nullptr;
    const std::uint8_t* begin_ = nullptr;
    const std::uint8_t* end_ = nullptr;
    std::int64_t padding_ = 0;  // zero bytes read past the end
};

}  // namespace hevc
