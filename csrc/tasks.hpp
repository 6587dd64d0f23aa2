// Who does which part of a call, in which memory, and what is asked for ahead.
#pragma once

#include <algorithm>

#include "kernels.hpp"
#include "parallel.hpp"
#include "step.hpp"
#include "stream.hpp"

namespace evenly {
namespace EVENLY_ISA {

// Takes arrays from a block of scratch memory, each on its own cache lines.
struct Arena {
    char* at;

    template <class X>
    X* take(i64 n) {
        X* array = reinterpret_cast<X*>(at);
        at += size_of<X>(n);
        return array;
    }
    template <class X>
    static i64 size_of(i64 n) {
        return (n * static_cast<i64>(sizeof(X)) + kLine - 1) / kLine * kLine;
    }
};

// Whether an output of this size is streamed past the cache. A virtual machine may be told of a cache
// that it shares with many others, so no more than a few MiB of it are counted on.
inline bool goes_past_cache(i64 bytes) {
    constexpr i64 kMost = 4 << 20;
    return bytes > std::min(caches().last / 8, kMost);
}

// Visit every task, each by the whole team or by one thread: visit(task, what this thread visits next).
template <class Visit>
inline void for_tasks(i64 count, bool together, const Team& team, i64* taken, const Visit& visit) {
    if (together) {
        for (i64 task = 0; task < count; ++task) visit(task, task + 1);
    } else {
        for (i64 task = team.index, next; task < count; task = next) {
            next = team.size + take(taken);
            visit(task, next);
        }
    }
}

// A stretch shorter than this ends before the hardware has seen that it is one, so the stretch that
// follows it is asked for meanwhile.
constexpr i64 kShortStretch = 16384;  // bytes
// In longer ones the line a page on is asked for: the hardware's own requests end where a page does.
template <class T>
constexpr i64 kPageOf = 4096 / static_cast<i64>(sizeof(T));  // elements

template <class T>
inline bool is_short(i64 n) {
    return n * static_cast<i64>(sizeof(T)) <= kShortStretch;
}

// What to ask for while `length` elements are read; the stretch that follows a short one lies
// `next` elements on (0: none follows).
template <class T>
inline Ahead ahead_in(i64 length, bool is_short, i64 next) {
    if (is_short) return {next, next != 0 ? length : 0};
    return {kPageOf<T>, length - kPageOf<T>};
}

// What the second sweep asks for: of the tensors that the first sweep left in L2, and of the others.
struct Asked {
    Ahead seen, unseen;
    Asked from(i64 i) const { return {seen.from(i), unseen.from(i)}; }
};

// While a task writes, the input of the next task is asked for, so that memory reads and writes at
// once in place of by turns. Only its first rows are, where L2 has no room for all.
struct Coming {
    i64 distance, rows;  // elements from this task's input to the next one's; rows to ask for

    // `here` is what a task works on, a slab or a block; where no task follows, nothing is asked for.
    template <class Part, class Tasks>
    Coming(const Part& here, const Partition& p, const Tasks& tasks, i64 next, i64 bytes_of_row)
        : distance(next < tasks.count ? Part(p, tasks, next).base - here.base : 0),
          rows(distance != 0 ? std::max<i64>(1, caches().l2 / std::max<i64>(1, bytes_of_row)) : 0) {}

    Ahead ahead(i64 row, i64 n, const Ahead& otherwise) const {
        return row < rows ? Ahead{distance, n} : otherwise;
    }
};

// Rows after which float32 sums pass into float64; along a run one sum takes up many elements of a row.
constexpr i64 kTileRows = 64;

// A channel's weight, or 1 and 0 where there is none.
template <class A>
inline A weight_of(const void* weight, i64 c) {
    return weight ? static_cast<const A*>(weight)[c] : A(1);
}
template <class A>
inline A bias_of(const void* bias, i64 c) {
    return bias ? static_cast<const A*>(bias)[c] : A(0);
}

}  // namespace EVENLY_ISA
}  // namespace evenly
