// What forward and backward share: a call's memory, and who does which part of it.
#pragma once

#include <algorithm>

#include "kernels.hpp"
#include "parallel.hpp"
#include "tile.hpp"

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

// A walk over planes: a task is `group_size` neighbouring sets of one `outer`, all their samples,
// so that it reads long stretches and its slab stays in L2 between its two sweeps.
struct PlaneTasks {
    i64 group_size, per_outer, count;
    bool teams;  // too few sets for the threads: each is shared by all of them
};

// `bytes` of an element in one array, and in all that a slab holds.
inline PlaneTasks plane_tasks(const Partition& p, i64 bytes, i64 bytes_of_all, int threads) {
    constexpr i64 kChunk = 8192;  // bytes of each array that neighbouring sets should make together
    const i64 slab = p.count() * bytes_of_all;
    const i64 fits = std::max<i64>(1, caches().l2 * 3 / 4 / std::max<i64>(1, slab));
    const i64 fair = std::max<i64>(1, p.group / std::max<i64>(1, 2 * threads / p.outer));
    const i64 wanted = (kChunk + p.inner * bytes - 1) / (p.inner * bytes);
    const i64 size = std::min(std::min(wanted, fits), std::min(fair, p.group));
    const i64 per_outer = (p.group + size - 1) / size;
    const bool teams = threads > 1 && p.sets() < 4 * threads && p.sets() % threads != 0;
    if (teams) return {1, p.group, p.sets(), true};
    return {size, per_outer, p.outer * per_outer, false};
}

// The sets of a task.
struct Slab {
    i64 outer;
    Range groups;
    i64 base;  // element it begins at

    Slab(const Partition& p, const PlaneTasks& tasks, i64 task) : outer(task / tasks.per_outer) {
        const i64 first = task % tasks.per_outer * tasks.group_size;
        groups = {first, std::min(first + tasks.group_size, p.group)};
        base = (outer * p.batch * p.group + first) * p.inner;
    }
    i64 size() const { return groups.end - groups.begin; }
};

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

// While a task writes, the input of the next is asked for, so that memory reads and writes at once
// in place of by turns. Its first rows alone, where L2 has no room for all.
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

// The part of each set that a member of a team takes: some samples, or a stretch of every sample.
struct PlaneShare {
    Range batch, inner;

    PlaneShare(const Partition& p, const Team& team)
        : batch(p.batch >= team.size ? team.share(p.batch) : Range{0, p.batch}),
          inner(p.batch >= team.size ? Range{0, p.inner} : team.share(p.inner)) {}

    // Elements of one sample: neighbouring ones, unless the sets' insides are shared.
    i64 row(const Slab& slab) const { return slab.size() * (inner.end - inner.begin); }
};

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

// Visit the stretches of one channel in elements [begin, end) of the chunk that starts at `base`:
// visit(first element, length, channel within the set).
template <class Visit>
inline void for_planes(const Partition& p, i64 base, Range part, const Visit& visit) {
    for (i64 i = part.begin; i < part.end;) {
        const i64 plane = i / p.stride;
        const i64 length = std::min((plane + 1) * p.stride, part.end) - i;
        visit(base + i, length, plane);
        i += length;
    }
}

// A walk over columns: blocks of neighbouring columns, whole sets each. Narrow rows are laid side
// by side (`fold` of them) so that a tile is long; what is left over is one shorter row. Rows are
// read one after the other: reading several in step halves what the prefetcher can do.
struct ColumnTasks {
    i64 width, per_outer, count, fold;
    bool teams;  // the rows of each block are shared by all threads
};

inline ColumnTasks column_tasks(const Partition& p, i64 bytes, i64 bytes_of_all, int threads) {
    constexpr i64 kNarrow = 256;  // columns
    const i64 row = p.row(), sets_per_tile = std::max<i64>(1, std::min(kTile, row) / p.inner);
    const i64 blocks = std::max<i64>(1, threads / p.outer);  // one for every thread
    const i64 share = std::max<i64>(1, p.group / blocks) * p.inner;
    i64 width = std::min(sets_per_tile * p.inner, share);
    // Blocks of whole cache lines: a line that two of them share cannot be streamed.
    i64 whole = p.inner;
    while (whole * bytes % kLine != 0 && 2 * whole <= std::min(share, 2 * kTile)) whole *= 2;
    if (whole * bytes % kLine == 0) width = std::max(width / whole, i64(1)) * whole;
    const bool fits = p.batch * width * bytes_of_all <= caches().l2 * 3 / 4;
    const bool long_enough = width == row || width * bytes_of_all >= 4 * kLine;
    const bool alone = p.outer >= threads || (long_enough && (fits || p.stride > 1));
    if (!alone || !fits) width = p.stride > 1 && alone ? width : row;
    const i64 fold =
        width == row && row < kNarrow ? std::max<i64>(1, std::min(2 * kNarrow / row, p.batch / 4)) : 1;
    const i64 per_outer = (row + width - 1) / width;
    return {width, per_outer, p.outer * per_outer, fold, threads > 1 && !alone};
}

// Rows after which float32 sums pass into float64; along a run one sum takes up many elements of a row.
constexpr i64 kTileRows = 64;
inline i64 tile_rows(i64 stride) { return std::max<i64>(8, std::min(kTileRows, 8 * kPiece / stride)); }

// One block of columns as a task sees it: `rows` rows of `width` elements `pitch` apart, the first
// at element `base`, and a last row of only `rest`.
struct Block {
    i64 base, rows, width, pitch, rest;
    bool apart;                       // a row ends long before the next begins
    i64 first_column, columns, fold;  // before folding
    i64 tile;                         // rows

