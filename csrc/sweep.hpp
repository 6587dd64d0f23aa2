// The moments of one set, stretch by stretch.
#pragma once

#include <algorithm>

#include "loops.hpp"
#include "moments.hpp"

namespace evenly {
namespace EVENLY_ISA {

template <class T>
struct Sweep {
    using A = accumulator_t<T>;
    Moments seen;
    A shift;
    double n, s1, s2;
    bool centered, started;

    void start(bool is_centered) {
        seen = {};
        shift = 0;
        n = s1 = s2 = 0;
        centered = is_centered;
        started = false;
    }

    void add(const T* x, i64 length, const Ahead& ahead) {
        constexpr double kFold = 2 * kPiece;
        for (i64 i = started ? 0 : add_first(x, std::min(kPiece, length), ahead); i < length; i += kPiece) {
            const i64 piece = std::min(kPiece, length - i);
            sum_about(x + i, piece, shift, ahead.from(i), s1, s2);
            n += static_cast<double>(piece);
            if (n >= std::min(kFold, seen.count)) fold();  // never many more than were seen before
        }
    }

    // The first piece, looked at again until its sums are taken about what is nearly its mean.
    i64 add_first(const T* x, i64 piece, const Ahead& ahead) {
        started = true;
        n = static_cast<double>(piece);
        if (centered) shift = mean_of_some<A>(x, piece);
        sum_about(x, piece, shift, ahead, s1, s2);
        for (int look = 0; centered && look < kLooks && is_far({}, n, s1, s2); ++look) {
            shift += static_cast<A>(s1 / n);
            s1 = s2 = 0;
            sum_about(x, piece, shift, Ahead{}, s1, s2);
        }
        fold();
        return piece;
    }

    // Weighted: each tile about its own mean, since what was seen before may weigh nothing.
    void add_masked(const T* x, const A* mask, i64 length) {
        A weight = 0, sum = 0;
#pragma omp simd reduction(+ : weight, sum)
        for (i64 i = 0; i < length; ++i) {
            const A value = load(x + i);
            weight += mask[i];
            sum += mask[i] > 0 ? mask[i] * value : A(0);
        }
        const A about = centered && weight > 0 ? sum / weight : A(0);
        A a1 = 0, a2 = 0;
#pragma omp simd reduction(+ : a1, a2)
        for (i64 i = 0; i < length; ++i) {
            const A value = load(x + i) - about;
            const A d = mask[i] > 0 ? value : A(0);
            a1 = fma(mask[i], d, a1);
            a2 = fma(mask[i] * d, d, a2);
        }
        seen.merge(about_shift(weight, about, a1, a2, centered));
    }

    void fold() {
        seen.merge(about_shift(n, shift, s1, s2, centered));
        shift = static_cast<A>(seen.mean);
        n = s1 = s2 = 0;
    }
};

}  // namespace EVENLY_ISA
}  // namespace evenly
