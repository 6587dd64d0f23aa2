// What is done to a stretch of neighbouring elements.
//
// Each loop goes step by step (step.hpp); the walks string the stretches together. Each loop stays a
// function of its own, since gcc leaves some of them scalar when they are inlined among branches, and has
// all that it calls inlined, since a step must not pass through memory.
#pragma once

#include "activation.hpp"
#include "affine.hpp"
#include "bits.hpp"
#include "convert.hpp"
#include "moments.hpp"
#include "slope.hpp"
#include "stream.hpp"

#if !defined(EVENLY_LOOP)  // the sanitizers' build takes minutes longer with everything inlined
#define EVENLY_LOOP [[gnu::noinline, gnu::flatten]]
#endif

namespace evenly {
namespace EVENLY_ISA {

// Add the sums of some elements to those of all.
template <i64 L, class A>
inline void add_step(const A* some, A* sum) {
    alignas(kLine) A all[L];
    widen<L>(sum, all);
#pragma omp simd
    for (i64 j = 0; j < L; ++j) all[j] += some[j];
    widen<L>(all, sum);
}

// Sum of (x - shift) and of its square. No sum takes up more than kChain numbers one by one: an outlier in
// it would round all that follow to its own last bit, and all the same way.
template <class T, class A>
EVENLY_LOOP void sum_about(const T* x, i64 n, A shift, Ahead ahead, double& s1, double& s2) {
    constexpr i64 chain = kChain * kStep<A> * (by_pairs<T> ? 2 : 1);
    alignas(kLine) A all1[2 * kStep<A>] = {}, all2[2 * kStep<A>] = {};
    for (i64 first = 0; first < n; first += chain) {
        alignas(kLine) A a1[2 * kStep<A>] = {}, a2[2 * kStep<A>] = {};
        in_order<T, A, true>(std::min(chain, n - first), [&](i64 i, auto lanes) {
            ahead.ask<lanes>(x, first + i);
            alignas(kLine) A v[lanes];
            widen<lanes>(x + first + i, v);
#pragma omp simd
            for (i64 j = 0; j < lanes; ++j) {
                const A d = v[j] - shift;
                a1[j] += d;
                a2[j] = fma(d, d, a2[j]);
            }
        });
        add_step<2 * kStep<A>>(a1, all1), add_step<2 * kStep<A>>(a2, all2);
    }
    s1 += total(all1);
    s2 += total(all2);
}

// Add sums per element to what is there; those of a run start at 0 and go to its first step, so that a sum
// takes up one number of each run, not all its elements. sums(constants, i, lanes, v, w) adds to each.
template <bool any_order, class T, class A, class Affine, class Sums>
inline void add(const Affine& f, i64 n, A* sum_v, A* sum_w, const Sums& sums) {
    constexpr i64 L = kStep<A>;
    over<L>(f, 0, n / L * L, [&](const auto& constants, i64 i, i64 last) {
        if constexpr (is_run<std::decay_t<decltype(constants)>>) {
            constexpr i64 both = any_order && by_pairs<T> ? 2 * L : L;
            if (last - i >= both) {
                alignas(kLine) A all_v[both] = {}, all_w[both] = {};
                i64 k = i;
                for (; k + both <= last; k += both) sums(constants, k, Lanes<both>{}, all_v, all_w);
                if (k < last) sums(constants, k, Lanes<L>{}, all_v, all_w);
                add_step<both>(all_v, sum_v + i), add_step<both>(all_w, sum_w + i);
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

// The mean of a few of n elements, spread over them.
template <class A, class T>
inline A mean_of_some(const T* x, i64 n) {
    const i64 some = std::min(kSample, n);
    A sum = 0;
    for (i64 i = 0; i < some; ++i) sum += load(x + i * n / some);
    return sum / A(some);
}

// Write n elements of each output: values(constants, first, Lanes<L>, v) makes the next L of them,
// v[o] for output o.
template <bool any_order, class A, class Affine, class T, std::size_t Outputs, class Values>
inline void write(const Affine& f, T* const (&to)[Outputs], i64 n, bool streams, const Values& values) {
    constexpr i64 L = kOfLine<T>, step = kStep<A>;
    constexpr i64 kLong = 256;  // elements for which whole lines are worth single steps before them
    const i64 head = streams || n >= kLong ? std::min(n, until_line(to[0])) : 0;
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
    while (true) {  // elements up to a cache line, whole lines, elements to the end: each body written once
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
                if ((k - head) % L != 0) put(constants, k, Lanes<step>{}), k += step;  // half a cache line
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

// y = activation(z), z = (x - mean) * scale + bias + residual; the bits of z's slopes are kept if asked for.
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

// d and g of a tile, for those who need them apart.
template <class T, class A, class Affine, class Slopes>
EVENLY_LOOP void slope_tile(const T* dy, const T* x, i64 n, Affine f, Slopes slopes, A* g, A* d) {
    in_steps<A>(n, [&](i64 i, auto lanes) { slope_step<lanes>(dy, x, i, f, slopes, g + i, d + i); });
}

// Sums of g and g * d.
template <class A, class T, class Affine, class Slopes>
EVENLY_LOOP void slope_sums(const T* dy, const T* x, i64 n, Affine f, Slopes slopes, Ahead ahead,
                            double& sum_g, double& sum_gd) {
    alignas(kLine) A a1[2 * kStep<A>] = {}, a2[2 * kStep<A>] = {};
    in_order<T, A, is_run<Affine> && any_order<Slopes>>(n, [&](i64 i, auto lanes) {
        ahead.ask<lanes>(dy, i), ahead.ask<lanes>(x, i);
        alignas(kLine) A g[lanes], d[lanes];
        slope_step<lanes>(dy, x, i, f, slopes, g, d);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) a1[j] += g[j], a2[j] = fma(g[j], d[j], a2[j]);
    });
    sum_g += total(a1);
    sum_gd += total(a2);
}

// Sums of g and g * d per element.
template <class T, class A, class Affine, class Slopes>
EVENLY_LOOP void slope_add(const T* dy, const T* x, i64 n, Affine affine, Slopes slopes, Ahead ahead,
                           A* sum_g, A* sum_gd) {
    add<any_order<Slopes>, T>(affine, n, sum_g, sum_gd,
                              [&](const auto& f, i64 i, auto lanes, A* all_g, A* all_gd) {
                                  ahead.ask<lanes>(dy, i), ahead.ask<lanes>(x, i);
                                  alignas(kLine) A g[lanes], d[lanes];
                                  slope_step<lanes>(dy, x, i, f, slopes, g, d);
#pragma omp simd
                                  for (i64 j = 0; j < lanes; ++j)
                                      all_g[j] += g[j], all_gd[j] = fma(g[j], d[j], all_gd[j]);
                              });
}

// A set's sums of weight * g and weight * g * d; g and g * xhat are added per element.
template <class A, class T, class Slopes>
EVENLY_LOOP void set_sums(const T* dy, const T* x, i64 n, Elementwise<A> f, Slopes slopes, A* g_each,
                          A* gx_each, double& sum_g, double& sum_gd) {
    alignas(kLine) A a1[kStep<A>] = {}, a2[kStep<A>] = {};
    in_steps<A>(n, [&](i64 i, auto lanes) {
        alignas(kLine) A g[lanes], d[lanes];
        slope_step<lanes>(dy, x, i, f, slopes, g, d);
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

// Sums of weight * g and weight * g * d per element, and a row's sums of g and g * xhat.
template <class A, class T, class Slopes>
EVENLY_LOOP void place_sums(const T* dy, const T* x, i64 n, Places<A> f, Slopes slopes, Ahead ahead,
                            A* g_each, A* gd_each, double& sum_g, double& sum_gx) {
    alignas(kLine) A a1[kStep<A>] = {}, a2[kStep<A>] = {};
    in_steps<A>(n, [&](i64 i, auto lanes) {
        ahead.ask<lanes>(dy, i), ahead.ask<lanes>(x, i);
        alignas(kLine) A g[lanes], d[lanes];
        slope_step<lanes>(dy, x, i, f, slopes, g, d);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) {
            a1[j] += g[j];
            a2[j] = fma(g[j] * f.rstd(i + j), d[j], a2[j]);
            const A wg = f.w * g[j];
            g_each[i + j] += wg;
            gd_each[i + j] = fma(wg, d[j], gd_each[i + j]);
        }
    });
    sum_g += total(a1);
    sum_gx += total(a2);
}

// dx straight from dy and x; through given statistics nothing passed, not even a NaN.
template <bool measured, class A, class T, class Affine, class Slopes>
EVENLY_LOOP void input_tile(const T* dy, const T* x, i64 n, Affine affine, Slopes slopes, Ahead ahead, T* dx,
                            bool streams) {
    write<any_order<Slopes>, A>(affine, {dx}, n, streams, [&](const auto& f, i64 i, auto lanes, auto& v) {
        ahead.ask<lanes>(dy, i), ahead.ask<lanes>(x, i);
        alignas(kLine) A d[lanes];
        slope_step<lanes>(dy, x, i, f, slopes, v[0], d);
#pragma omp simd
        for (i64 j = 0; j < lanes; ++j) {
            const A through = measured ? fma(f.p(i + j), d[j], f.q(i + j)) : A(0);
            v[0][j] = measured ? fma(f.scale(i + j), v[0][j], through) : f.scale(i + j) * v[0][j];
        }
    });
}

// dx, and the residual's gradient.
template <class A, class T, class Affine, class Slopes>
EVENLY_LOOP void inputs_tile(const T* dy, const T* x, i64 n, Affine affine, Slopes slopes, Ahead ahead, T* dx,
                             T* dresidual, bool streams) {
    write<any_order<Slopes>, A>(
        affine, {dx, dresidual}, n, streams, [&](const auto& f, i64 i, auto lanes, auto& v) {
            ahead.ask<lanes>(dy, i), ahead.ask<lanes>(x, i);
            alignas(kLine) A d[lanes];
            slope_step<lanes>(dy, x, i, f, slopes, v[1], d);
#pragma omp simd
            for (i64 j = 0; j < lanes; ++j)
                v[0][j] = fma(f.scale(i + j), v[1][j], fma(f.p(i + j), d[j], f.q(i + j)));
        });
}

}  // namespace EVENLY_ISA
}  // namespace evenly
