// The Python module codec.hevc._hevc.

#include <cstdint>
#include <memory>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include "decoder.h"
#include "fields.h"

namespace nb = nanobind;

namespace {

using hevc::Decoder;
using hevc::Fields;
using hevc::Picture;
using Pictures = std::vector<std::shared_ptr<Picture>>;

// A NumPy array [rows, columns, ...] of one or more values a cell, which fill(first value) sets.
template <typename T, typename Fill>
nb::ndarray<nb::numpy, T> array(const Fields& fields, std::initializer_list<std::size_t> inner, Fill fill) {
    std::vector<std::size_t> shape{std::size_t(fields.rows()), std::size_t(fields.columns())};
    shape.insert(shape.end(), inner);
    std::size_t count = 1;
    for (const std::size_t length : shape) count *= length;
    std::unique_ptr<T[]> data(new T[count]);
    T* const first = data.get();
    fill(first);
    nb::capsule owner(data.release(), [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T>(first, shape.size(), shape.data(), owner);
}

// The same, set cell by cell: visit(first value of the cell, x, y of a pixel in it).
template <typename T, typename Visit>
nb::ndarray<nb::numpy, T> grid(const Picture& picture, std::initializer_list<std::size_t> inner, Visit visit) {
    const Fields fields(picture);
    std::size_t values = 1;
    for (const std::size_t length : inner) values *= length;
    return array<T>(fields, inner, [&](T* first) {
        fields.each([&](std::size_t n, int x, int y) { visit(first + n * values, x, y); });
    });
}

auto qp(const Picture& picture) {
    return grid<std::int8_t>(picture, {}, [&](auto* out, int x, int y) { *out = picture.unit_at(x, y).qp; });
}

auto log2_size(const Picture& picture) {
    return grid<std::uint8_t>(picture, {}, [&](auto* out, int x, int y) { *out = picture.unit_at(x, y).log2_size; });
}

auto mode(const Picture& picture) {
    return grid<std::uint8_t>(picture, {}, [&](auto* out, int x, int y) { *out = picture.unit_at(x, y).mode; });
}

auto bits(const Picture& picture) {
    const Fields fields(picture);
    return array<float>(fields, {}, [&](float* out) { fields.bits(out); });
}

auto energy(const Picture& picture) {
    const Fields fields(picture);
    return array<float>(fields, {}, [&](float* out) { fields.energy(out); });
}

auto residual(const Picture& picture) {
    const Fields fields(picture);
    return array<float>(fields, {}, [&](float* out) { fields.residual(out); });
}

auto displacement(const Picture& picture, float frames) {
    const Fields fields(picture);
    return array<float>(fields, {2}, [&](float* out) { fields.displacement(frames, out); });
}

auto vectors(const Picture& picture) {
    return grid<std::int16_t>(picture, {2, 2}, [&](auto* out, int x, int y) {
        const hevc::Motion& motion = picture.motion_at(x, y);
        for (std::size_t list = 0; list < 2; ++list) {
            const bool used = motion.reference[list] >= 0;
            out[2 * list] = used ? motion.vector[list].x : std::int16_t{0};
            out[2 * list + 1] = used ? motion.vector[list].y : std::int16_t{0};
        }
    });
}

auto reference_pocs(const Picture& picture) {
    return grid<std::int32_t>(picture, {2}, [&](auto* out, int x, int y) {
        const hevc::Motion& motion = picture.motion_at(x, y);
        for (std::size_t list = 0; list < 2; ++list) {
            const bool used = motion.reference[list] >= 0;
            out[list] = used ? picture.slices[motion.slice].poc[list][std::size_t(motion.reference[list])] : 0;
        }
    });
}

auto predicted(const Picture& picture) {
    return grid<bool>(picture, {2}, [&](auto* out, int x, int y) {
        const hevc::Motion& motion = picture.motion_at(x, y);
        for (std::size_t list = 0; list < 2; ++list) out[list] = motion.reference[list] >= 0;
    });
}

const char* type(const Picture& picture) {
    constexpr const char* kNames[3] = {"B", "P", "I"};
    return kNames[picture.type];
}

const std::uint8_t* bytes_of(const nb::bytes& data) { return static_cast<const std::uint8_t*>(data.data()); }

void read_packet(Decoder& decoder, const nb::bytes& packet, std::int64_t order) {
    const std::uint8_t* const data = bytes_of(packet);
    const std::size_t size = packet.size();
    const nb::gil_scoped_release others_may_run;
    decoder.read(data, size, order);
}

}  // namespace

NB_MODULE(_hevc, m) {
    nb::exception<hevc::Damage>(m, "Damage", PyExc_ValueError);
    nb::exception<hevc::Unsupported>(m, "Unsupported", PyExc_ValueError);

    nb::class_<Picture>(m, "Picture")
        .def_ro("poc", &Picture::poc)
        .def_ro("order", &Picture::order)
        .def_ro("key_frame", &Picture::key_frame)
        .def_ro("slice_data_bits", &Picture::slice_data_bits)
        .def_ro("other_bits", &Picture::other_bits)
        .def_prop_ro("type", &type)
        .def_prop_ro("height", [](const Picture& picture) { return Fields(picture).height(); })
        .def_prop_ro("width", [](const Picture& picture) { return Fields(picture).width(); })
        .def("qp", &qp)
        .def("log2_size", &log2_size)
        .def("mode", &mode)
        .def("bits", &bits)
        .def("energy", &energy)
        .def("residual", &residual)
        .def("displacement", &displacement, nb::arg("frames"))
        .def("vectors", &vectors)
        .def("reference_pocs", &reference_pocs)
        .def("predicted", &predicted);

    nb::class_<Decoder>(m, "Decoder")
        .def(nb::init<>())
        .def("configure", [](Decoder& decoder, const nb::bytes& data) { decoder.configure(bytes_of(data), data.size()); })
        .def("read", &read_packet, nb::arg("packet"), nb::arg("order"))
        .def("flush", &Decoder::flush)
        .def("abandon", &Decoder::abandon)
        .def("take", &Decoder::take);
}
