// The table of contents: records of addresses and numbers in, nothing out. Python (backends/cpu.py) owns all
// memory and has looked at every tensor whose address it passes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using evenly::i64;
using Address = std::uintptr_t;

namespace {

template <class T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// Numbers that the two halves of a call pass on, in any type of statistics.
Address between(i64 numbers) { return reinterpret_cast<Address>(evenly::between(8 * numbers)); }

#if PY_VERSION_HEX < 0x030D0000
bool finalizing() { return _Py_IsFinalizing(); }
#else
bool finalizing() { return Py_IsFinalizing(); }
#endif

// Other threads of Python run beside a long call. A short one keeps the lock: to have it back can take
// a hundred times as long as the call.
class Aside {
    PyThreadState* state_;

  public:
    explicit Aside(i64 bytes) : state_(bytes >= 64 << 10 ? PyEval_SaveThread() : nullptr) {}
    ~Aside() {
        if (state_ == nullptr) return;
        // An interpreter that has ended gives the lock to nobody and would unwind this thread, which C++
        // answers with abort: a daemon thread waits here for the process to end.
        while (finalizing()) pause();
        PyEval_RestoreThread(state_);
    }
};

// The memory of a call that may be absent: 0 says so.
struct Tensors {
    Address weight, bias, residual, mask;
    bool mask_elements;  // the mask has a weight for every element, not for every position
};

// What forward leaves for backward: statistics, what they were taken over, where slopes are 1.
struct Kept {
    Address mean, rstd, m2, counts, bits;
    double count;
};

struct Wanted {
    Address dx, dresidual, dweight, dbias, sum_g, sum_gx;
};

// What a norm is, apart from the memory of a call.
struct Norm {
    evenly::Partition p;
    int dtype, kind;
    double arg, eps;
    bool centered, zero_masked;

    i64 bytes() const { return p.numel() * (dtype == 1 ? 8 : dtype == 0 ? 4 : 2); }

    bool walks(bool masked) const { return evenly::walk_of(p, masked) != evenly::Walk::none; }

    evenly::Forward forward_of(Address x, Address y, const Tensors& t, const Kept& kept, int threads) const {
        evenly::Forward f{};
        f.partition = p;
        f.dtype = static_cast<evenly::DType>(dtype);
        f.kind = static_cast<evenly::Kind>(kind);
        f.arg = arg;
        f.x = at(x);
        f.residual = at(t.residual);
        f.weight = at(t.weight);
        f.bias = at(t.bias);
        f.mask = at(t.mask);
        f.mask_elements = t.mask_elements;
        f.zeroes = t.mask != 0 && zero_masked;
        f.y = at(y);
        f.bits = at<std::uint8_t>(kept.bits);
        f.mean = at(kept.mean);
        f.m2 = at(kept.m2);
        f.rstd = at(kept.rstd);
        f.eps = eps;
        f.centered = centered;
        f.threads = evenly::threads_for(bytes(), threads);
        return f;
    }

    // Steps 1 and 2 and the running statistics; step 1 alone where there is no y.
    void measure(Address x, Address y, const Tensors& t, const Kept& kept, const evenly::Running* running,
                 int threads) const {
        evenly::Forward f = forward_of(x, y, t, kept, threads);
        f.measure = true;
        f.apply = y != 0;
        f.weighs = t.mask != 0;
        if (f.m2 == nullptr) f.m2 = at(between(p.sets()));
        f.count = at(kept.counts);
        const Aside aside(bytes());
        evenly::forward(f, running);
    }

    // Step 2.
    void normalize(Address x, Address y, const Tensors& t, const Kept& kept, int threads) const {
        evenly::Forward f = forward_of(x, y, t, kept, threads);
        f.apply = true;
        f.weighs = false;
        if (!f.zeroes) f.mask = nullptr;
        const Aside aside(bytes());
        evenly::forward(f, nullptr);
    }

    // Step 2 by mean and variance of the channels, which are the sets; rstd is written where it is wanted.
    void given(Address x, Address y, const Tensors& t, Kept kept, Address var, int threads) const {
        if (kept.rstd == 0) kept.rstd = between(p.sets());
        if (dtype == 1) {
            for (i64 c = 0; c < p.sets(); ++c)
                at<double>(kept.rstd)[c] = 1 / std::sqrt(at<double>(var)[c] + eps);
        } else {
            for (i64 c = 0; c < p.sets(); ++c)
                at<float>(kept.rstd)[c] = 1 / std::sqrt(at<float>(var)[c] + static_cast<float>(eps));
        }
        normalize(x, y, t, kept, threads);
    }

