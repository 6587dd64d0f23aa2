#include "running.hpp"

#include <cmath>
#include <memory>

namespace evenly {
namespace {

// The statistics that a batch measured.
template <class A>
struct Batch {
    const Partition& p;
    const A *mean, *m2, *count;  // count: null where no mask weighs

    explicit Batch(const Forward& call)
        : p(call.partition),
          mean(static_cast<const A*>(call.mean)),
          m2(static_cast<const A*>(call.m2)),
          count(static_cast<const A*>(call.count)) {}
};

void advance(i64* counter) {
    if (counter) ++*counter;
}

// Each channel is one set, and all sets have equal counts.
template <class A>
void enter_single(const Batch<A>& batch, const Running& running) {
    A *mean = static_cast<A*>(running.mean), *var = static_cast<A*>(running.var);
    const i64 channels = batch.p.group, count = batch.p.count();
    const double w = running.factor, old = 1 - w;
    const double share = w / static_cast<double>(running.unbiased ? count - 1 : count);
    bool finite = true;
    for (i64 c = 0; c < channels; ++c) finite &= std::isfinite(batch.mean[c]) && std::isfinite(batch.m2[c]);
    if (running.skip_nonfinite && !finite) return advance(running.skipped);
    for (i64 c = 0; c < channels; ++c) mean[c] = static_cast<A>(w * batch.mean[c] + old * mean[c]);
    for (i64 c = 0; c < channels; ++c) var[c] = static_cast<A>(share * batch.m2[c] + old * var[c]);
    advance(running.batches);
}

// The mean of the statistics of all sets of a channel, where there is any.
struct Entry {
    double mean, var;
    bool has_mean, has_var;
};

template <class A>
Entry entry_of(const Batch<A>& batch, i64 channel, bool unbiased) {
    double mean = 0, var = 0;
    i64 means = 0, vars = 0;
    for (i64 o = 0; o < batch.p.outer; ++o) {
        const i64 set = o * batch.p.group + channel;
        const double count = batch.count ? batch.count[set] : batch.p.count();
        if (count > 0) mean += batch.mean[set], ++means;
        const double divisor = unbiased ? count - 1 : count;
        if (divisor > 0) var += batch.m2[set] / divisor, ++vars;
    }
    return {means ? mean / means : 0, vars ? var / vars : 0, means > 0, vars > 0};
}

template <class A>
void enter(const Batch<A>& batch, const Running& running) {
    if (batch.p.outer == 1 && batch.count == nullptr && batch.p.count() > 1)
        return enter_single(batch, running);
    A *mean = static_cast<A*>(running.mean), *var = static_cast<A*>(running.var);
    const i64 channels = batch.p.group;
    const double w = running.factor, old = 1 - w;
    std::unique_ptr<Entry[]> entries(new Entry[channels]);
    bool any = false, finite = true;
    for (i64 c = 0; c < channels; ++c) {
        entries[c] = entry_of(batch, c, running.unbiased);
        any |= entries[c].has_mean;
        finite &= std::isfinite(entries[c].mean) && std::isfinite(entries[c].var);
    }
    if (!any) return;
    if (running.skip_nonfinite && !finite) return advance(running.skipped);
    for (i64 c = 0; c < channels; ++c) {
        const Entry& e = entries[c];
        if (e.has_mean) mean[c] = static_cast<A>(w * e.mean + old * mean[c]);
        if (e.has_var) var[c] = static_cast<A>(w * e.var + old * var[c]);
    }
    advance(running.batches);
}

}  // namespace

void enter(const Forward& call, const Running& running) {
    if (call.dtype == DType::float64) {
        enter(Batch<double>(call), running);
    } else {
        enter(Batch<float>(call), running);
    }
}

}  // namespace evenly
