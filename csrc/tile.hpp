// What is done to a stretch of neighbouring elements.
//
// Each loop goes line by line (line.hpp); the walks in forward.cpp and backward.cpp string the
// stretches together. Each stays a function of its own, since inlined among branches gcc leaves
// some of them scalar, and has all it calls inlined, since a line must not pass through memory.
#pragma once

#include "activation.hpp"
#include "line.hpp"

#if !defined(EVENLY_LOOP)  // the sanitizers' build takes minutes longer with everything inlined
#define EVENLY_LOOP [[gnu::noinline, gnu::flatten]]
#endif

namespace evenly {
namespace EVENLY_ISA {

// Where a tile's numbers come from: one each for the whole tile,
//   forward   z  = (x - mean) * scale + bias,  scale = rstd * weight
//   backward  dx = scale * g + p * (x - mean) + q
template <class A>
struct Run {
    A m, s, b, p_ = 0, q_ = 0;
    A mean(i64) const { return m; }
    A scale(i64) const { return s; }
    A bias(i64) const { return b; }
    A p(i64) const { return p_; }
    A q(i64) const { return q_; }
    Run from(i64) const { return *this; }
};
// one each per element,
template <class A>
struct Columns {
    const A *m, *s, *b, *p_ = nullptr, *q_ = nullptr;
    A mean(i64 i) const { return m[i]; }
    A scale(i64 i) const { return s[i]; }
    A bias(i64 i) const { return b[i]; }
    A p(i64 i) const { return p_[i]; }
    A q(i64 i) const { return q_[i]; }
    Columns from(i64 i) const { return {m + i, s + i, b + i, p_ + i, q_ + i}; }
};
// or the mean shared and weight and bias per element.
template <class A>
struct Row {
    A m, r;
    const A *w, *b;
    A p_ = 0, q_ = 0;
    A mean(i64) const { return m; }
    A scale(i64 i) const { return r * w[i]; }
    A bias(i64 i) const { return b[i]; }
    A p(i64) const { return p_; }
    A q(i64) const { return q_; }
    Row from(i64 i) const { return {m, r, w + i, b + i, p_, q_}; }
};

// Sum of (x - shift) and of its square.
template <class T, class A>
EVENLY_LOOP void sum_about(const T* x, i64 n, A shift, Ahead ahead, double& s1, double& s2) {
    alignas(kLine) A a1[kStep<A>] = {}, a2[kStep<A>] = {};
    in_steps<A>(n, [&](i64 i, auto lanes) {
        ahead.ask(x, i);
        alignas(kLine) A v[lanes];
        widen<lanes>(x + i, v);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) {
            const A d = v[j] - shift;
            a1[j] += d;
            a2[j] = fma(d, d, a2[j]);
        }
    });
    s1 += total(a1);
    s2 += total(a2);
}

// The same sums per element, added to what is there.
template <class T, class A>
EVENLY_LOOP void add_about(const T* x, i64 n, const A* shift, Ahead ahead, A* s1, A* s2) {
    in_steps<A>(n, [&](i64 i, auto lanes) {
        ahead.ask(x, i);
        alignas(kLine) A v[lanes];
        widen<lanes>(x + i, v);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) {
            const A d = v[j] - shift[i + j];
            s1[i + j] += d;
            s2[i + j] = fma(d, d, s2[i + j]);
        }
    });
}

template <class T, class A>
inline A mean_of(const T* x, i64 n) {
    A sum = 0;
    for (i64 i = 0; i < n; ++i) sum += load(x + i);
    return sum / A(n > 0 ? n : 1);
}

// y = activation(z), z = (x - mean) * scale + bias.
template <Kind K, class T, class A, class Affine>
EVENLY_LOOP void apply_tile(const T* x, i64 n, Affine f, A arg, Ahead ahead, T* y, bool streams) {
    write<A>({y}, n, streams, [&](i64 i, auto lanes, auto& v) {
        ahead.ask(x, i);
        widen<lanes>(x + i, v[0]);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j)
            v[0][j] = activate<K>(fma(v[0][j] - f.mean(i + j), f.scale(i + j), f.bias(i + j)), arg);
    });
}

