// A step: the elements that are read, computed with and written at once.
//
// Loops of constant length widen a step's elements, compute with them and narrow the result. A step
// fills one register, so the compiler turns each loop into one instruction, keeps the arrays between
// them in registers, and the result is stored once, or streamed past the cache.
#pragma once

#include <algorithm>
#include <type_traits>

#include "partition.hpp"
#include "scalar.hpp"

namespace evenly {
namespace EVENLY_ISA {

constexpr i64 kTile = 1024;   // elements of a buffer in L1
constexpr i64 kPiece = 2048;  // elements whose sums may stay in float32
constexpr i64 kChain = 16;    // steps that one float32 sum takes up
constexpr i64 kLine = 64;     // bytes of a cache line

template <class T>
constexpr i64 kOfLine = kLine / static_cast<i64>(sizeof(T));  // elements

// Bytes of a register, and the elements of a step: eight at least, whose bits make a byte.
#if defined(__AVX512F__)
constexpr i64 kRegister = 64;
#elif defined(__AVX__)
constexpr i64 kRegister = 32;
#else
constexpr i64 kRegister = 16;
#endif
template <class A>
constexpr i64 kStep = std::max<i64>(8, kRegister / static_cast<i64>(sizeof(A)));

template <i64 N>
using Lanes = std::integral_constant<i64, N>;

// Call body(first, Lanes<L>) for every step of L elements, then for the remaining ones alone.
template <class A, class Body>
inline void in_steps(i64 n, const Body& body) {
    constexpr i64 L = kStep<A>;
    i64 i = 0;
    for (; i + L <= n; i += L) body(i, Lanes<L>{});
#pragma GCC unroll 1
    for (; i < n; ++i) body(i, Lanes<1>{});
}

// Two steps of bfloat16 are cheaper to widen at once, in an order of their own; other types gain nothing
// by it (from memory, twice the requests in one go are slower).
template <class T>
constexpr bool by_pairs = std::is_same_v<T, bfloat16>;

// Call body for every step, two at once where the order of elements does not matter.
template <class T, class A, bool any_order, class Body>
inline void in_order(i64 n, const Body& body) {
    constexpr i64 both = 2 * kStep<A>;
    const i64 pairs = any_order && by_pairs<T> ? n / both * both : 0;
    if constexpr (any_order && by_pairs<T>)
        for (i64 i = 0; i < pairs; i += both) body(i, Lanes<both>{});
    in_steps<A>(n - pairs, [&](i64 i, auto lanes) { body(pairs + i, lanes); });
}

// Elements before the first that begins a cache line.
template <class T>
inline i64 until_line(const T* at) {
    return static_cast<i64>((-reinterpret_cast<std::uintptr_t>(at) & (kLine - 1)) / sizeof(T));
}

// What will be read soon, asked for into L2.
struct Ahead {
    i64 distance = 0, until = 0;  // elements: from what is read now, and where to stop asking

    Ahead from(i64 i) const { return {distance, until - i}; }

    template <i64 L, class T>
    void ask(const T* x, i64 i) const {
        if (i >= until || i % kOfLine<T> >= L) return;  // once a line
        for (i64 j = 0; j < L; j += kOfLine<T>) __builtin_prefetch(x + i + distance + j, 0, 2);
    }
};

template <class A, i64 L>
inline A total(const A (&lanes)[L]) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 j = 0; j < L; ++j) sum += lanes[j];
    return sum;
}

}  // namespace EVENLY_ISA
}  // namespace evenly
