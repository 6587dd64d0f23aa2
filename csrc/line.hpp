// A step: the elements that are read, computed with and written at once.
//
// Loops of constant length widen a step's elements, compute with them and narrow the result. A step
// fills one register, so the compiler turns each loop into one instruction, keeps the arrays between
// them in registers, and the result is stored once, or streamed past the cache.
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

// Bytes of a register, and the elements of a step: eight at least, whose bits make a byte.
#if defined(__AVX512F__)
constexpr i64 kRegister = 64;
#elif defined(__AVX__)
constexpr i64 kRegister = 32;
#else
constexpr i64 kRegister = 16;
#endif
template <class A>
constexpr i64 kStep = std::max<i64>(8, kRegister / static_cast<i64>(sizeof(A)));

template <i64 N>
using Lanes = std::integral_constant<i64, N>;

// Call body(first, Lanes<L>) for every step of L elements, then for the remaining ones alone.
template <class A, class Body>
inline void in_steps(i64 n, const Body& body) {
    constexpr i64 L = kStep<A>;
    i64 i = 0;
    for (; i + L <= n; i += L) body(i, Lanes<L>{});
#pragma GCC unroll 1
    for (; i < n; ++i) body(i, Lanes<1>{});
}

// Two steps of bfloat16 are cheaper to widen at once, in an order of their own; other types gain nothing
// by it (from memory, twice the requests in one go are slower).
template <class T>
constexpr bool by_pairs = std::is_same_v<T, bfloat16>;

// The same, by two steps where the order of elements does not matter.
template <class T, class A, bool any_order, class Body>
inline void in_order(i64 n, const Body& body) {
    constexpr i64 both = 2 * kStep<A>;
    const i64 pairs = any_order && by_pairs<T> ? n / both * both : 0;
    if constexpr (any_order && by_pairs<T>)
        for (i64 i = 0; i < pairs; i += both) body(i, Lanes<both>{});
    in_steps<A>(n - pairs, [&](i64 i, auto lanes) { body(pairs + i, lanes); });
}

// The elements of a step in the type that is computed with, and back. What is left to the compiler
// passes through memory in pieces of another size, and waits there: copies, since it makes a memcpy
// of them, and 16-bit types, which it splits into registers of two sizes.
template <i64 L, class A>
inline void widen(const A* from, A* to) {
    if constexpr (L == 1) {
        *to = *from;
    } else {
        typedef A Register __attribute__((vector_size(kRegister), aligned(sizeof(A)), may_alias));
        for (i64 i = 0; i < L * static_cast<i64>(sizeof(A)) / kRegister; ++i)
            reinterpret_cast<Register*>(to)[i] = reinterpret_cast<const Register*>(from)[i];
    }
}

template <i64 L, class A>
inline void narrow(const A* from, A* to) {
    widen<L>(from, to);
}

#if defined(__AVX2__)
template <i64 L>
inline auto load_halves(const void* from) {
    if constexpr (L == 16) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(from));
    } else {
        return _mm_loadu_si128(static_cast<const __m128i*>(from));
    }
}
#endif

// A register of pairs of 16-bit elements. Not inside the functions: gcc 12 forgets there, in a template,
// that it may alias.
typedef std::uint32_t Words __attribute__((vector_size(kRegister), aligned(2), may_alias));

// Two steps of bfloat16 come as the even elements and then the odd ones, the halves of 32-bit words.
template <i64 L>
inline void widen(const bfloat16* from, float* to) {
    if constexpr (L == 2 * kStep<float>) {
        constexpr i64 registers = L * 2 / kRegister;
        for (i64 i = 0; i < registers; ++i) {
            const Words words = reinterpret_cast<const Words*>(from)[i];
            reinterpret_cast<Words*>(to)[i] = words << 16;
            reinterpret_cast<Words*>(to)[registers + i] = words & 0xffff0000u;
        }
        return;
    }
#if defined(__AVX512F__)
    if constexpr (L == 16)
        return _mm512_storeu_si512(to, _mm512_slli_epi32(_mm512_cvtepu16_epi32(load_halves<L>(from)), 16));
#elif defined(__AVX2__)
    if constexpr (L == 8)
        return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                                   _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves<L>(from)), 16));
#endif
#pragma omp simd
    for (i64 j = 0; j < L; ++j) to[j] = load(from + j);
}

