// Count, mean and m2 of a set, and sums about a shift that become them.
#pragma once

#include <cmath>

#include "scalar.hpp"

namespace evenly {
namespace EVENLY_ISA {

struct Moments {
    double count = 0, mean = 0, m2 = 0;

    // Chan, Golub and LeVeque; either may be empty.
    void merge(const Moments& other) {
        if (other.count <= 0) return;
        const double total = count + other.count;
        const double share = other.count / total;
        const double delta = other.mean - mean;
        mean += delta * share;
        m2 += other.m2 + delta * delta * count * share;
        count = total;
    }
};

// Sums of (x - shift) and (x - shift)^2 over `count` elements. Any shift is exact in real numbers;
// in floating point the error of m2 grows with (shift - mean)^2.
//
// The sweeps shift by the mean of what they saw before. If that is far from this tile's mean,
// the variance of the whole is at least as large as the square of the distance, by the merge
// formula above, so the error stays a rounding error of the whole: two-pass accuracy in one sweep.
inline Moments about_shift(double count, double shift, double s1, double s2, bool centered) {
    if (count <= 0) return {};
    if (!centered) return {count, 0, s2};
    const double mean = s1 / count;
    const double m2 = s2 - s1 * mean;
    return {count, shift + mean, m2 < 0 ? 0 : m2};  // a NaN stays one
}

inline double rstd_of(const Moments& m, double eps) {
    return 1 / std::sqrt(m.m2 / (m.count > 0 ? m.count : 1) + eps);
}

}  // namespace EVENLY_ISA
}  // namespace evenly
