// Slice segment headers (H.265, 7.3.6).

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "parameter_sets.h"

namespace hevc {

enum NalType : int {
    kRadlN = 6,
    kRadlR = 7,
    kRaslN = 8,
    kRaslR = 9,
    kLastReservedNonIrap = 15,
    kBlaWLp = 16,
    kBlaNLp = 18,
    kIdrWRadl = 19,
    kIdrNLp = 20,
    kCra = 21,
    kLastIrap = 23,
    kLastVcl = 31,
    kVps = 32,
    kSps = 33,
    kPps = 34,
    kEndOfSequence = 36,
    kEndOfBitstream = 37,
};

inline bool is_irap(int type) { return type >= kBlaWLp && type <= kLastIrap; }
inline bool is_idr(int type) { return type == kIdrWRadl || type == kIdrNLp; }
inline bool is_bla(int type) { return type >= kBlaWLp && type <= kBlaNLp; }
inline bool is_rasl(int type) { return type == kRaslN || type == kRaslR; }
inline bool is_leading(int type) { return type >= kRadlN && type <= kRaslR; }
// Pictures of these types are not referred to within their sub-layer (Table 7-1).
inline bool is_sub_layer_non_reference(int type) { return type < kLastReservedNonIrap && type % 2 == 0; }

enum SliceType : int { kB = 0, kP = 1, kI = 2 };

struct LongTermReference {
    std::int32_t poc;  // the whole POC if has_msb, else its low bits
    bool has_msb;
    bool used;
};

struct SliceHeader {
    std::shared_ptr<const Sps> sps;
    std::shared_ptr<const Pps> pps;
    int nal_type = 0;
    bool first_in_picture = false;
    bool no_output_of_prior_pics = false;
    int pps_id = 0;
    bool dependent = false;
    int segment_address = 0;  // CTB, raster scan

    // From here on a dependent slice segment repeats the independent one before it.
    int slice_address = 0;
    int type = kI;
    bool pic_output = true;
    std::uint32_t poc_lsb = 0;
    ReferenceSet reference_set;
    std::vector<LongTermReference> long_term;  // `poc` still lacks the current picture's POC, see resolve_long_term
    bool temporal_mvp = false;
    bool sao_luma = false;
    bool sao_chroma = false;
    std::array<int, 2> active{0, 0};
    std::array<bool, 2> modified{false, false};
    std::array<std::array<std::uint8_t, kMaxReferences>, 2> list_entry{};
    bool mvd_l1_zero = false;
    bool cabac_init = false;
    bool collocated_from_l0 = true;
    int collocated_index = 0;
    int max_merge_candidates = 0;
    int qp = 0;

    std::size_t data_offset = 0;  // of the slice segment data, in the payload

    // NumPicTotalCurr (7-55).
    int references_used() const;
};

struct ParameterSets {
    std::array<std::shared_ptr<const Sps>, 16> sps;
    std::array<std::shared_ptr<const Pps>, 64> pps;
};

// Reads a header; `previous` is that of the last independent slice segment of the same picture, or null.
SliceHeader read_slice_header(BitReader& bits, int nal_type, const ParameterSets& sets, const SliceHeader* previous);

}  // namespace hevc
