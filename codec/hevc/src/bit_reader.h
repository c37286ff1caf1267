// Bits of a raw byte sequence payload (RBSP): what headers and parameter sets are written in (H.265, 7.2 and 9.2).

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "error.h"

namespace hevc {

class BitReader {
public:
    BitReader(const std::uint8_t* data, std::size_t size) : data_(data), bits_(size * 8) {}

    // u(n), n <= 32. Throws Damage past the end.
    std::uint32_t u(int count) {
        require(std::size_t(count) <= bits_ - position_, "a header ends too early");
        std::uint64_t value = 0;
        for (int left = count; left > 0;) {
            const int in_byte = 8 - int(position_ & 7);
            const int take = left < in_byte ? left : in_byte;
            const std::uint32_t byte = data_[position_ >> 3];
            value = value << take | (byte >> (in_byte - take) & ((1U << take) - 1));
            position_ += std::size_t(take);
            left -= take;
        }
        return std::uint32_t(value);
    }

    bool flag() { return u(1) != 0; }

    void skip(std::size_t count) {
        require(count <= bits_ - position_, "a header ends too early");
        position_ += count;
    }

    // ue(v), which must be at most `limit`.
    std::uint32_t ue(std::uint32_t limit) {
        int zeros = 0;
        while (!flag()) require(++zeros < 32, "a header holds an Exp-Golomb code of more than 32 bits");
        const std::uint64_t value = (std::uint64_t{1} << zeros) - 1 + (zeros ? u(zeros) : 0);
        require(value <= limit, "a header value is out of range");
        return std::uint32_t(value);
    }

    // se(v), which must lie in [low, high].
    std::int32_t se(std::int32_t low, std::int32_t high) {
        const std::int64_t code = ue(0xFFFFFFFEU);
        const std::int64_t value = code & 1 ? (code + 1) / 2 : -(code / 2);
        require(low <= value && value <= high, "a header value is out of range");
        return std::int32_t(value);
    }

    std::size_t position() const { return position_; }

    // Byte offset behind byte_alignment(): a one, then zeros to the end of the byte.
    std::size_t aligned() {
        require(flag(), "a slice header is not followed by its alignment bit");
        while (position_ & 7) require(!flag(), "a slice header is not followed by alignment zeros");
        return position_ >> 3;
    }

private:
    const std::uint8_t* data_;
    std::size_t bits_;
    std::size_t position_ = 0;
};

// Ceil(Log2(count)): the length of u(v) codes that number `count` things.
inline int ceil_log2(std::uint32_t count) {
    int bits = 0;
    while ((std::uint64_t{1} << bits) < count) ++bits;
    return bits;
}

// A NAL unit's payload without its emulation prevention bytes (7.3.1.1). Reuses `rbsp`.
inline void unescape(const std::uint8_t* data, std::size_t size, std::vector<std::uint8_t>& rbsp) {
    rbsp.clear();
    rbsp.reserve(size);
    std::size_t copied = 0;
    for (std::size_t at = 2; at < size; ++at) {
        // Most bytes are larger than 3: look at every byte only where a prevention byte may be.
        if (data[at] != 3 || data[at - 1] != 0 || data[at - 2] != 0 || at - 2 < copied) continue;
        rbsp.insert(rbsp.end(), data + copied, data + at);
        copied = at + 1;
    }
    rbsp.insert(rbsp.end(), data + copied, data + size);
}

}  // namespace hevc
