// st_ref_pic_set() (H.265, 7.3.7, 7.4.8).

#include <algorithm>

#include "parameter_sets.h"

namespace hevc {

namespace {

void append(ReferenceSet& set, std::int32_t delta, bool used) {
    require(set.count < kMaxReferences, "a reference picture set holds more than 16 pictures");
    set.delta[std::size_t(set.count)] = delta;
    set.used[std::size_t(set.count)] = used;
    ++set.count;
}

ReferenceSet read_explicit(BitReader& bits) {
    ReferenceSet set;
    const std::uint32_t negative = bits.ue(kMaxReferences);
    const std::uint32_t positive = bits.ue(kMaxReferences - negative);
    for (int sign : {-1, 1}) {
        std::int32_t delta = 0;
        for (std::uint32_t n = 0; n < (sign < 0 ? negative : positive); ++n) {
            delta += sign * (std::int32_t(bits.ue(0x7FFF)) + 1);
            append(set, delta, bits.flag());
        }
    }
    set.negative_count = int(negative);
    return set;
}

// Equations 7-61 and 7-62: the earlier set, moved by `shift`, its own picture (distance 0) included.
ReferenceSet read_predicted(BitReader& bits, const ReferenceSet& from, std::int32_t shift) {
    std::array<bool, kMaxReferences + 1> used{};
    std::array<bool, kMaxReferences + 1> kept{};
    for (int n = 0; n <= from.count; ++n) {
        used[std::size_t(n)] = bits.flag();
        kept[std::size_t(n)] = used[std::size_t(n)] || bits.flag();
    }
    ReferenceSet set;
    const auto take = [&](int n, int sign) {
        const std::int32_t delta = shift + (n < from.count ? from.delta[std::size_t(n)] : 0);
        if (delta * sign > 0 && kept[std::size_t(n)]) append(set, delta, used[std::size_t(n)]);
    };
    for (int n = from.count - 1; n >= from.negative_count; --n) take(n, -1);
    take(from.count, -1);
    for (int n = 0; n < from.negative_count; ++n) take(n, -1);
    set.negative_count = set.count;
    for (int n = from.negative_count - 1; n >= 0; --n) take(n, 1);
    take(from.count, 1);
    for (int n = from.negative_count; n < from.count; ++n) take(n, 1);
    return set;
}

}  // namespace

ReferenceSet read_reference_set(BitReader& bits, const std::vector<ReferenceSet>& before, std::size_t index, bool in_slice) {
    if (index == 0 || !bits.flag()) return read_explicit(bits);
    const std::size_t distance = in_slice ? bits.ue(std::uint32_t(index - 1)) + 1 : 1;
    const bool negative = bits.flag();
    const std::int32_t magnitude = std::int32_t(bits.ue(0x7FFF)) + 1;
    return read_predicted(bits, before.at(index - distance), negative ? -magnitude : magnitude);
}

}  // namespace hevc
