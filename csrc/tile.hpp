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
    Columns from(i64 i) const { return {m + i, s + i, b + i, p_ ? p_ + i : nullptr, q_ ? q_ + i : nullptr}; }
    Run<A> run(i64 i) const { return {m[i], s[i], b[i], p_ ? p_[i] : 0, q_ ? q_[i] : 0}; }
};
// one each per run of `stride` elements: kept in registers along a run, and read for each element
// only where a step crosses into the next run,
template <class A>
struct Runs {
    Columns<A> each;
    i64 stride, end;  // end of the run that element 0 is in
    Runs from(i64 i) const { return {each.from(i), stride, end - i + (i - end + stride) / stride * stride}; }
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

// Cut the steps of elements i … last where their constants change: body(constants, first, last). Those
// of a single element: at_each.
template <i64 step, class Affine, class Body>
inline void over(const Affine& f, i64 i, i64 last, const Body& body) {
    body(f, i, last);
}
template <i64 step, class A, class Body>
inline void over(const Runs<A>& f, i64 i, i64 last, const Body& body) {
    for (i64 end = f.end; i < last; end += f.stride) {
        if (end <= i) continue;
        const i64 stop = i + (std::min(end, last) - i) / step * step;
        if (stop > i) body(f.each.run(i), i, stop), i = stop;
        if (i < end && i < last) body(f.each, i, i + step), i += step;
    }
}
template <class Affine>
inline const Affine& at_each(const Affine& f) {
    return f;
}
template <class A>
inline const Columns<A>& at_each(const Runs<A>& f) {
    return f.each;
}
template <class Affine>
constexpr bool is_run = false;
template <class A>
constexpr bool is_run<Run<A>> = true;

// Sum of (x - shift) and of its square.
template <class T, class A>
EVENLY_LOOP void sum_about(const T* x, i64 n, A shift, Ahead ahead, double& s1, double& s2) {
    alignas(kLine) A a1[2 * kStep<A>] = {}, a2[2 * kStep<A>] = {};
    in_order<T, A, true>(n, [&](i64 i, auto lanes) {
        ahead.ask<lanes>(x, i);
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

// Add sums per element to what is there; those of a run go to its first step. sums(constants, i, lanes, v, w)
// adds to each.
template <bool any_order, class T, class A, class Affine, class Sums>
inline void add(const Affine& f, i64 n, A* sum_v, A* sum_w, const Sums& sums) {
    constexpr i64 L = kStep<A>;
    over<L>(f, 0, n / L * L, [&](const auto& constants, i64 i, i64 last) {
        if constexpr (is_run<std::decay_t<decltype(constants)>>) {
            constexpr i64 both = any_order && by_pairs<T> ? 2 * L : L;
            alignas(kLine) A all_v[both], all_w[both];
            if (last - i >= both) {
                widen<both>(sum_v + i, all_v), widen<both>(sum_w + i, all_w);
                i64 k = i;
                for (; k + both <= last; k += both) sums(constants, k, Lanes<both>{}, all_v, all_w);
                if (k < last) sums(constants, k, Lanes<L>{}, all_v, all_w);
                widen<both>(all_v, sum_v + i), widen<both>(all_w, sum_w + i);
            } else {
                sums(constants, i, Lanes<L>{}, sum_v + i, sum_w + i);
            }
        } else {
            for (; i < last; i += L) sums(constants, i, Lanes<L>{}, sum_v + i, sum_w + i);
        }
    });
#pragma GCC unroll 1
    for (i64 i = n / L * L; i < n; ++i) sums(at_each(f), i, Lanes<1>{}, sum_v + i, sum_w + i);
}

// Sums of (x - shift) and of its square per element.
template <class T, class A, class Affine>
EVENLY_LOOP void add_about(const T* x, i64 n, Affine shift, Ahead ahead, A* s1, A* s2) {
    add<true, T>(shift, n, s1, s2, [&](const auto& f, i64 i, auto lanes, A* all1, A* all2) {
        ahead.ask<lanes>(x, i);
        alignas(kLine) A v[lanes];
        widen<lanes>(x + i, v);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) {
            const A d = v[j] - f.mean(i + j);
            all1[j] += d;
            all2[j] = fma(d, d, all2[j]);
        }
    });
}

template <class T, class A>
inline A mean_of(const T* x, i64 n) {
    A sum = 0;
    for (i64 i = 0; i < n; ++i) sum += load(x + i);
    return sum / A(n > 0 ? n : 1);
}

// Write n elements of each output: values(constants, first, Lanes<L>, v) makes the next L of them, one row
// of v for each output.
template <bool any_order, class A, class Affine, class T, std::size_t Outputs, class Values>
inline void write(const Affine& f, T* const (&to)[Outputs], i64 n, bool streams, const Values& values) {
    constexpr i64 L = kOfLine<T>, step = kStep<A>;
    const i64 head = std::min(n, until_line(to[0]));
    for (std::size_t o = 1; o < Outputs; ++o) streams = streams && until_line(to[o]) == until_line(to[0]);
    const auto put = [&](const auto& constants, i64 i, auto lanes) {
        constexpr i64 bytes = lanes * static_cast<i64>(sizeof(T));
        alignas(kLine) A v[Outputs][lanes];
        values(constants, i, lanes, v);
        for (std::size_t o = 0; o < Outputs; ++o) {
            alignas(kLine) T part[lanes];
            narrow<lanes>(v[o], part);
            if (streams) {
                stream<bytes>(to[o] + i, part);
            } else {
                std::memcpy(to[o] + i, part, bytes);
            }
        }
    };
    i64 i = 0, stop = head;
    while (true) {  // one by one up to a line, the lines, one by one to the end: each body written once
#pragma GCC unroll 1
        for (; i < stop; ++i) {
            A v[Outputs][1];
            values(at_each(f), i, Lanes<1>{}, v);
            for (std::size_t o = 0; o < Outputs; ++o) store(to[o] + i, v[o][0]);
        }
        if (i == n) return;
        stop = i + (n - i) / L * L;
        over<step>(f, i, stop, [&](const auto& constants, i64 k, i64 last) {
            if constexpr (any_order && by_pairs<T> && 2 * step == L &&
                          is_run<std::decay_t<decltype(constants)>>) {
                if ((k - head) % L != 0) put(constants, k, Lanes<step>{}), k += step;  // half a line
                for (; k + L <= last; k += L) put(constants, k, Lanes<L>{});
            }
            for (; k < last; k += step) put(constants, k, Lanes<step>{});
        });
        i = stop, stop = n;
    }
}

// y = activation(z), z = (x - mean) * scale + bias.
template <Kind K, class T, class A, class Affine>
EVENLY_LOOP void apply_tile(const T* x, i64 n, Affine affine, A arg, Ahead ahead, T* y, bool streams) {
    write<true, A>(affine, {y}, n, streams, [&](const auto& f, i64 i, auto lanes, auto& v) {
        ahead.ask<lanes>(x, i);
        widen<lanes>(x + i, v[0]);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j)
            v[0][j] = activate<K>(fma(v[0][j] - f.mean(i + j), f.scale(i + j), f.bias(i + j)), arg);
    });
}

// The same with a residual; the bits of z's slopes are kept where there is room for them.
template <Kind K, bool keeps, class T, class A, class Affine>
EVENLY_LOOP void residual_tile(const T* x, const T* residual, i64 n, Affine affine, A arg, Ahead ahead_x,
                               Ahead ahead_residual, Bits* bits, i64 k, T* y, bool streams) {
    write<false, A>(affine, {y}, n, streams, [&](const auto& f, i64 i, auto lanes, auto& v) {
        ahead_x.ask<lanes>(x, i), ahead_residual.ask<lanes>(residual, i);
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
    alignas(kLine) A a1[2 * kStep<A>] = {}, a2[2 * kStep<A>] = {};
    in_order<T, A, is_run<Affine> && any_order<Slopes>>(n, [&](i64 i, auto lanes) {
        ahead.ask<lanes>(dy, i), ahead.ask<lanes>(x, i);
        alignas(kLine) A g[lanes], d[lanes];
        slope_line<lanes>(dy, x, i, f, slopes, g, d);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) a1[j] += g[j], a2[j] = fma(g[j], d[j], a2[j]);
    });
    sum_g += total(a1);
    sum_gd += total(a2);
}

// The same sums per element.
template <class T, class A, class Affine, class Slopes>
EVENLY_LOOP void slope_add(const T* dy, const T* x, i64 n, Affine affine, Slopes slopes, Ahead ahead,
                           A* sum_g, A* sum_gd) {
    add<any_order<Slopes>, T>(affine, n, sum_g, sum_gd,
                              [&](const auto& f, i64 i, auto lanes, A* all_g, A* all_gd) {
                                  ahead.ask<lanes>(dy, i), ahead.ask<lanes>(x, i);
                                  alignas(kLine) A g[lanes], d[lanes];
                                  slope_line<lanes>(dy, x, i, f, slopes, g, d);
#pragma omp simd
                                  for (i64 j = 0; j < lanes; ++j)
                                      all_g[j] += g[j], all_gd[j] = fma(g[j], d[j], all_gd[j]);
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
EVENLY_LOOP void input_tile(const T* dy, const T* x, i64 n, Affine affine, Slopes slopes, Ahead ahead, T* dx,
                            bool streams) {
    write<any_order<Slopes>, A>(affine, {dx}, n, streams, [&](const auto& f, i64 i, auto lanes, auto& v) {
        ahead.ask<lanes>(dy, i), ahead.ask<lanes>(x, i);
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
EVENLY_LOOP void inputs_tile(const T* dy, const T* x, i64 n, Affine affine, Slopes slopes, Ahead ahead, T* dx,
                             T* dresidual, bool streams) {
    write<any_order<Slopes>, A>(
        affine, {dx, dresidual}, n, streams, [&](const auto& f, i64 i, auto lanes, auto& v) {
            ahead.ask<lanes>(dy, i), ahead.ask<lanes>(x, i);
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
