// What this machine's memory gives to the ways in which a norm can read and write a tensor.
//
//   g++ -O3 -march=native -fno-loop-unroll-and-jam -fopenmp benchmarks/memory.cpp -o /tmp/memory && /tmp/memory 2
//
// The argument is the number of threads. Each line is a median of 15 passes over tensors that rotate
// over 512 MiB, in GB/s of what is read and written. docs/benchmarks.md says what follows from it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

constexpr long kMiB = 1 << 20, kSize = 96 * kMiB / 4, kTensors = 5;
std::vector<float*> tensors;
int threads = 1;
volatile float sink;

// One pass of body(source, target, elements) by all threads, each on its part.
template <class Body>
void measure(const char* name, double bytes_per_element, const Body& body) {
    std::vector<double> seconds;
    for (int pass = 0; pass < 15; ++pass) {
        const float* from = tensors[pass % (kTensors - 1)];
        float* to = tensors[kTensors - 1];
        const auto start = std::chrono::steady_clock::now();
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int i = 0; i < threads; ++i) {
            const long part = kSize / threads / 4096 * 4096;
            body(from + i * part, to + i * part, part);
        }
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::nth_element(seconds.begin(), seconds.begin() + 7, seconds.end());
    std::printf("%-66s %6.1f\n", name, bytes_per_element * kSize / seconds[7] / 1e9);
}

void prefetch(const float* p, long n) {
    for (long i = 0; i < n; i += 16) __builtin_prefetch(p + i, 0, 2);
}

using Line = float __attribute__((vector_size(64), aligned(4), may_alias));

[[gnu::noinline]] float sum(const float* x, long n) {
    const Line* lines = reinterpret_cast<const Line*>(x);
    Line a{}, b{}, c{}, d{};
    for (long i = 0; i < n / 16; i += 4) a += lines[i], b += lines[i + 1], c += lines[i + 2], d += lines[i + 3];
    const Line all = (a + b) + (c + d);
    return all[0] + all[15];
}

// Sums per column of `rows` rows, read one after the other or `step` of them at a time.
template <int step>
[[gnu::noinline]] void columns(const float* x, long rows, long width, float* sums) {
    for (long r = 0; r < rows; r += step) {
        const float* at = x + r * width;
#pragma omp simd
        for (long c = 0; c < width; ++c)
            for (int s = 0; s < step; ++s) sums[c] += at[s * width + c];
    }
}

[[gnu::noinline]] void stream(const float* x, float* y, long n) {
#if defined(__AVX512F__)
    for (long i = 0; i < n; i += 16) _mm512_stream_ps(y + i, _mm512_loadu_ps(x + i));
    _mm_sfence();
#elif defined(__AVX__)
    for (long i = 0; i < n; i += 8) _mm256_stream_ps(y + i, _mm256_loadu_ps(x + i));
    _mm_sfence();
#else
    std::memcpy(y, x, n * sizeof(float));
#endif
}

// Stretches of `length` elements, `apart` of them between two that belong together, as a channel's planes lie.
template <bool asks>
float stretches(const float* x, long n, long length, long apart) {
    float total = 0;
    for (long g = 0; g < apart; ++g)
        for (long at = g * length; at + length <= n; at += apart * length) {
            if (asks && at + (apart + 1) * length <= n) prefetch(x + at + apart * length, length);
            total += sum(x + at, length);
        }
    return total;
}

}  // namespace

int main(int count, char** arguments) {
    threads = count > 1 ? std::atoi(arguments[1]) : 1;
    for (long i = 0; i < kTensors; ++i) {
        tensors.push_back(static_cast<float*>(std::aligned_alloc(4096, kSize * 4)));
        for (long k = 0; k < kSize; ++k) tensors.back()[k] = static_cast<float>(k % 7);
    }
    measure("read in memory order", 4, [&](const float* x, float*, long n) { sink = sum(x, n); });
    measure("rows of 1 KiB, column sums, one row after the other", 4, [](const float* x, float*, long n) {
        float sums[256] = {};
        columns<1>(x, n / 256, 256, sums);
        sink = sums[0];
    });
    measure("rows of 1 KiB, column sums, four rows in step", 4, [](const float* x, float*, long n) {
        float sums[256] = {};
        columns<4>(x, n / 256, 256, sums);
        sink = sums[0];
    });
    for (const long length : {768, 3072, 12288}) {
        char name[80];
        std::snprintf(name, sizeof name, "stretches of %ld KiB", length * 4 / 1024);
        measure(name, 4, [&](const float* x, float*, long n) { sink = stretches<false>(x, n, length, 64); });
        std::snprintf(name, sizeof name, "stretches of %ld KiB, the next asked for meanwhile", length * 4 / 1024);
        measure(name, 4, [&](const float* x, float*, long n) { sink = stretches<true>(x, n, length, 64); });
    }
    measure("copy, by memmove", 8, [](const float* x, float* y, long n) { std::copy(x, x + n, y); });
    measure("copy past the cache", 8, stream);
}
