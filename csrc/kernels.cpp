// What does not depend on the instruction set: choosing one, threads, scratch, running statistics.
#include "kernels.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>

namespace evenly {

#define EVENLY_DECLARE(ISA)         \
    namespace ISA {                 \
    void forward(const Forward&);   \
    void backward(const Backward&); \
    }
#if defined(EVENLY_X86_LEVELS)
EVENLY_DECLARE(x86_64_v2)
EVENLY_DECLARE(x86_64_v3)
EVENLY_DECLARE(x86_64_v4)
EVENLY_DECLARE(x86_64_v4_bf16)  // bfloat16 alone: the other types gain nothing
#else
EVENLY_DECLARE(baseline)
#endif

namespace {

#if defined(EVENLY_X86_LEVELS)
template <class Call, void (*bfloat16s)(const Call&), void (*others)(const Call&)>
void by_type(const Call& call) {
    (call.dtype == DType::bfloat16 ? bfloat16s : others)(call);
}

const Steps kAll[] = {{"x86-64-v2", x86_64_v2::forward, x86_64_v2::backward},
                      {"x86-64-v3", x86_64_v3::forward, x86_64_v3::backward},
                      {"x86-64-v4", x86_64_v4::forward, x86_64_v4::backward},
                      {"x86-64-v4-bf16", by_type<Forward, x86_64_v4_bf16::forward, x86_64_v4::forward>,
                       by_type<Backward, x86_64_v4_bf16::backward, x86_64_v4::backward>}};

int count_available() {
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")))
        return 1;
    const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    return v4 ? (__builtin_cpu_supports("avx512bf16") ? 4 : 3) : 2;
}
#else
const Steps kAll[] = {{"baseline", baseline::forward, baseline::backward}};

int count_available() { return 1; }
#endif

std::atomic<const Steps*> chosen{nullptr};
std::atomic<bool> forked{false};

struct Scratch {
    char* memory = nullptr;
    i64 size = 0;
    ~Scratch() { std::free(memory); }
};

template <class A>
void update(const Partition& p, const Running& running, const A* mean_oc, const A* m2_oc, const A* count_oc) {
    A *running_mean = static_cast<A*>(running.mean), *running_var = static_cast<A*>(running.var);
    const i64 channels = p.group;
    const double w = running.factor, old = 1 - w;
    if (p.outer == 1 && count_oc == nullptr && p.count() > 1) {  // each channel one set, all alike
        const double share = w / static_cast<double>(running.unbiased ? p.count() - 1 : p.count());
        bool finite = true;
        for (i64 c = 0; c < channels; ++c) finite &= std::isfinite(mean_oc[c]) && std::isfinite(m2_oc[c]);
        if (running.skip_nonfinite && !finite) {
            if (running.skipped) ++*running.skipped;
            return;
        }
        for (i64 c = 0; c < channels; ++c)
            running_mean[c] = static_cast<A>(w * mean_oc[c] + old * running_mean[c]);
        for (i64 c = 0; c < channels; ++c)
            running_var[c] = static_cast<A>(share * m2_oc[c] + old * running_var[c]);
        if (running.batches) ++*running.batches;
        return;
    }
    // The mean of the statistics of all sets of a channel, where there is any.
    struct Entry {
        double mean, var;
        bool has_mean, has_var;
    };
    std::unique_ptr<Entry[]> entries(new Entry[channels]);
    bool any = false, finite = true;
    for (i64 c = 0; c < channels; ++c) {
        double mean = 0, var = 0;
        i64 means = 0, vars = 0;
        for (i64 o = 0; o < p.outer; ++o) {
            const i64 set = o * channels + c;
            const double count = count_oc ? count_oc[set] : p.count();
            if (count > 0) mean += mean_oc[set], ++means;
            const double divisor = running.unbiased ? count - 1 : count;
            if (divisor > 0) var += m2_oc[set] / divisor, ++vars;
        }
        entries[c] = {means ? mean / means : 0, vars ? var / vars : 0, means > 0, vars > 0};
        any |= means > 0;
        finite &= std::isfinite(entries[c].mean) && std::isfinite(entries[c].var);
    }
    if (running.skip_nonfinite && !finite) {
        if (running.skipped && any) ++*running.skipped;
        return;
    }
    if (!any) return;
    for (i64 c = 0; c < channels; ++c) {
        const Entry& e = entries[c];
        if (e.has_mean) running_mean[c] = static_cast<A>(w * e.mean + old * running_mean[c]);
        if (e.has_var) running_var[c] = static_cast<A>(w * e.var + old * running_var[c]);
    }
    if (running.batches) ++*running.batches;
}

}  // namespace

int available(const Steps** out) {
    *out = kAll;
    static const int count = count_available();
    return count;
}

namespace {

// Where none was asked for by name: the best, but not the widest for a short call. The first
// instructions of 512 bits after a while without any take microseconds to come up to speed.
const Steps* steps_for(i64 bytes) {
    constexpr i64 kShort = 256 << 10;
    if (const Steps* asked_for = chosen.load(std::memory_order_acquire)) return asked_for;
    const Steps* all;
    const int best = available(&all) - 1;
    return all + (bytes < kShort ? std::min(best, 1) : best);
}

i64 bytes_of(const Partition& p, DType dtype) {
    return p.numel() * (dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2);
}

}  // namespace

const Steps* steps() { return steps_for(std::numeric_limits<i64>::max()); }

bool use(const char* isa) {
    const Steps* all;
    const int count = available(&all);
    for (int i = 0; i < count; ++i) {
        if (std::strcmp(all[i].isa, isa) == 0) {
            chosen.store(all + i, std::memory_order_release);
            return true;
        }
    }
    return false;
}

void forward(const Forward& f, const Running* running) {
    // Equal calls give equal bytes, those bits of the last one included that belong to no element.
    if (f.bits && f.partition.numel() % 8 != 0) f.bits[f.partition.numel() / 8] = 0;
    steps_for(bytes_of(f.partition, f.dtype))->forward(f);
    if (running == nullptr) return;
    if (f.dtype == DType::float64) {
        update<double>(f.partition, *running, static_cast<const double*>(f.mean),
                       static_cast<const double*>(f.m2), static_cast<const double*>(f.count));
    } else {
        update<float>(f.partition, *running, static_cast<const float*>(f.mean),
                      static_cast<const float*>(f.m2), static_cast<const float*>(f.count));
    }
}

void backward(const Backward& f) { steps_for(bytes_of(f.partition, f.dtype))->backward(f); }

int threads_for(i64 bytes, int wanted) {
    constexpr i64 kAlone = 48 << 10, kEach = 32 << 10;
    if (bytes < kAlone || forked.load(std::memory_order_relaxed)) return 1;
    return static_cast<int>(std::min<i64>(wanted, bytes / kEach));
}

namespace {

// "1024K" of Linux's own description; sysconf may report the caches of the whole package, of which
// a virtual machine has a share.
i64 cache_size(int index, long otherwise) {
    const std::string path = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size";
    i64 size = 0;
    char unit = 0;
    if (std::FILE* file = std::fopen(path.c_str(), "r")) {
        long number = 0;
        if (std::fscanf(file, "%ld%c", &number, &unit) >= 1)
            size = number << (unit == 'M' ? 20 : unit == 'K' ? 10 : 0);
        std::fclose(file);
    }
    return size > 0 ? size : otherwise;
}

}  // namespace

const Caches& caches() {
    static const Caches found = [] {
        long l2 = 0, l3 = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
        l2 = sysconf(_SC_LEVEL2_CACHE_SIZE), l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
        Caches c{cache_size(2, l2), cache_size(3, l3)};
        if (c.l2 <= 0) c.l2 = 1 << 20;
        if (c.last <= 0) c.last = std::max<i64>(c.l2, 32 << 20);
        return c;
    }();
    return found;
}

char* scratch(i64 bytes) {
    thread_local Scratch mine;
    if (mine.size < bytes) {
        std::free(mine.memory);
        const i64 size = (bytes * 5 / 4 + 4095) / 4096 * 4096;
        mine.memory = static_cast<char*>(std::aligned_alloc(4096, size));
        mine.size = mine.memory ? size : 0;
        if (mine.memory == nullptr) throw std::bad_alloc();
    }
    return mine.memory;
}

void note_fork() { forked.store(true, std::memory_order_relaxed); }

}  // namespace evenly
