// One bit an element, in place of a residual that backward would have to read.
#pragma once

#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "step.hpp"

namespace evenly {
namespace EVENLY_ISA {

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