    Block(const Partition& p, const ColumnTasks& tasks, i64 task) {
        const i64 o = task / tasks.per_outer;
        fold = tasks.fold;
        first_column = task % tasks.per_outer * tasks.width;
        columns = std::min(tasks.width, p.row() - first_column);
        base = o * p.batch * p.row() + first_column;
        rows = p.batch / fold;
        width = fold * columns;
        pitch = fold * p.row();
        rest = p.batch % fold * columns;
        apart = width < pitch;
        tile = tile_rows(p.stride);
    }

    // What to ask for while n elements of a row are read.
    template <class T>
    Ahead ahead(i64 n, bool more) const {
        return apart ? Ahead{pitch, more ? n : 0} : Ahead{kPageOf<T>, n};
    }
};

// Two sums of a tile, added to step by step, and what they are read with. A load waits for a store still
// under way whose address ends in the same twelve bits; on an AMD EPYC only where their pages agree in
// more bits by chance, so that one process in eight took four times as long. So the sums lie half a
// page apart, and what is only read comes two lines ahead of the first.
template <class A>
struct TileSums {
    alignas(kLine) A room[5 * kTile];
    A* read() { return room; }
    A* first() { return room + 2 * kTile - 2 * kOfLine<A>; }
    A* second() { return first() + kTile + kPageOf<A> / 2; }
};

// Visit the tiles of rows [begin, end), and the short last row if this member has the end:
// visit(first row, rows, first column, columns). Reversed, the tiles last seen come first.
template <class Visit>
inline void for_column_tiles(const Block& block, const Team& team, bool reversed, const Visit& visit) {
    const Range mine = team.share(block.rows);
    const bool last = team.index == team.size - 1 && block.rest > 0;
    const auto across = [&](i64 row, i64 rows, i64 width) {
        for (i64 c = 0; c < width; c += kTile) visit(row, rows, c, std::min(kTile, width - c));
    };
    const i64 tiles = (mine.end - mine.begin + block.tile - 1) / block.tile;
    if (reversed && last) across(block.rows, 1, block.rest);
    for (i64 i = 0; i < tiles; ++i) {
        const i64 row = mine.begin + (reversed ? tiles - 1 - i : i) * block.tile;
        across(row, std::min(block.tile, mine.end - row), block.width);
    }
    if (!reversed && last) across(block.rows, 1, block.rest);
}

// Visit the stretches of a block's columns (before folding) that belong to one channel and one set:
// visit(first column, length, set within the block, channel).
template <class Visit>
inline void for_channels(const Partition& p, const Block& block, const Visit& visit) {
    const i64 first = block.first_column / p.stride;
    i64 column = 0, set = 0;
    const i64 channels_per_set = p.inner / p.stride;
    for (i64 i = 0, within = 0; column < block.columns; ++i, column += p.stride) {
        visit(column, p.stride, set, first + i);
        if (++within == channels_per_set) within = 0, ++set;
    }
}

// Cut columns [column, column + n) where the channel changes: visit(slot, first, length), `first`
// counted from `column`. A slot is one channel of one folded row.
template <class Visit>
inline void for_slots(i64 stride, i64 column, i64 n, const Visit& visit) {
    for (i64 first = 0; first < n;) {
        const i64 slot = (column + first) / stride;
        const i64 length = std::min((slot + 1) * stride - column, n) - first;
        visit(slot, first, length);
        first += length;
    }
}

// Call use(constants) with those of the columns from `column` on as they are quickest to use.
template <class A, class Use>
inline void with_constants(const Partition& p, const Columns<A>& each, i64 column, const Use& use) {
    if (p.stride < 4 * kStep<A>) return use(each);
    use(Runs<A>{each, p.stride, p.stride - column % p.stride});
}

// A channel's weight, or 1 and 0 where there is none.
template <class A>
inline A weight_of(const void* weight, i64 c) {
    return weight ? static_cast<const A*>(weight)[c] : A(1);
}
template <class A>
inline A bias_of(const void* bias, i64 c) {
    return bias ? static_cast<const A*>(bias)[c] : A(0);
}

// Per-column mean, scale and bias of a block, repeated for each folded row.
template <class A>
inline void spread(const Partition& p, const Block& block, const A* mean, const A* rstd, const void* weight,
                   const void* bias, A* m, A* s, A* b) {
    if (p.inner == 1) {
        const i64 c0 = block.first_column;
        const A* w = static_cast<const A*>(weight);
        const A* v = static_cast<const A*>(bias);
        for (i64 c = 0; c < block.columns; ++c) m[c] = mean[c];
        for (i64 c = 0; c < block.columns; ++c) s[c] = w ? rstd[c] * w[c0 + c] : rstd[c];
        for (i64 c = 0; c < block.columns; ++c) b[c] = v ? v[c0 + c] : A(0);
    } else {
        for_channels(p, block, [&](i64 column, i64 length, i64 set, i64 channel) {
            const A scale = rstd[set] * weight_of<A>(weight, channel), shift = bias_of<A>(bias, channel);
            for (i64 c = column; c < column + length; ++c) m[c] = mean[set], s[c] = scale, b[c] = shift;
        });
    }
    for (i64 j = 1; j < block.fold; ++j) {
        std::memcpy(m + j * block.columns, m, block.columns * sizeof(A));
        std::memcpy(s + j * block.columns, s, block.columns * sizeof(A));
        std::memcpy(b + j * block.columns, b, block.columns * sizeof(A));
    }
}

}  // namespace EVENLY_ISA
}  // namespace evenly
