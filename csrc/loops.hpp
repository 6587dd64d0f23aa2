// What is done to a stretch of neighbouring elements.
//
// Each loop goes line by line (line.hpp); the walks in forward.cpp and backward.cpp string the
// stretches together. Each stays a function of its own, since inlined among branches gcc leaves
// some of them scalar, and has all it calls inlined, since a line must not pass through memory.
#pragma once

#include "activation.hpp"
#include "affine.hpp"
#include "bits.hpp"
#include "convert.hpp"
#include "slope.hpp"
#include "stream.hpp"

#if !defined(EVENLY_LOOP)  // the sanitizers' build takes minutes longer with everything inlined
#define EVENLY_LOOP [[gnu::noinline, gnu::flatten]]
#endif

namespace evenly {
namespace EVENLY_ISA {

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

// The same of a tile, for those who need them apart.
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

// The same sums per element.
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

// A row's sums of weight * g and weight * g * d; g and g * xhat are added per element.
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

// The same, and the residual's gradient.
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
