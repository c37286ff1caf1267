// From packets to pictures: NAL units, parameter sets, picture order counts (H.265, 7.4.2, 8.1, 8.3.1).

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "decoded_pictures.h"
#include "slice_decoder.h"

namespace hevc {

class Decoder {
public:
    // Reads the parameter sets of a container's codec private data: an hvcC record, or Annex B. A record also tells how long the
    // size before each NAL unit of a packet is; otherwise units follow start codes.
    void configure(const std::uint8_t* data, std::size_t size);

    // Reads a packet, that is, an access unit. `order` will be its pictures' number. Throws Damage and Unsupported, after which only
    // abandon() makes sense.
    void read(const std::uint8_t* data, std::size_t size, std::int64_t order);

    // The end of the stream: what is left is output. Throws Damage if the last picture is incomplete.
    void flush();

    // After an error: outputs what precedes the damaged picture.
    void abandon();

    // Pictures that became ready, in output order.
    std::vector<std::shared_ptr<Picture>> take() { return pictures_.take(); }

private:
    void read_start_codes(const std::uint8_t* data, std::size_t size);
    void read_unit(const std::uint8_t* data, std::size_t size);
    void read_slice(int type, int temporal_id);
    void start_picture(const SliceHeader& header, int temporal_id);
    void finish_picture();
    std::int32_t order_count(const SliceHeader& header, bool starts_sequence) const;

    int length_bytes_ = 0;  // 0: start codes
    std::int64_t order_ = 0;
    ParameterSets sets_;
    DecodedPictures pictures_;
    Availability availability_;
    std::shared_ptr<const Layout> layout_;
    std::shared_ptr<const Sps> layout_sps_;
    std::shared_ptr<const Pps> layout_pps_;
    std::shared_ptr<Picture> current_;
    SliceHeader header_;           // of the last independent slice segment
    bool has_header_ = false;      // ... of the current picture
    bool skipping_ = false;        // the current picture cannot be decoded, for what it refers to precedes the start
    ReferenceLists lists_;
    SliceState state_;
    std::vector<std::uint8_t> intra_modes_;
    std::vector<std::uint8_t> payload_;
    bool sequence_starts_ = true;  // the next picture is the first, or follows an end of sequence
    bool skip_rasl_ = false;       // NoRaslOutputFlag of the last IRAP picture
    std::int32_t previous_poc_ = 0;  // of prevTid0Pic
};

}  // namespace hevc
