// Stores that pass the cache by.
#pragma once

#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "step.hpp"

namespace evenly {
namespace EVENLY_ISA {

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

}  // namespace EVENLY_ISA
}  // namespace evenly