    evenly::Backward backward_of(Address dy, Address x, const Tensors& t, const Kept& kept, const Wanted& w,
                                 bool measured, int threads) const {
        evenly::Backward b{};
        b.partition = p;
        b.dtype = static_cast<evenly::DType>(dtype);
        b.kind = static_cast<evenly::Kind>(kind);
        b.arg = arg;
        b.dy = at(dy);
        b.x = at(x);
        b.residual = at(t.residual);
        b.bits = at<const std::uint8_t>(kept.bits);
        b.weight = at(t.weight);
        b.bias = at(t.bias);
        b.weighs = t.mask != 0 && measured;
        b.zeroes = t.mask != 0 && zero_masked;
        b.mask = b.weighs || b.zeroes ? at(t.mask) : nullptr;
        b.mask_elements = t.mask_elements;
        b.mean = at(kept.mean);
        b.rstd = at(kept.rstd);
        b.counts = at(kept.counts);
        b.count = kept.count;
        b.sum_g = at(w.sum_g);
        b.sum_gx = at(w.sum_gx);
        b.dweight = at(w.dweight);
        b.dbias = at(w.dbias);
        b.dx = at(w.dx);
        b.dresidual = at(w.dresidual);
        b.centered = centered;
        b.measured = measured;
        b.threads = evenly::threads_for(bytes(), threads);
        return b;
    }

    // Steps 3 and 4: the sums where a gradient of weight or bias, or one through the statistics, is wanted.
    void backward(Address dy, Address x, const Tensors& t, const Kept& kept, const Wanted& w, bool measured,
                  int threads) const {
        evenly::Backward b = backward_of(dy, x, t, kept, w, measured, threads);
        b.sum = w.dweight != 0;
        b.input = w.dx != 0 || w.dresidual != 0;
        if (b.sum) {
            b.sum_g = at(between(2 * p.sets()));
            b.sum_gx = static_cast<char*>(b.sum_g) + 8 * p.sets();
        }
        const Aside aside(bytes());
        evenly::backward(b);
    }

    // Step 3.
    void sums(Address dy, Address x, const Tensors& t, const Kept& kept, const Wanted& w, int threads) const {
        evenly::Backward b = backward_of(dy, x, t, kept, w, true, threads);
        b.weighs = false;  // the mask weighs what step 4 shares, not the sums
        if (!b.zeroes) b.mask = nullptr;
        b.sum = true;
        const Aside aside(bytes());
        evenly::backward(b);
    }

    // Step 4, by the sums of all processes.
    void input(Address dy, Address x, const Tensors& t, const Kept& kept, const Wanted& w, bool measured,
               int threads) const {
        evenly::Backward b = backward_of(dy, x, t, kept, w, measured, threads);
        b.input = true;
        const Aside aside(bytes());
        evenly::backward(b);
    }
};

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
        .def("measure", &Norm::measure, "x"_a, "y"_a, "tensors"_a, "kept"_a, "running"_a.none(), "threads"_a,
             "Steps 1 and 2; step 1 alone where y is 0.")
        .def("normalize", &Norm::normalize, "x"_a, "y"_a, "tensors"_a, "kept"_a, "threads"_a, "Step 2.")
        .def("given", &Norm::given, "x"_a, "y"_a, "tensors"_a, "kept"_a, "var"_a, "threads"_a,
             "Step 2 by mean and variance of the channels.")
        .def("backward", &Norm::backward, "dy"_a, "x"_a, "tensors"_a, "kept"_a, "wanted"_a, "measured"_a,
             "threads"_a, "Steps 3 and 4.")
        .def("sums", &Norm::sums, "dy"_a, "x"_a, "tensors"_a, "kept"_a, "wanted"_a, "threads"_a, "Step 3.")
        .def("input", &Norm::input, "dy"_a, "x"_a, "tensors"_a, "kept"_a, "wanted"_a, "measured"_a,
             "threads"_a, "Step 4.");
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
