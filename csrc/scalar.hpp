// The four element types, and the arithmetic all steps share.
#pragma once

#include <cstdint>
#include <cstring>

namespace evenly {
namespace EVENLY_ISA {

struct bfloat16 {
    std::uint16_t bits;
};
struct float16 {
    std::uint16_t bits;
};

// Statistics and arithmetic are float32 for every type but float64.
template <class T>
struct accumulator {
    using type = float;
};
template <>
struct accumulator<double> {
    using type = double;
};
template <class T>
using accumulator_t = typename accumulator<T>::type;

template <class To, class From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline float load(const float* p) { return *p; }
inline double load(const double* p) { return *p; }
inline float load(const bfloat16* p) { return bit_cast<float>(static_cast<std::uint32_t>(p->bits) << 16); }

inline void store(float* p, float v) { *p = v; }
inline void store(double* p, double v) { *p = v; }

// Round to nearest even; a NaN stays one (rounding could carry its payload into infinity).
inline std::uint32_t rounded(float v) {
    const std::uint32_t u = bit_cast<std::uint32_t>(v);
    return v == v ? (u + 0x7fffu + ((u >> 16) & 1u)) >> 16 : 0x7fc0u;
}
inline void store(bfloat16* p, float v) { p->bits = static_cast<std::uint16_t>(rounded(v)); }

// float16 by integer arithmetic: exact, vectorizes everywhere, needs no F16C.
inline float load(const float16* p) {
    const std::uint32_t h = p->bits;
    const std::uint32_t sign = (h & 0x8000u) << 16;
    const std::uint32_t rest = (h & 0x7fffu) << 13;
    // Scaling by 2^112 moves the exponent, subnormals included; infinities and NaN are set apart.
    const float scaled = bit_cast<float>(rest) * 0x1p112f;
    const std::uint32_t special = rest | 0x7f800000u;
    const std::uint32_t magnitude = rest >= 0x0f800000u ? special : bit_cast<std::uint32_t>(scaled);
    return bit_cast<float>(sign | magnitude);
}

inline void store(float16* p, float v) {
    const std::uint32_t u = bit_cast<std::uint32_t>(v);
    const std::uint32_t sign = (u >> 16) & 0x8000u;
    const std::uint32_t a = u & 0x7fffffffu;
    // Normal numbers: move the exponent and round the 13 dropped bits to nearest even.
    const std::uint32_t normal = (a - 0x38000000u + 0x0fffu + ((a >> 13) & 1u)) >> 13;
    // Subnormal ones: adding 0.5 lets the float unit round at the right place.
    const std::uint32_t subnormal = bit_cast<std::uint32_t>(bit_cast<float>(a) + 0.5f) - 0x3f000000u;
    const std::uint32_t finite = a < 0x38800000u ? subnormal : normal;
    const std::uint32_t large = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
    p->bits = static_cast<std::uint16_t>(sign | (a >= 0x477ff000u ? large : finite));
}

// a * b + c. Forward and backward must round z equally, or its sign would differ between them,
// so contraction is off in the build and asked for here.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
inline float fma(float a, float b, float c) { return a * b + c; }
inline double fma(double a, double b, double c) { return a * b + c; }
#endif

}  // namespace EVENLY_ISA
}  // namespace evenly
