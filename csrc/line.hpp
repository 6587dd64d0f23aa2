// A cache line of elements: the unit in which tensors are read and written.
//
// Loops of constant length widen a line's elements, compute with them and narrow the result. The
// compiler turns each into vector code for every instruction set and keeps the line in registers,
// so that it is stored once, or streamed past the cache.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "partition.hpp"
#include "scalar.hpp"

namespace evenly {
namespace EVENLY_ISA {

constexpr i64 kTile = 1024;   // elements of a buffer in L1
constexpr i64 kPiece = 2048;  // elements whose sums may stay in float32
constexpr i64 kLine = 64;     // bytes of a cache line

template <class T>
constexpr i64 kOfLine = kLine / static_cast<i64>(sizeof(T));  // elements

template <i64 N>
using Lanes = std::integral_constant<i64, N>;

// Call body(first, Lanes<L>) for every L elements, then for the remaining ones alone.
template <i64 L, class Body>
inline void in_lines(i64 n, const Body& body) {
    i64 i = 0;
    for (; i + L <= n; i += L) body(i, Lanes<L>{});
#pragma GCC unroll 1
    for (; i < n; ++i) body(i, Lanes<1>{});
}

// The elements of a line, or half of one, in the type that is computed with, and back. The
// compiler's own code for 16-bit types splits a line into registers of two sizes, through memory.
template <i64 L, class T, class A>
inline void widen(const T* from, A* to) {
#pragma omp simd
    for (i64 j = 0; j < L; ++j) to[j] = load(from + j);
}

template <i64 L, class T, class A>
inline void narrow(const A* from, T* to) {
#pragma omp simd
    for (i64 j = 0; j < L; ++j) store(to + j, from[j]);
}

#if defined(__AVX512F__)
inline __m256i load_half(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

template <i64 L>
inline void widen(const bfloat16* from, float* to) {
    if constexpr (L == 16) {
        _mm512_storeu_si512(to, _mm512_slli_epi32(_mm512_cvtepu16_epi32(load_half(from)), 16));
    } else {
        for (i64 j = 0; j < L; ++j) to[j] = load(from + j);
    }
}

template <i64 L>
inline void widen(const float16* from, float* to) {
    if constexpr (L == 16) {
        _mm512_storeu_ps(to, _mm512_cvtph_ps(load_half(from)));
    } else {
        for (i64 j = 0; j < L; ++j) to[j] = load(from + j);
    }
}

template <i64 L>
inline void narrow(const float* from, bfloat16* to) {
    if constexpr (L == 16) {
#if defined(__AVX512BF16__)
        const __m256bh half = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
#else
        alignas(kLine) std::uint32_t wide[L];
#pragma omp simd
        for (i64 j = 0; j < L; ++j) wide[j] = rounded(from[j]);
        const __m256i half = _mm512_cvtepi32_epi16(_mm512_loadu_si512(wide));
#endif
        std::memcpy(to, &half, sizeof(half));
    } else {
        for (i64 j = 0; j < L; ++j) store(to + j, from[j]);
    }
}

template <i64 L>
inline void narrow(const float* from, float16* to) {
    if constexpr (L == 16) {
        const __m256i half =
            _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        std::memcpy(to, &half, sizeof(half));
    } else {
        for (i64 j = 0; j < L; ++j) store(to + j, from[j]);
    }
}
#endif

// A line, or half of one, past the cache: it need not be read first, and evicts nothing.
template <i64 bytes>
inline void stream(void* to, const void* from) {
#if defined(__AVX512F__)
    if constexpr (bytes == 64)
        return _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#endif
#if defined(__AVX__)
    for (int i = 0; i < bytes / 32; ++i)
        _mm256_stream_si256(static_cast<__m256i*>(to) + i,
                            _mm256_loadu_si256(static_cast<const __m256i*>(from) + i));
#elif defined(__SSE2__)
    for (int i = 0; i < bytes / 16; ++i)
        _mm_stream_si128(static_cast<__m128i*>(to) + i,
                         _mm_loadu_si128(static_cast<const __m128i*>(from) + i));
#else
    std::memcpy(to, from, bytes);
#endif
}

// Before another core may read what was streamed.
inline void fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// Elements before the first that begins a cache line.
template <class T>
inline i64 until_line(const T* at) {
    return static_cast<i64>((-reinterpret_cast<std::uintptr_t>(at) & (kLine - 1)) / sizeof(T));
}

// Write n elements of each output: values(first, Lanes<L>, v) makes the next L of them, one row of v
// for each output.
template <class A, class T, std::size_t Outputs, class Values>
inline void write(T* const (&to)[Outputs], i64 n, bool streams, const Values& values) {
    constexpr i64 L = kOfLine<T>, step = std::min(L, kOfLine<A>), bytes = step * static_cast<i64>(sizeof(T));
    const i64 head = std::min(n, until_line(to[0]));
    for (std::size_t o = 1; o < Outputs; ++o) streams = streams && until_line(to[o]) == until_line(to[0]);
    i64 i = 0, stop = head;
    while (true) {  // one by one up to a line, the lines, one by one to the end: each body written once
#pragma GCC unroll 1
        for (; i < stop; ++i) {
            A v[Outputs][1];
            values(i, Lanes<1>{}, v);
            for (std::size_t o = 0; o < Outputs; ++o) store(to[o] + i, v[o][0]);
        }
        if (i == n) return;
        for (const i64 last = i + (n - i) / L * L; i < last; i += step) {
            alignas(kLine) A v[Outputs][step];
            values(i, Lanes<step>{}, v);
            for (std::size_t o = 0; o < Outputs; ++o) {
                alignas(kLine) T part[step];
                narrow<step>(v[o], part);
                if (streams) {
                    stream<bytes>(to[o] + i, part);
                } else {
                    std::memcpy(to[o] + i, part, bytes);
                }
            }
        }
        stop = n;
    }
}

// What will be read soon, asked for into L2.
struct Ahead {
    i64 distance, until;  // elements: from what is read now, and where to stop asking

    Ahead from(i64 i) const { return {distance, until - i}; }

    template <class T>
    void ask(const T* x, i64 i) const {
        if (i < until) __builtin_prefetch(x + i + distance, 0, 2);
    }
};

template <class A, i64 L>
inline A total(const A (&lanes)[L]) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 j = 0; j < L; ++j) sum += lanes[j];
    return sum;
}

// One bit an element: bit k % 8 of byte k / 8 says whether the slope of element k is 1.
using Bits = std::uint8_t;

// A flag an element, 0 or -1, as one word.
template <i64 L, class Flag>
inline std::uint32_t word_of(const Flag* on) {
#if defined(__AVX512DQ__)
    if constexpr (L * sizeof(Flag) == kLine && sizeof(Flag) == 4)
        return _mm512_movepi32_mask(_mm512_loadu_si512(on));
    if constexpr (L * sizeof(Flag) == kLine && sizeof(Flag) == 8)
        return _mm512_movepi64_mask(_mm512_loadu_si512(on));
#endif
#if defined(__AVX2__)
    if constexpr (L * sizeof(Flag) == kLine) {
        const auto half = [&](i64 i) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(on + i)); };
        const __m256i low = half(0), high = half(L / 2);
        if constexpr (sizeof(Flag) == 4)
            return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(low)) |
                                              _mm256_movemask_ps(_mm256_castsi256_ps(high)) << 8);
        return static_cast<std::uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(low)) |
                                          _mm256_movemask_pd(_mm256_castsi256_pd(high)) << 4);
    }
#endif
    std::uint32_t word = 0;
    for (i64 j = 0; j < L; ++j) word |= static_cast<std::uint32_t>(on[j] & 1) << j;
    return word;
}

// The bytes at both ends of a stretch may belong to neighbours too, on another thread.
template <i64 L>
inline void put_bits(Bits* bits, i64 k, std::uint32_t word) {
    if (L % 8 == 0 && k % 8 == 0) {
        std::memcpy(bits + k / 8, &word, L / 8);
    } else {
        for (i64 j = 0; j < L; ++j) {
            Bits* byte = bits + (k + j) / 8;
            const Bits bit = static_cast<Bits>(1u << ((k + j) % 8));
            if (word >> j & 1) {
                __atomic_fetch_or(byte, bit, __ATOMIC_RELAXED);
            } else {
                __atomic_fetch_and(byte, static_cast<Bits>(~bit), __ATOMIC_RELAXED);
            }
        }
    }
}

}  // namespace EVENLY_ISA
}  // namespace evenly
