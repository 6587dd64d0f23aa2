// The table of contents: records of addresses and numbers in, nothing out. Python (backends/cpu.py) owns all
// memory and has looked at every tensor whose address it passes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>
#include <sys/mman.h>

#include <optional>
#include <string>
#include <vector>

#include "norm.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using evenly::Address, evenly::at, evenly::i64;
using evenly::Kept, evenly::Norm, evenly::Tensors, evenly::Wanted;

namespace {

// Other threads of Python run beside a long call. A short one keeps the lock: to have it back can take
// a hundred times as long as the call.
struct Aside {
    std::optional<nb::gil_scoped_release> released;
    explicit Aside(i64 bytes) {
        if (bytes >= 64 << 10) released.emplace();
    }
};

// A step of a norm, beside which other threads of Python run.
template <auto step, class... Arguments>
auto beside(void (Norm::*)(Arguments...) const) {
    return [](const Norm& norm, Arguments... arguments) {
        const Aside aside(norm.bytes());
        (norm.*step)(arguments...);
    };
}

std::vector<std::string> isas() {
    const evenly::Steps* all;
    std::vector<std::string> names(evenly::available(&all));
    for (std::size_t i = 0; i < names.size(); ++i) names[i] = all[i].isa;
    return names;
}

// Ask for huge pages in a block fresh from the allocator; a refusal costs nothing.
void advise_huge(Address address, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr Address page = 4096;
    const Address first = (address + page - 1) / page * page, last = (address + bytes) / page * page;
    if (last > first) madvise(at(first), last - first, MADV_HUGEPAGE);
#endif
}

void bind_records(nb::module_& m) {
    nb::class_<Tensors>(m, "Tensors", "Addresses of what a call has besides its input; 0: absent.")
        .def(
            "__init__",
            [](Tensors* t, Address weight, Address bias, Address residual, Address mask, bool elements) {
                new (t) Tensors{weight, bias, residual, mask, elements};
            },
            "weight"_a = 0, "bias"_a = 0, "residual"_a = 0, "mask"_a = 0, "mask_elements"_a = false);
    nb::class_<Kept>(m, "Kept",
                     "Addresses of statistics and of slopes, and what the statistics were taken over.")
        .def(
            "__init__",
            [](Kept* k, Address mean, Address rstd, Address m2, Address counts, Address bits, double count) {
                new (k) Kept{mean, rstd, m2, counts, bits, count};
            },
            "mean"_a = 0, "rstd"_a = 0, "m2"_a = 0, "counts"_a = 0, "bits"_a = 0, "count"_a = 0.0);
    nb::class_<Wanted>(m, "Wanted", "Addresses of the gradients and sums to be written; 0: not wanted.")
        .def(
            "__init__",
            [](Wanted* w, Address dx, Address dresidual, Address dweight, Address dbias, Address g,
               Address gx) { new (w) Wanted{dx, dresidual, dweight, dbias, g, gx}; },
            "dx"_a = 0, "dresidual"_a = 0, "dweight"_a = 0, "dbias"_a = 0, "sum_g"_a = 0, "sum_gx"_a = 0);
    nb::class_<evenly::Running>(m, "Running", "Addresses of the buffers that a batch enters, and the rule.")
        .def(
            "__init__",
            [](evenly::Running* r, Address mean, Address var, Address batches, Address skipped, double factor,
               bool unbiased, bool skip_nonfinite) {
                new (r) evenly::Running{at(mean), at(var),  at<i64>(batches), at<i64>(skipped),
                                        factor,   unbiased, skip_nonfinite};
            },
            "mean"_a, "var"_a, "batches"_a = 0, "skipped"_a = 0, "factor"_a, "unbiased"_a,
            "skip_nonfinite"_a);
}

void bind_norm(nb::module_& m) {
    nb::class_<Norm>(m, "Norm", "What a norm is, apart from the memory of a call; the steps are its methods.")
        .def(
            "__init__",
            [](Norm* n, std::vector<i64> partition, int dtype, int activation, double argument, double eps,
               bool centered, bool zero_masked) {
                if (partition.size() != 6) throw nb::value_error("a partition has six sizes");
                const auto& s = partition;
                const evenly::Partition p{s[0], s[1], s[2], s[3], s[4], s[5]};
                new (n) Norm{p, dtype, activation, argument, eps, centered, zero_masked};
            },
            nb::kw_only(), "partition"_a, "dtype"_a, "activation"_a, "argument"_a, "eps"_a, "centered"_a,
            "zero_masked"_a)
        .def("walks", &Norm::walks, "masked"_a, "Whether there is a walk for the partition.")
        .def("measure", beside<&Norm::measure>(&Norm::measure), "x"_a, "y"_a, "tensors"_a, "kept"_a,
             "running"_a.none(), "threads"_a, "Steps 1 and 2; step 1 alone where y is 0.")
        .def("normalize", beside<&Norm::normalize>(&Norm::normalize), "x"_a, "y"_a, "tensors"_a, "kept"_a,
             "threads"_a, "Step 2.")
        .def("given", beside<&Norm::given>(&Norm::given), "x"_a, "y"_a, "tensors"_a, "kept"_a, "var"_a,
             "threads"_a, "Step 2 by mean and variance of the channels.")
        .def("backward", beside<&Norm::backward>(&Norm::backward), "dy"_a, "x"_a, "tensors"_a, "kept"_a,
             "wanted"_a, "measured"_a, "threads"_a, "Steps 3 and 4.")
        .def("sums", beside<&Norm::sums>(&Norm::sums), "dy"_a, "x"_a, "tensors"_a, "kept"_a, "wanted"_a,
             "threads"_a, "Step 3.")
        .def("input", beside<&Norm::input>(&Norm::input), "dy"_a, "x"_a, "tensors"_a, "kept"_a, "wanted"_a,
             "measured"_a, "threads"_a, "Step 4.");
}

}  // namespace

NB_MODULE(_cpu, m) {
    m.doc() = "evenly's CPU kernels; called by evenly.backends.cpu alone.";
    nb::set_leak_warnings(false);  // norms are remembered until the process ends, and end with it
    pthread_atfork(nullptr, nullptr, evenly::note_fork);
    bind_records(m);
    bind_norm(m);
    m.def("isa", [] { return std::string(evenly::steps()->isa); }, "The instruction set in use.");
    m.def("isas", &isas, "The instruction sets this machine can run, the best last.");
    m.def(
        "use_isa", [](const std::string& name) { return evenly::use(name.c_str()); },
        "Use one of them; False where it is unknown or cannot run here.");
    m.def("advise_huge", &advise_huge, "Ask for huge pages behind fresh memory.");
}
