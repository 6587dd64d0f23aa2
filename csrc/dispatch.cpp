// Chooses the copy of the steps that is compiled for this machine's instruction set.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "kernels.hpp"
#include "running.hpp"

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

// Channels that no axis follows are rows.
template <class Call>
const Call& settled(const Call& call, Call& other) {
    const Partition& p = call.partition;
    if (p.stride != 1 || walk_of(p, call.mask != nullptr) != Walk::channels) return call;
    other = call;
    other.partition = {p.outer, 1, 1, p.channels, p.channels, 1};
    return other;
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
    Forward other;
    steps_for(bytes_of(f.partition, f.dtype))->forward(settled(f, other));
    if (running) enter(f, *running);
}

void backward(const Backward& f) {
    Backward other;
    steps_for(bytes_of(f.partition, f.dtype))->backward(settled(f, other));
}

}  // namespace evenly
