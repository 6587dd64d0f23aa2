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
// in floating point the error of m2 is a rounding error of m2 + count * (shift - mean)^2.
//
// The sweeps shift by the mean of what they saw before. Where that is far from this tile's mean, and as
// many elements were seen as the tile has, the variance of the whole is at least half the square of the
// distance, by the merge formula above, so the error stays a rounding error of the whole. What is seen
// first is summed about the mean of a few of its elements. No choice of these is safe from outliers, so
// where the sums say that it was far from the mean (is_far), they are taken once more about the mean
// that they gave: two-pass accuracy in one sweep of memory.
inline Moments about_shift(double count, double shift, double s1, double s2, bool centered) {
    if (count <= 0) return {};
    if (!centered) return {count, 0, s2};
    const double mean = s1 / count;
    const double m2 = s2 - s1 * mean;
    return {count, shift + mean, m2 < 0 ? 0 : m2};  // a NaN stays one
}

// Elements whose mean is the first shift, and how often what is seen first is looked at again: each look
// brings the shift a million times nearer to the mean.
constexpr i64 kSample = 16;
constexpr int kLooks = 4;

// Whether the shift costs more than m2 itself, with what was seen before; sums as above.
inline bool is_far(const Moments& seen, double count, double s1, double s2) {
    const double distance = s1 / count, cost = s1 * distance;
    return cost > seen.m2 + (s2 - cost) + cost * seen.count / (seen.count + count);
}

inline double rstd_of(const Moments& m, double eps) {
    return 1 / std::sqrt(m.m2 / (m.count > 0 ? m.count : 1) + eps);
}

}  // namespace EVENLY_ISA
}  // namespace evenly