// The same with a residual; the bits of z's slopes are kept where there is room for them.
template <Kind K, bool keeps, class T, class A, class Affine>
EVENLY_LOOP void residual_tile(const T* x, const T* residual, i64 n, Affine f, A arg, Ahead ahead, Bits* bits,
                               i64 k, T* y, bool streams) {
    write<A>({y}, n, streams, [&](i64 i, auto lanes, auto& v) {
        ahead.ask(residual, i);
        alignas(kLine) A z[lanes];
        widen<lanes>(x + i, v[0]);
        widen<lanes>(residual + i, z);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) z[j] += fma(v[0][j] - f.mean(i + j), f.scale(i + j), f.bias(i + j));
        if constexpr (keeps) {
            using Flag = std::conditional_t<sizeof(A) == 8, std::int64_t, std::int32_t>;
            alignas(kLine) Flag on[lanes];
#pragma omp simd
            for (i64 j = 0; j < lanes; ++j) on[j] = slope<K>(z[j], A(0)) == A(1) ? -1 : 0;
            put_bits<lanes>(bits, k + i, word_of<lanes>(on));
        }
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) v[0][j] = activate<K>(z[j], arg);
    });
}

// Where a slope comes from, a line at a time: from z itself,
template <Kind K, class A>
struct OfZ {
    A arg;
    template <i64 L>
    OfZ line(i64) const {
        return *this;
    }
    A at(i64, A z) const { return slope<K>(z, arg); }
};
// from z and the residual,
template <Kind K, class T, class A>
struct OfSum {
    const T* residual;
    A arg;
    template <i64 L>
    OfSum line(i64 i) const {
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
    Word line(i64 i) const {
        const Bits* first = bits + (k + i) / 8;
        const i64 shift = (k + i) % 8;
        if constexpr (L == 1) return {static_cast<std::uint32_t>(*first >> shift), low};
        std::uint32_t word = 0;
        std::memcpy(&word, first, L / 8);
        if (shift) word = (word | static_cast<std::uint32_t>(first[L / 8]) << L) >> shift;
        return {word, low};
    }
};

// d = x - mean and g = dy * slope of the elements of a line.
template <i64 L, class T, class A, class Affine, class Slopes>
inline void slope_line(const T* dy, const T* x, i64 i, const Affine& f, const Slopes& slopes, A* g, A* d) {
    widen<L>(x + i, d);
    widen<L>(dy + i, g);
    const auto slope_of = slopes.template line<L>(i);
#pragma omp simd
    for (i64 j = 0; j < L; ++j) {
        d[j] -= f.mean(i + j);
        g[j] *= slope_of.at(j, fma(d[j], f.scale(i + j), f.bias(i + j)));
    }
}

// The same of a tile, for those who need them apart.
template <class T, class A, class Affine, class Slopes>
EVENLY_LOOP void slope_tile(const T* dy, const T* x, i64 n, Affine f, Slopes slopes, A* g, A* d) {
    in_steps<A>(n, [&](i64 i, auto lanes) { slope_line<lanes>(dy, x, i, f, slopes, g + i, d + i); });
}

// Sums of g and g * d.
template <class A, class T, class Affine, class Slopes>
EVENLY_LOOP void slope_sums(const T* dy, const T* x, i64 n, Affine f, Slopes slopes, Ahead ahead,
                            double& sum_g, double& sum_gd) {
    alignas(kLine) A a1[kStep<A>] = {}, a2[kStep<A>] = {};
    in_steps<A>(n, [&](i64 i, auto lanes) {
        ahead.ask(dy, i), ahead.ask(x, i);
        alignas(kLine) A g[lanes], d[lanes];
        slope_line<lanes>(dy, x, i, f, slopes, g, d);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) a1[j] += g[j], a2[j] = fma(g[j], d[j], a2[j]);
    });
    sum_g += total(a1);
    sum_gd += total(a2);
}

