// What is done to one tile: a stretch of neighbouring elements small enough to stay in L1.
//
// Loops are plain and short so that the compiler turns each into vector code for every
// instruction set; the walks in forward.cpp and backward.cpp string them together. Each stays a
// function of its own: inlined among branches, gcc leaves some of them scalar.
#pragma once

#include <algorithm>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "activation.hpp"
#include "scalar.hpp"

#define EVENLY_LOOP [[gnu::noinline]]

namespace evenly {
namespace EVENLY_ISA {

constexpr i64 kTile = 1024;  // elements
constexpr i64 kLine = 64;    // bytes of a cache line

// Where a tile's numbers come from: one each for the whole tile,
//   forward   z  = (x - mean) * scale + bias,  scale = rstd * weight
//   backward  dx = scale * g + p * (x - mean) + q
template <class A>
struct Run {
    A m, s, b, p_ = 0, q_ = 0;
    A mean(i64) const { return m; }
    A scale(i64) const { return s; }
    A bias(i64) const { return b; }
    A p(i64) const { return p_; }
    A q(i64) const { return q_; }
    Run from(i64) const { return *this; }
};
// one each per element,
template <class A>
struct Columns {
    const A *m, *s, *b, *p_ = nullptr, *q_ = nullptr;
    A mean(i64 i) const { return m[i]; }
    A scale(i64 i) const { return s[i]; }
    A bias(i64 i) const { return b[i]; }
    A p(i64 i) const { return p_[i]; }
    A q(i64 i) const { return q_[i]; }
    Columns from(i64 i) const { return {m + i, s + i, b + i, p_ + i, q_ + i}; }
};
// or the mean shared and weight and bias per element.
template <class A>
struct Row {
    A m, r;
    const A *w, *b;
    A p_ = 0, q_ = 0;
    A mean(i64) const { return m; }
    A scale(i64 i) const { return r * w[i]; }
    A bias(i64 i) const { return b[i]; }
    A p(i64) const { return p_; }
    A q(i64) const { return q_; }
    Row from(i64 i) const { return {m, r, w + i, b + i, p_, q_}; }
};

// Sum of (x - shift) and of its square.
template <class T, class A>
EVENLY_LOOP void sum_about(const T* x, i64 n, A shift, double& s1, double& s2) {
    A a1 = 0, a2 = 0;
#pragma omp simd reduction(+ : a1, a2)
    for (i64 i = 0; i < n; ++i) {
        const A d = load(x + i) - shift;
        a1 += d;
        a2 = fma(d, d, a2);
    }
    s1 += a1;
    s2 += a2;
}

template <class T, class A>
inline A mean_of(const T* x, i64 n) {
    A sum = 0;
    for (i64 i = 0; i < n; ++i) sum += load(x + i);
    return sum / A(n > 0 ? n : 1);
}

// y = activation(z), z = (x - mean) * scale + bias; y may be anything `store` knows.
template <Kind K, class T, class A, class Affine, class Y>
EVENLY_LOOP void apply_tile(const T* x, i64 n, Affine f, A arg, Y* y) {
#pragma omp simd
    for (i64 i = 0; i < n; ++i)
        store(y + i, activate<K>(fma(load(x + i) - f.mean(i), f.scale(i), f.bias(i)), arg));
}

// The same with a residual; z is kept, for the bits of its slope.
template <Kind K, class T, class A, class Affine>
EVENLY_LOOP void residual_tile(const T* x, const T* residual, i64 n, Affine f, A arg, A* z, T* y) {
#pragma omp simd
    for (i64 i = 0; i < n; ++i) {
        z[i] = fma(load(x + i) - f.mean(i), f.scale(i), f.bias(i)) + load(residual + i);
        store(y + i, activate<K>(z[i], arg));
    }
}

// Where a slope comes from: from z itself,
template <Kind K, class A>
struct OfZ {
    A arg;
    A at(i64, A z) const { return slope<K>(z, arg); }
};
// or from a list, made before.
template <class A>
struct Listed {
    const A* slopes;
    A at(i64 i, A) const { return slopes[i]; }
};

template <Kind K, class T, class A, class Affine>
EVENLY_LOOP void apply_slopes(const T* x, i64 n, Affine f, A arg, A* slopes) {
#pragma omp simd
    for (i64 i = 0; i < n; ++i)
        slopes[i] = slope<K>(fma(load(x + i) - f.mean(i), f.scale(i), f.bias(i)), arg);
}

template <Kind K, class T, class A, class Affine>
EVENLY_LOOP void slopes_with(const T* residual, const T* x, i64 n, Affine f, A arg, A* slopes) {
#pragma omp simd
    for (i64 i = 0; i < n; ++i)
        slopes[i] = slope<K>(fma(load(x + i) - f.mean(i), f.scale(i), f.bias(i)) + load(residual + i), arg);
}

// d = x - mean and g = dy * slope, for those who need them apart.
template <class T, class A, class Affine, class Slope>
EVENLY_LOOP void slope_tile(const T* dy, const T* x, i64 n, Affine f, Slope slope_of, A* g, A* d) {
#pragma omp simd
    for (i64 i = 0; i < n; ++i) {
        const A e = load(x + i) - f.mean(i);
        d[i] = e;
        g[i] = load(dy + i) * slope_of.at(i, fma(e, f.scale(i), f.bias(i)));
    }
}

// Sums of g and g * d over the tile.
template <class A, class T, class Affine, class Slope>
EVENLY_LOOP void slope_sums(const T* dy, const T* x, i64 n, Affine f, Slope slope_of, double& sum_g,
                            double& sum_gd) {
    A a1 = 0, a2 = 0;
#pragma omp simd reduction(+ : a1, a2)
    for (i64 i = 0; i < n; ++i) {
        const A d = load(x + i) - f.mean(i);
        const A g = load(dy + i) * slope_of.at(i, fma(d, f.scale(i), f.bias(i)));
        a1 += g;
        a2 = fma(g, d, a2);
    }
    sum_g += a1;
    sum_gd += a2;
}

// The same sums per element, added to what is there.
template <class T, class A, class Affine, class Slope>
EVENLY_LOOP void slope_add(const T* dy, const T* x, i64 n, Affine f, Slope slope_of, A* sum_g, A* sum_gd) {
#pragma omp simd
    for (i64 i = 0; i < n; ++i) {
        const A d = load(x + i) - f.mean(i);
        const A g = load(dy + i) * slope_of.at(i, fma(d, f.scale(i), f.bias(i)));
        sum_g[i] += g;
        sum_gd[i] = fma(g, d, sum_gd[i]);
    }
}

// A row's sums of weight * g and weight * g * d; g and g * xhat are added per element.
template <class A, class T, class Slope>
EVENLY_LOOP void row_sums(const T* dy, const T* x, i64 n, Row<A> f, Slope slope_of, A* g_each, A* gx_each,
                          double& sum_g, double& sum_gd) {
    A a1 = 0, a2 = 0;
#pragma omp simd reduction(+ : a1, a2)
    for (i64 i = 0; i < n; ++i) {
        const A d = load(x + i) - f.m;
        const A g = load(dy + i) * slope_of.at(i, fma(d, f.scale(i), f.bias(i))), wg = f.w[i] * g;
        a1 += wg;
        a2 = fma(wg, d, a2);
        g_each[i] += g;
        gx_each[i] = fma(g * f.r, d, gx_each[i]);
    }
    sum_g += a1;
    sum_gd += a2;
}

// dx straight from dy and x.
template <class A, class T, class Affine, class Slope>
EVENLY_LOOP void input_tile(const T* dy, const T* x, i64 n, Affine f, Slope slope_of, T* dx) {
#pragma omp simd
    for (i64 i = 0; i < n; ++i) {
        const A d = load(x + i) - f.mean(i);
        const A g = load(dy + i) * slope_of.at(i, fma(d, f.scale(i), f.bias(i)));
        store(dx + i, fma(f.scale(i), g, fma(f.p(i), d, f.q(i))));
    }
}

// The same, and the residual's gradient.
template <class T, class A, class Affine>
EVENLY_LOOP void input_tile(const T* dy, const T* x, i64 n, Affine f, Listed<A> slope_of, T* dx,
                            T* dresidual) {
#pragma omp simd
    for (i64 i = 0; i < n; ++i) {
        const A d = load(x + i) - f.mean(i);
        const A g = load(dy + i) * slope_of.at(i, A(0));
        store(dresidual + i, g);
        store(dx + i, fma(f.scale(i), g, fma(f.p(i), d, f.q(i))));
    }
}

// dx where the statistics were given: nothing passed through them, not even a NaN.
template <class A, class T, class Affine, class Slope>
EVENLY_LOOP void given_tile(const T* dy, const T* x, i64 n, Affine f, Slope slope_of, T* dx) {
#pragma omp simd
    for (i64 i = 0; i < n; ++i) {
        const A d = load(x + i) - f.mean(i);
        store(dx + i, f.scale(i) * (load(dy + i) * slope_of.at(i, fma(d, f.scale(i), f.bias(i)))));
    }
}

// The weights of elements k … k + n: a mask by element is read in place, one by position spread out.
template <class A>
inline const A* mask_tile(const A* mask, bool by_element, const Partition& p, i64 k, i64 n, A* buffer) {
    if (by_element) return mask + k;
    const i64 span = p.channels * p.stride;
    for (i64 i = 0; i < n;) {
        const i64 within = (k + i) % span, position = (k + i) / span * p.stride;
        if (p.stride == 1) {  // one weight for all channels of a place
            const i64 length = std::min(n - i, span - within);
            for (i64 j = 0; j < length; ++j) buffer[i + j] = mask[position];
            i += length;
        } else {
            const i64 place = within % p.stride, length = std::min(n - i, p.stride - place);
            for (i64 j = 0; j < length; ++j) buffer[i + j] = mask[position + place + j];
            i += length;
        }
    }
    return buffer;
}

// Bit k % 8 of byte k / 8. The bytes at both ends may belong to neighbours too, on another thread.
inline void write_bits(std::uint8_t* bits, i64 k, const std::uint8_t* on, i64 n) {
    i64 i = 0;
    const auto single = [&] {
        if (on[i])
            __atomic_fetch_or(bits + (k + i) / 8, static_cast<std::uint8_t>(1u << ((k + i) % 8)),
                              __ATOMIC_RELAXED);
        ++i;
    };
    while (i < n && (k + i) % 8 != 0) single();
    std::uint8_t* out = bits + (k + i) / 8;
    for (; i + 8 <= n; i += 8) {
        std::uint64_t eight;  // bytes of 0 or 1; the product gathers their low bits in the top byte
        std::memcpy(&eight, on + i, 8);
        *out++ = static_cast<std::uint8_t>((eight * 0x0102040810204080ull) >> 56);
    }
    while (i < n) single();
}

template <Kind K, class A>
EVENLY_LOOP void slope_bits(const A* z, i64 n, std::uint8_t* on) {
#pragma omp simd
    for (i64 i = 0; i < n; ++i) on[i] = slope<K>(z[i], A(0)) == A(1);
}

template <class A>
inline void read_bits(const std::uint8_t* bits, i64 k, i64 n, A low, A* slopes) {
    i64 i = 0;
    const auto single = [&] {
        slopes[i] = (bits[(k + i) / 8] >> ((k + i) % 8)) & 1 ? A(1) : low;
        ++i;
    };
    while (i < n && (k + i) % 8 != 0) single();
    const std::uint8_t* in = bits + (k + i) / 8;
    for (; i + 8 <= n; i += 8, ++in) {
        const std::uint32_t byte = *in;
#pragma omp simd
        for (std::uint32_t j = 0; j < 8; ++j) slopes[i + j] = byte & (1u << j) ? A(1) : low;
    }
    while (i < n) single();
}

// Copy past the cache: a line that is written whole need not be read first, and evicts nothing.
template <class T>
inline void stream(T* to, const T* from, i64 n) {
#if defined(__SSE2__)
    char* out = reinterpret_cast<char*>(to);
    const char* in = reinterpret_cast<const char*>(from);
    i64 bytes = n * static_cast<i64>(sizeof(T));
    const i64 head = std::min<i64>(bytes, -reinterpret_cast<std::intptr_t>(out) & (kLine - 1));
    std::memcpy(out, in, head);
    out += head, in += head, bytes -= head;
    for (; bytes >= kLine; out += kLine, in += kLine, bytes -= kLine) {
#if defined(__AVX512F__)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(out), _mm512_loadu_si512(in));
#elif defined(__AVX__)
        for (int i = 0; i < kLine; i += 32)
            _mm256_stream_si256(reinterpret_cast<__m256i*>(out + i),
                                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i)));
#else
        for (int i = 0; i < kLine; i += 16)
            _mm_stream_si128(reinterpret_cast<__m128i*>(out + i),
                             _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
#endif
    }
    std::memcpy(out, in, bytes);
#else
    std::memcpy(to, from, n * sizeof(T));
#endif
}

// Before another core may read what was streamed.
inline void fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// Where the next tile of `n` elements at y should end, so that the one after begins a cache line.
template <class T>
inline i64 tile_length(const T* y, i64 n) {
    if (n <= kTile) return n;
    const i64 past = (reinterpret_cast<std::intptr_t>(y) & (kLine - 1)) / static_cast<i64>(sizeof(T));
    return kTile - past;
}

// A tile's output: the memory itself, or a buffer that is streamed there.
template <class T>
struct Out {
    bool streams;
    alignas(kLine) T buffer[kTile];

    T* begin(T* y) { return streams ? buffer : y; }
    void end(T* y, i64 n) {
        if (streams) stream(y, buffer, n);
    }
};

}  // namespace EVENLY_ISA
}  // namespace evenly
