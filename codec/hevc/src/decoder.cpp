#include "decoder.h"

#include <limits>

namespace hevc {

void Decoder::configure(const std::uint8_t* data, std::size_t size) {
    constexpr std::size_t kHeader = 23;
    if (size < kHeader || data[0] != 1) {
        read_start_codes(data, size);
        return;
    }
    // HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, 8.3.3.1).
    length_bytes_ = (data[21] & 3) + 1;
    std::size_t at = kHeader;
    for (int arrays = data[22]; arrays > 0; --arrays) {
        require(size - at >= 3, "the codec configuration ends too early");
        int units = data[at + 1] << 8 | data[at + 2];
        at += 3;
        for (; units > 0; --units) {
            require(size - at >= 2, "the codec configuration ends too early");
            const auto length = std::size_t(data[at] << 8 | data[at + 1]);
            at += 2;
            require(size - at >= length, "the codec configuration ends too early");
            read_unit(data + at, length);
            at += length;
        }
    }
}

void Decoder::read(const std::uint8_t* data, std::size_t size, std::int64_t order) {
    order_ = order;
    if (length_bytes_ == 0) {
        read_start_codes(data, size);
        return;
    }
    for (std::size_t at = 0; at < size;) {
        require(size - at >= std::size_t(length_bytes_), "a packet ends too early");
        std::size_t length = 0;
        for (int n = 0; n < length_bytes_; ++n) length = length << 8 | data[at++];
        require(length <= size - at, "a packet ends too early");
        read_unit(data + at, length);
        at += length;
    }
}

// Annex B: units between 00 00 01.
void Decoder::read_start_codes(const std::uint8_t* data, std::size_t size) {
    std::size_t unit = size;  // start of the current one
    for (std::size_t at = 0; at + 2 < size; ++at) {
        if (data[at + 2] > 1) {
            at += 2;
            continue;
        }
        if (data[at] != 0 || data[at + 1] != 0 || data[at + 2] != 1) continue;
        if (unit < at) read_unit(data + unit, at - unit);
        unit = at + 3;
        at += 2;
    }
    if (unit < size) read_unit(data + unit, size - unit);
}

void Decoder::read_unit(const std::uint8_t* data, std::size_t size) {
    while (size > 0 && data[size - 1] == 0) --size;  // trailing_zero_8bits
    if (size < 3) {
        if (size == 2 && (data[0] >> 1 & 63) >= kEndOfSequence && (data[0] >> 1 & 63) <= kEndOfBitstream) {
            finish_picture();
            sequence_starts_ = true;
        }
        return;
    }
    require(!(data[0] & 0x80), "a NAL unit's forbidden bit is set");
    const int type = data[0] >> 1 & 63;
    const int layer = (data[0] & 1) << 5 | data[1] >> 3;
    const int temporal_id = (data[1] & 7) - 1;
    require(temporal_id >= 0, "a NAL unit has no temporal identifier");
    const bool is_slice = type <= kRaslR || (type >= kBlaWLp && type <= kCra);
    if (layer > 0 || !(is_slice || type == kSps || type == kPps)) return;
    unescape(data + 2, size - 2, payload_);
    BitReader bits(payload_.data(), payload_.size());
    int id = 0;
    if (type == kSps) {
        auto sps = read_sps(bits, id);
        sets_.sps[std::size_t(id)] = std::move(sps);
    } else if (type == kPps) {
        auto pps = read_pps(bits, id);
        sets_.pps[std::size_t(id)] = std::move(pps);
    } else {
        read_slice(type, temporal_id);
    }
}

void Decoder::read_slice(int type, int temporal_id) {
    BitReader bits(payload_.data(), payload_.size());
    const bool first = !payload_.empty() && payload_[0] >> 7;
    if (first) {
        finish_picture();
        // Decoding starts at an IRAP picture; its RASL pictures refer to pictures before it.
        skipping_ = sequence_starts_ ? !is_irap(type) : is_rasl(type) && skip_rasl_;
    }
    if (skipping_) return;
    SliceHeader header = read_slice_header(bits, type, sets_, first || !has_header_ ? nullptr : &header_);
    if (first) {
        start_picture(header, temporal_id);
    } else {
        require(current_ != nullptr, "a picture's first slice is missing");
        require(header.pps == layout_pps_ && header.sps == layout_sps_, "a picture changes its parameter sets between slices");
    }
    if (!header.dependent) {
        lists_ = pictures_.lists(header, *current_);
        if (header.type < current_->type) current_->type = header.type;
        header_ = header;
        has_header_ = true;
    }
    const std::size_t offset = header.data_offset;
    require(offset < payload_.size(), "a slice has no data");
    SliceDecoder slice(header, *layout_, *current_, lists_, availability_, intra_modes_, state_);
    slice.decode(payload_.data() + offset, payload_.size() - offset);
    if (current_->decoded_ctbs == int(layout_->tile_id.size())) finish_picture();
}

void Decoder::start_picture(const SliceHeader& header, int temporal_id) {
    const int type = header.nal_type;
    const bool starts_sequence = is_irap(type) && (is_idr(type) || is_bla(type) || sequence_starts_);
    if (is_irap(type)) skip_rasl_ = starts_sequence;
    auto picture = std::make_shared<Picture>();
    picture->sps = header.sps;
    picture->poc = order_count(header, starts_sequence);
    picture->nal_type = type;
    picture->order = order_;
    picture->key_frame = is_irap(type);
    picture->wanted = header.pic_output;
    if (starts_sequence) pictures_.start_sequence(header.no_output_of_prior_pics || (type == kCra && sequence_starts_));
    sequence_starts_ = false;
    if (temporal_id == 0 && !is_leading(type) && !is_sub_layer_non_reference(type)) previous_poc_ = picture->poc;
    if (header.sps != layout_sps_ || header.pps != layout_pps_) {
        layout_ = std::make_shared<Layout>(*header.sps, *header.pps);
        layout_sps_ = header.sps;
        layout_pps_ = header.pps;
    }
    current_ = picture;
    pictures_.update_references(header, *picture);
    pictures_.bump(*header.sps, true);
    picture->allocate();
    availability_.start_picture(*header.sps, layout_);
    intra_modes_.resize(picture->energy.size());
}

std::int32_t Decoder::order_count(const SliceHeader& header, bool starts_sequence) const {
    if (is_idr(header.nal_type)) return 0;
    const auto lsb = std::int64_t{header.poc_lsb};
    if (starts_sequence) return std::int32_t(lsb);
    const std::int64_t modulus = std::int64_t{1} << header.sps->log2_max_poc_lsb;
    const std::int64_t previous_lsb = previous_poc_ & (modulus - 1);
    std::int64_t msb = previous_poc_ - previous_lsb;
    if (lsb < previous_lsb && previous_lsb - lsb >= modulus / 2) {
        msb += modulus;
    } else if (lsb > previous_lsb && lsb - previous_lsb > modulus / 2) {
        msb -= modulus;
    }
    const std::int64_t poc = msb + lsb;
    // Half of the range, so that differences of two counts fit 32 bits too.
    require(poc >= -(std::int64_t{1} << 30) && poc < std::int64_t{1} << 30, "a picture order count is out of range");
    return std::int32_t(poc);
}

void Decoder::finish_picture() {
    has_header_ = false;
    if (!current_) return;
    require(current_->decoded_ctbs == int(layout_->tile_id.size()), "a picture lacks some of its slices");
    auto picture = std::move(current_);
    current_ = nullptr;
    pictures_.add(picture);
    pictures_.bump(*picture->sps, false);
}

void Decoder::flush() {
    finish_picture();
    pictures_.drain(std::numeric_limits<std::int64_t>::max());
}

void Decoder::abandon() {
    pictures_.drain(current_ ? std::int64_t{current_->poc} : std::numeric_limits<std::int64_t>::max());
    current_ = nullptr;
}

}  // namespace hevc
