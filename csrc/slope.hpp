// Where the slope of the activation comes from.
#pragma once

#include <cstring>

#include "activation.hpp"
#include "bits.hpp"
#include "convert.hpp"

namespace evenly {
namespace EVENLY_ISA {

// Where a slope comes from, a step at a time: from z itself,
template <Kind K, class A>
struct OfZ {
    A arg;
    template <i64 L>
    OfZ step(i64) const {
        return *this;
    }
    A at(i64, A z) const { return slope<K>(z, arg); }
};
template <class Slopes>
constexpr bool any_order = false;
template <Kind K, class A>
constexpr bool any_order<OfZ<K, A>> = true;
// from z and the residual,
template <Kind K, class T, class A>
struct OfSum {
    const T* residual;
    A arg;
    template <i64 L>
    OfSum step(i64 i) const {
        return {residual + i, arg};
    }
    A at(i64 j, A z) const { return slope<K>(z + load(residual + j), arg); }
};
// or from the bits that forward kept.
template <class A>
struct OfBits {
    const Bits* bits;
    i64 k;
    A low;  // the slope where the bit is not set
    struct Word {
        std::uint32_t word;
        A low;
        A at(i64 j, A) const { return word >> j & 1 ? A(1) : low; }
    };
    template <i64 L>
    Word step(i64 i) const {
        const Bits* first = bits + (k + i) / 8;
        const i64 shift = (k + i) % 8;
        if constexpr (L == 1) return {static_cast<std::uint32_t>(*first >> shift), low};
        std::uint32_t word = 0;
        std::memcpy(&word, first, L / 8);
        if (shift) word = (word | static_cast<std::uint32_t>(first[L / 8]) << L) >> shift;
        return {word, low};
    }
};

// d = x - mean and g = dy * slope of the elements of a step.
template <i64 L, class T, class A, class Affine, class Slopes>
inline void slope_step(const T* dy, const T* x, i64 i, const Affine& f, const Slopes& slopes, A* g, A* d) {
    widen<L>(x + i, d);
    widen<L>(dy + i, g);
    const auto slope_of = slopes.template step<L>(i);
#pragma omp simd
    for (i64 j = 0; j < L; ++j) {
        d[j] -= f.mean(i + j);
        g[j] *= slope_of.at(j, fma(d[j], f.scale(i + j), f.bias(i + j)));
    }
}

}  // namespace EVENLY_ISA
}  // namespace evenly
