// The elements of a step in the type that is computed with, and back.
#pragma once

#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "step.hpp"

namespace evenly {
namespace EVENLY_ISA {

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

}  // namespace EVENLY_ISA
}  // namespace evenly