// The same sums per element, added to what is there.
template <class T, class A, class Affine, class Slopes>
EVENLY_LOOP void slope_add(const T* dy, const T* x, i64 n, Affine f, Slopes slopes, Ahead ahead, A* sum_g,
                           A* sum_gd) {
    in_steps<A>(n, [&](i64 i, auto lanes) {
        ahead.ask(dy, i), ahead.ask(x, i);
        alignas(kLine) A g[lanes], d[lanes];
        slope_line<lanes>(dy, x, i, f, slopes, g, d);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) sum_g[i + j] += g[j], sum_gd[i + j] = fma(g[j], d[j], sum_gd[i + j]);
    });
}

// A row's sums of weight * g and weight * g * d; g and g * xhat are added per element.
template <class A, class T, class Slopes>
EVENLY_LOOP void row_sums(const T* dy, const T* x, i64 n, Row<A> f, Slopes slopes, A* g_each, A* gx_each,
                          double& sum_g, double& sum_gd) {
    alignas(kLine) A a1[kStep<A>] = {}, a2[kStep<A>] = {};
    in_steps<A>(n, [&](i64 i, auto lanes) {
        alignas(kLine) A g[lanes], d[lanes];
        slope_line<lanes>(dy, x, i, f, slopes, g, d);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) {
            const A wg = f.w[i + j] * g[j];
            a1[j] += wg;
            a2[j] = fma(wg, d[j], a2[j]);
            g_each[i + j] += g[j];
            gx_each[i + j] = fma(g[j] * f.r, d[j], gx_each[i + j]);
        }
    });
    sum_g += total(a1);
    sum_gd += total(a2);
}

// dx straight from dy and x; through given statistics nothing passed, not even a NaN.
template <bool measured, class A, class T, class Affine, class Slopes>
EVENLY_LOOP void input_tile(const T* dy, const T* x, i64 n, Affine f, Slopes slopes, Ahead ahead, T* dx,
                            bool streams) {
    write<A>({dx}, n, streams, [&](i64 i, auto lanes, auto& v) {
        ahead.ask(dy, i), ahead.ask(x, i);
        alignas(kLine) A d[lanes];
        slope_line<lanes>(dy, x, i, f, slopes, v[0], d);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) {
            const A through = measured ? fma(f.p(i + j), d[j], f.q(i + j)) : A(0);
            v[0][j] = measured ? fma(f.scale(i + j), v[0][j], through) : f.scale(i + j) * v[0][j];
        }
    });
}

// The same, and the residual's gradient.
template <class A, class T, class Affine, class Slopes>
EVENLY_LOOP void inputs_tile(const T* dy, const T* x, i64 n, Affine f, Slopes slopes, Ahead ahead, T* dx,
                             T* dresidual, bool streams) {
    write<A>({dx, dresidual}, n, streams, [&](i64 i, auto lanes, auto& v) {
        ahead.ask(dy, i), ahead.ask(x, i);
        alignas(kLine) A d[lanes];
        slope_line<lanes>(dy, x, i, f, slopes, v[1], d);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j)
            v[0][j] = fma(f.scale(i + j), v[1][j], fma(f.p(i + j), d[j], f.q(i + j)));
    });
}

// The weights of elements k … k + n: a mask by element is read in place, one by position spread out.
template <class A>
inline const A* mask_tile(const A* mask, bool by_element, const Partition& p, i64 k, i64 n, A* buffer) {
    if (by_element) return mask + k;
    const i64 span = p.channels * p.stride;
    for (i64 i = 0; i < n;) {
        const i64 within = (k + i) % span, position = (k + i) / span * p.stride;
        if (p.stride == 1) {  // one weight for all channels of a place
            const i64 length = std::min(n - i, span - within);
            for (i64 j = 0; j < length; ++j) buffer[i + j] = mask[position];
            i += length;
        } else {
            const i64 place = within % p.stride, length = std::min(n - i, p.stride - place);
            for (i64 j = 0; j < length; ++j) buffer[i + j] = mask[position + place + j];
            i += length;
        }
    }
    return buffer;
}

}  // namespace EVENLY_ISA
}  // namespace evenly
