// libFuzzer's entry: any bytes as an Annex B stream, or as a hvcC record and packets of its units. See run.sh.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "decoder.h"
#include "fields.h"

namespace {

// Touches all that a user can see of a picture.
float use(const hevc::Picture& picture) {
    const hevc::Fields fields(picture);
    const auto cells = std::size_t(fields.rows()) * std::size_t(fields.columns());
    std::vector<float> values(2 * cells);
    fields.displacement(1, values.data());
    float sum = values[cells];
    fields.bits(values.data());
    sum += values[cells / 2];
    fields.residual(values.data());
    sum += values[cells / 2];
    fields.each([&](std::size_t, int x, int y) {
        const hevc::Motion& motion = picture.motion_at(x, y);
        sum += float(picture.unit_at(x, y).qp);
        for (std::size_t list = 0; list < 2; ++list) {
            if (motion.reference[list] >= 0) sum += float(picture.slices[motion.slice].poc[list][std::size_t(motion.reference[list])]);
        }
    });
    return sum;
}

volatile float sink;

void take(hevc::Decoder& decoder) {
    for (const auto& picture : decoder.take()) sink = use(*picture);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    hevc::Decoder decoder;
    try {
        if (size > 0 && data[0] == 1) {
            // As an MP4 file has it: the record's length, the record, then one packet.
            const std::size_t record = size > 1 ? data[1] : 0;
            if (size >= 2 + record) {
                decoder.configure(data + 2, record);
                decoder.read(data + 2 + record, size - 2 - record, 0);
            }
        } else {
            decoder.read(data, size, 0);
        }
        take(decoder);
        decoder.flush();
    } catch (const hevc::Damage&) {
        decoder.abandon();
    } catch (const hevc::Unsupported&) {
    }
    take(decoder);
    return 0;
}
