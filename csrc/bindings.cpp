// The table of contents: addresses and numbers in, nothing out. Python (backends/cpu.py) owns all memory.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>
#include <sys/mman.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace nb = nanobind;
using evenly::i64;
using Address = std::uintptr_t;

namespace {

template <class T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// Memory of the calling thread for what the two halves of a call pass on and nobody else asks for;
// the kernels' own scratch is in use meanwhile. Room for any type of statistics.
Address between(i64 numbers) {
    thread_local std::unique_ptr<double[]> memory;
    thread_local i64 size = 0;
    if (size < numbers) {
        memory.reset(new double[numbers]);
        size = numbers;
    }
    return reinterpret_cast<Address>(memory.get());
}

// Other threads of Python run beside a long call. A short one keeps the lock: to have it back can take
// a hundred times as long as the call.
struct Aside {
    std::optional<nb::gil_scoped_release> released;
    explicit Aside(i64 bytes) {
        if (bytes >= 64 << 10) released.emplace();
    }
};

i64 bytes_of(const evenly::Partition& p, int dtype) {
    return p.numel() * (dtype == 1 ? 8 : dtype == 0 ? 4 : 2);
}

bool forward(i64 outer, i64 batch, i64 group, i64 inner, i64 channels, i64 stride, int dtype, int kind,
             double arg, Address x, Address residual, Address weight, Address bias, Address mask,
             bool mask_elements, bool weighs, bool zeroes, Address y, Address bits, Address mean, Address m2,
             Address rstd, Address count, double eps, bool centered, bool measure, bool apply, int threads,
             Address running_mean, Address running_var, Address batches, Address skipped, double factor,
             bool unbiased, bool skip_nonfinite) {
    const evenly::Partition p{outer, batch, group, inner, channels, stride};
    if (evenly::walk_of(p, mask != 0) == evenly::Walk::none) return false;
    const i64 bytes = bytes_of(p, dtype);
    if (measure && m2 == 0) m2 = between(p.sets());
    const evenly::Forward call{p,
                               static_cast<evenly::DType>(dtype),
                               static_cast<evenly::Kind>(kind),
                               arg,
                               at(x),
                               at(residual),
                               at(weight),
                               at(bias),
                               at(mask),
                               mask_elements,
                               weighs,
                               zeroes,
                               at(y),
                               at<std::uint8_t>(bits),
                               at(mean),
                               at(m2),
                               at(rstd),
                               at(count),
                               eps,
                               centered,
                               measure,
                               apply,
                               evenly::threads_for(bytes, threads)};
    const evenly::Running running{at(running_mean), at(running_var), at<i64>(batches), at<i64>(skipped),
                                  factor,           unbiased,        skip_nonfinite};
    const Aside aside(bytes);
    evenly::forward(call, running_mean ? &running : nullptr);
    return true;
}

bool backward(i64 outer, i64 batch, i64 group, i64 inner, i64 channels, i64 stride, int dtype, int kind,
              double arg, Address dy, Address x, Address residual, Address bits, Address weight, Address bias,
              Address mask, bool mask_elements, bool weighs, bool zeroes, Address mean, Address rstd,
              Address counts, double count, Address sum_g, Address sum_gx, Address dweight, Address dbias,
              Address dx, Address dresidual, bool centered, bool measured, bool sum, bool input,
              int threads) {
    const evenly::Partition p{outer, batch, group, inner, channels, stride};
    if (evenly::walk_of(p, mask != 0) == evenly::Walk::none) return false;
    const i64 bytes = bytes_of(p, dtype);
    if (sum && sum_g == 0) sum_g = between(2 * p.sets()), sum_gx = sum_g + 8 * p.sets();
    const evenly::Backward call{p,
                                static_cast<evenly::DType>(dtype),
                                static_cast<evenly::Kind>(kind),
                                arg,
                                at(dy),
                                at(x),
                                at(residual),
                                at<const std::uint8_t>(bits),
                                at(weight),
                                at(bias),
                                at(mask),
                                mask_elements,
                                weighs,
                                zeroes,
                                at(mean),
                                at(rstd),
                                at(counts),
                                count,
                                at(sum_g),
                                at(sum_gx),
                                at(dweight),
                                at(dbias),
                                at(dx),
                                at(dresidual),
                                centered,
                                measured,
                                sum,
                                input,
                                evenly::threads_for(bytes, threads)};
    const Aside aside(bytes);
    evenly::backward(call);
    return true;
}

// The two halves for calls that differ in addresses alone: there is nothing but weight and bias. What such
// calls share is converted once.
struct Pair {
    i64 outer, batch, group, inner, channels, stride;
    int dtype, kind;
    double arg, eps;
    bool centered;

