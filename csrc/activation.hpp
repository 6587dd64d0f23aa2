// Activations and their slopes; numbers as in evenly/core/activation.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels.hpp"
#include "scalar.hpp"

namespace evenly {
namespace EVENLY_ISA {

// exp(z) = 2^n * (1 + p), with n integer and p = exp(r) - 1 for |r| <= ln(2) / 2.
struct SplitExp {
    float power, p;
};

inline SplitExp split_exp(float z) {
    z = z < -87.0f ? -87.0f : z;
    z = z > 88.0f ? 88.0f : z;
    constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const float shifted = fma(z, 1.44269504f, round);
    const float n = shifted - round;
    const float r = fma(n, 1.42860682e-6f, fma(n, -0.693148613f, z));
    float q = fma(r, 1.0f / 5040, 1.0f / 720);
    q = fma(q, r, 1.0f / 120);
    q = fma(q, r, 1.0f / 24);
    q = fma(q, r, 1.0f / 6);
    q = fma(q, r, 0.5f);
    const std::uint32_t exponent = bit_cast<std::uint32_t>(shifted) - bit_cast<std::uint32_t>(round) + 127u;
    return {bit_cast<float>(exponent << 23), fma(q, r * r, r)};
}

inline float exp(float z) {
    const SplitExp e = split_exp(z);
    return fma(e.power, e.p, e.power);
}
inline double exp(double z) { return std::exp(z); }

inline float expm1(float z) {
    const SplitExp e = split_exp(z);
    return fma(e.power, e.p, e.power - 1.0f);
}
inline double expm1(double z) { return std::expm1(z); }

template <class A>
struct Normal {
    A cdf, pdf;  // of the standard normal distribution
};

// The upper tail is exp(-z^2/2) * P(1 / (1 + 0.26 |z|)); P is a least-squares fit, relative error 6e-9.
inline Normal<float> normal(float z) {
    const float e = exp(-0.5f * z * z);
    const float a = z < 0 ? -z : z;
    const float t = 1.0f / fma(0.26f, a, 1.0f);
    float q = fma(t, 3.39291305e-02f, -1.70533695e-01f);
    q = fma(q, t, 2.91014593e-01f);
    q = fma(q, t, -2.00850394e-01f);
    q = fma(q, t, 2.00146491e-01f);
    q = fma(q, t, 3.11941371e-02f);
    q = fma(q, t, 1.09485468e-01f);
    q = fma(q, t, 1.01714773e-01f);
    q = fma(q, t, 1.03906668e-01f);
    q = fma(q, t, -7.16849077e-06f);
    const float tail = q * e;
    return {z < 0 ? tail : 1.0f - tail, 0.398942280f * e};
}
inline Normal<double> normal(double z) {
    return {0.5 * std::erfc(-z * 0.70710678118654752440), 0.39894228040143267794 * std::exp(-0.5 * z * z)};
}

template <class A>
inline A sigmoid(A z) {
    return A(1) / (A(1) + exp(-z));
}

// y = activation(z); a NaN stays one.
template <Kind K, class A>
inline A activate(A z, [[maybe_unused]] A arg) {
    if constexpr (K == Kind::relu) return z < 0 ? A(0) : z;
    if constexpr (K == Kind::relu6) {
        const A low = z < 0 ? A(0) : z;
        return low > 6 ? A(6) : low;
    }
    if constexpr (K == Kind::leaky_relu) return z > 0 ? z : z * arg;
    if constexpr (K == Kind::elu) {
        const A low = arg * expm1(z);
        return z > 0 ? z : low;
    }
    if constexpr (K == Kind::silu) return z * sigmoid(z);
    if constexpr (K == Kind::gelu) return z * normal(z).cdf;
    if constexpr (K == Kind::identity) return z;
}

// dy/dz; at a kink torch's choice.
template <Kind K, class A>
inline A slope(A z, [[maybe_unused]] A arg) {
    if constexpr (K == Kind::identity) return A(1);
    if constexpr (K == Kind::relu) return z > 0 ? A(1) : A(0);
    if constexpr (K == Kind::relu6) return (z > 0) & (z < 6) ? A(1) : A(0);
    if constexpr (K == Kind::leaky_relu) return z > 0 ? A(1) : arg;
    if constexpr (K == Kind::elu) {
        const A low = arg * exp(z);
        return z > 0 ? A(1) : low;
    }
    if constexpr (K == Kind::silu) {
        const A s = sigmoid(z);
        return s * fma(z, A(1) - s, A(1));
    }
    if constexpr (K == Kind::gelu) {
        const Normal<A> n = normal(z);
        return fma(z, n.pdf, n.cdf);
    }
}

template <Kind K>
struct Constant {
    static constexpr Kind value = K;
};

// Call f(Constant<K>{}): the kind as a constant.
template <class F>
inline void with_kind(Kind kind, const F& f) {
    switch (kind) {
        case Kind::identity:
            return f(Constant<Kind::identity>{});
        case Kind::relu:
            return f(Constant<Kind::relu>{});
        case Kind::relu6:
            return f(Constant<Kind::relu6>{});
        case Kind::leaky_relu:
            return f(Constant<Kind::leaky_relu>{});
        case Kind::elu:
            return f(Constant<Kind::elu>{});
        case Kind::silu:
            return f(Constant<Kind::silu>{});
        case Kind::gelu:
            return f(Constant<Kind::gelu>{});
    }
}

}  // namespace EVENLY_ISA
}  // namespace evenly