template <i64 L>
inline void widen(const float16* from, float* to) {
#if defined(__AVX512F__)
    if constexpr (L == 16) return _mm512_storeu_ps(to, _mm512_cvtph_ps(load_halves<L>(from)));
#elif defined(__AVX2__) && defined(__F16C__)
    if constexpr (L == 8) return _mm256_storeu_ps(to, _mm256_cvtph_ps(load_halves<L>(from)));
#endif
#pragma omp simd
    for (i64 j = 0; j < L; ++j) to[j] = load(from + j);
}

template <i64 L>
inline void narrow_halves(const float* even, const float* odd, bfloat16* to) {
#if defined(__AVX512BF16__)
    const __m512bh halves = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(odd), _mm512_loadu_ps(even));
    __m512i all;
    std::memcpy(&all, &halves, sizeof(all));
    alignas(kLine) static constexpr std::uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                               21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                               11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(order), all));
#else
    alignas(kLine) std::uint32_t words[L];
#pragma omp simd
    for (i64 j = 0; j < L; ++j) words[j] = rounded(even[j]) | rounded(odd[j]) << 16;
    for (i64 i = 0; i < L * 4 / kRegister; ++i)
        reinterpret_cast<Words*>(to)[i] = reinterpret_cast<const Words*>(words)[i];
#endif
}

template <i64 L>
inline void narrow(const float* from, bfloat16* to) {
    if constexpr (L == 2 * kStep<float>) return narrow_halves<L / 2>(from, from + L / 2, to);
#if defined(__AVX512BF16__)
    if constexpr (L == 16) {
        const __m256bh half = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
        std::memcpy(to, &half, sizeof(half));
        return;
    }
#elif defined(__AVX2__)
    if constexpr (L == kStep<float>) {
        alignas(kLine) std::uint32_t wide[L];
#pragma omp simd
        for (i64 j = 0; j < L; ++j) wide[j] = rounded(from[j]);
#if defined(__AVX512F__)
        const __m256i half = _mm512_cvtepi32_epi16(_mm512_loadu_si512(wide));
#else
        const __m256i all = _mm256_load_si256(reinterpret_cast<const __m256i*>(wide));
        const __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
#endif
        std::memcpy(to, &half, sizeof(half));
        return;
    }
#endif
#pragma omp simd
    for (i64 j = 0; j < L; ++j) store(to + j, from[j]);
}

template <i64 L>
inline void narrow(const float* from, float16* to) {
#if defined(__AVX512F__)
    if constexpr (L == 16) {
        const __m256i half =
            _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        std::memcpy(to, &half, sizeof(half));
        return;
    }
#elif defined(__AVX2__) && defined(__F16C__)
    if constexpr (L == 8) {
        const __m128i half =
            _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        std::memcpy(to, &half, sizeof(half));
        return;
    }
#endif
#pragma omp simd
    for (i64 j = 0; j < L; ++j) store(to + j, from[j]);
}

// A step past the cache: its line need not be read first, and evicts nothing.
template <i64 bytes>
inline void stream(void* to, const void* from) {
#if defined(__AVX512F__)
    if constexpr (bytes == 64)
        return _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#endif
#if defined(__AVX__)
    if constexpr (bytes % 32 == 0) {
        for (int i = 0; i < bytes / 32; ++i)
            _mm256_stream_si256(static_cast<__m256i*>(to) + i,
                                _mm256_loadu_si256(static_cast<const __m256i*>(from) + i));
        return;
    }
#endif
#if defined(__SSE2__)
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

// What will be read soon, asked for into L2.
struct Ahead {
    i64 distance = 0, until = 0;  // elements: from what is read now, and where to stop asking

    Ahead from(i64 i) const { return {distance, until - i}; }

    template <i64 L, class T>
    void ask(const T* x, i64 i) const {
        if (i >= until || i % kOfLine<T> >= L) return;  // once a line
        for (i64 j = 0; j < L; j += kOfLine<T>) __builtin_prefetch(x + i + distance + j, 0, 2);
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
    if constexpr (L > 1) {
        constexpr i64 each = 32 / static_cast<i64>(sizeof(Flag));
        std::uint32_t word = 0;
        for (i64 i = 0; i < L; i += each) {
            const __m256i part = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(on + i));
            const int bits = sizeof(Flag) == 4 ? _mm256_movemask_ps(_mm256_castsi256_ps(part))
                                               : _mm256_movemask_pd(_mm256_castsi256_pd(part));
            word |= static_cast<std::uint32_t>(bits) << i;
        }
        return word;
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