    bool forward(Address x, Address weight, Address bias, Address y, Address mean, Address rstd, int threads,
                 Address running_mean, Address running_var, Address batches, Address skipped, double factor,
                 bool unbiased, bool skip_nonfinite) const {
        return ::forward(outer, batch, group, inner, channels, stride, dtype, kind, arg, x, 0, weight, bias,
                         0, false, false, false, y, 0, mean, 0, rstd, 0, eps, centered, true, true, threads,
                         running_mean, running_var, batches, skipped, factor, unbiased, skip_nonfinite);
    }

    // By statistics of the channels, which are the sets; rstd is written where it is wanted.
    bool given(Address x, Address weight, Address bias, Address y, Address mean, Address var, Address rstd,
               int threads) const {
        if (rstd == 0) rstd = between(group);
        if (dtype == 1) {
            for (i64 c = 0; c < group; ++c) at<double>(rstd)[c] = 1 / std::sqrt(at<double>(var)[c] + eps);
        } else {
            for (i64 c = 0; c < group; ++c)
                at<float>(rstd)[c] = 1 / std::sqrt(at<float>(var)[c] + static_cast<float>(eps));
        }
        return ::forward(outer, batch, group, inner, channels, stride, dtype, kind, arg, x, 0, weight, bias,
                         0, false, false, false, y, 0, mean, 0, rstd, 0, eps, centered, false, true, threads,
                         0, 0, 0, 0, 0.0, true, true);
    }

    bool backward(Address dy, Address x, Address weight, Address bias, Address mean, Address rstd,
                  Address dweight, Address dbias, Address dx, bool measured, int threads) const {
        return ::backward(outer, batch, group, inner, channels, stride, dtype, kind, arg, dy, x, 0, 0, weight,
                          bias, 0, false, false, false, mean, rstd, 0, static_cast<double>(batch * inner), 0,
                          0, dweight, dbias, dx, 0, centered, measured, true, dx != 0, threads);
    }

    bool walks() const {
        return evenly::walk_of({outer, batch, group, inner, channels, stride}, false) != evenly::Walk::none;
    }
};

std::string isa() { return evenly::steps()->isa; }

std::vector<std::string> isas() {
    const evenly::Steps* all;
    const int count = evenly::available(&all);
    std::vector<std::string> names;
    for (int i = 0; i < count; ++i) names.emplace_back(all[i].isa);
    return names;
}

bool use_isa(const std::string& name) { return evenly::use(name.c_str()); }

// Ask for huge pages in a block fresh from the allocator; a refusal costs nothing.
void advise_huge(Address address, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr Address page = 4096;
    const Address first = (address + page - 1) / page * page, last = (address + bytes) / page * page;
    if (last > first) madvise(at(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

NB_MODULE(_cpu, m) {
    m.doc() = "evenly's CPU kernels; called by evenly.backends.cpu alone.";
    nb::set_leak_warnings(false);  // pairs are remembered until the process ends, and end with it
    pthread_atfork(nullptr, nullptr, evenly::note_fork);
    m.def("forward", &forward, "Steps 1 and 2, one or both; False where the partition has no loop.");
    m.def("backward", &backward, "Steps 3 and 4, one or both; False where the partition has no loop.");
    nb::class_<Pair>(m, "Pair", "Both halves for calls that differ in addresses alone.")
        .def(nb::init<i64, i64, i64, i64, i64, i64, int, int, double, double, bool>())
        .def("walks", &Pair::walks, "Whether there is a loop for the partition.")
        .def("forward", &Pair::forward, "Steps 1 and 2.")
        .def("given", &Pair::given, "Step 2 by given statistics.")
        .def("backward", &Pair::backward, "Steps 3 and 4.");
    m.def("isa", &isa, "The instruction set in use.");
    m.def("isas", &isas, "The instruction sets this machine can run, the best last.");
    m.def("use_isa", &use_isa, "Use one of them; False where it is unknown or cannot run here.");
    m.def("advise_huge", &advise_huge, "Ask for huge pages behind fresh memory.");
}
