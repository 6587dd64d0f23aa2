// The walk over columns: elements one row (group * inner) apart share mean, weight and bias.
//
// A task is a block of neighbouring columns, whole sets each, swept by tiles of rows and columns; the
// second sweep goes in reverse order. What the walk asks of a pass is said in planes.hpp; besides,
//   Tables                      how many numbers a column needs (Pass::tables)
//   BlockSums                   one thread's sums over a block: clear, add a tile, merge for a team
//   before_first, before_second fill the columns' numbers where the sweep reads them
#pragma once

#include <cstring>

#include "affine.hpp"
#include "tasks.hpp"

namespace evenly {
namespace EVENLY_ISA {

// Narrow rows are laid side by side (`fold` of them) so that a tile is long; what is left over is one
// shorter row. Rows are read one after the other: reading several in step halves what the prefetcher
// can do.
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

// A column's sums take up one number of each row.
inline i64 tile_rows(i64 stride) {
    return stride == 1 ? 2 * kChain : std::max<i64>(8, std::min(kTileRows, 8 * kPiece / stride));
}

// One block of columns as a task sees it: `rows` rows of `width` elements `pitch` apart, the first
// at element `base`, and a last row of only `rest`.
struct Block {
    i64 base, rows, width, pitch, rest;
    bool apart;                       // a row ends long before the next begins
    i64 first_column, columns, fold;  // before folding
    i64 first_set, sets, first_channel;
    i64 tile;  // rows

    Block(const Partition& p, const ColumnTasks& tasks, i64 task) {
        const i64 o = task / tasks.per_outer;
        fold = tasks.fold;
        first_column = task % tasks.per_outer * tasks.width;
        columns = std::min(tasks.width, p.row() - first_column);
        first_set = o * p.group + first_column / p.inner;
        sets = columns / p.inner;
        first_channel = first_column / p.stride;
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

// Some rows and columns of a block.
struct Tile {
    const Block& block;
    i64 row, rows, column, n;

    i64 at(i64 r) const { return block.base + (row + r) * block.pitch + column; }  // element
    template <class T>
    Ahead ahead(i64 r) const {
        return block.template ahead<T>(n, r + 1 < rows);
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

// Visit the tiles of a member's rows, and the short last row if this member has the end. Reversed, the
// tiles last seen come first.
template <class Visit>
inline void for_tiles(const Block& block, const Team& team, bool reversed, const Visit& visit) {
    const Range mine = team.share(block.rows);
    const bool last = team.index == team.size - 1 && block.rest > 0;
    const auto across = [&](i64 row, i64 rows, i64 width) {
        for (i64 c = 0; c < width; c += kTile) visit(Tile{block, row, rows, c, std::min(kTile, width - c)});
    };
    const i64 tiles = (mine.end - mine.begin + block.tile - 1) / block.tile;
    if (reversed && last) across(block.rows, 1, block.rest);
    for (i64 i = 0; i < tiles; ++i) {
        const i64 row = mine.begin + (reversed ? tiles - 1 - i : i) * block.tile;
        across(row, std::min(block.tile, mine.end - row), block.width);
    }
    if (!reversed && last) across(block.rows, 1, block.rest);
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

// The numbers of a block's columns, repeated for each folded row.
template <class A>
struct Tables {
    A *m, *s, *b, *p, *q;

    static i64 bytes(i64 width, i64 tables) { return tables * Arena::size_of<A>(width); }
    Tables(Arena& arena, i64 width, i64 tables)
        : m(arena.take<A>(width)),
          s(arena.take<A>(width)),
          b(arena.take<A>(width)),
          p(tables > 3 ? arena.take<A>(width) : nullptr),
          q(tables > 3 ? arena.take<A>(width) : nullptr) {}

    Columns<A> columns() const { return {m, s, b, p, q}; }

    // Mean, scale and bias.
    template <class Pass>
    void spread(const Pass& pass, const Block& block) const {
        const Partition& of = pass.p;
        const A *mean = pass.mean + block.first_set, *rstd = pass.rstd + block.first_set;
        const A* w = pass.weight ? pass.weight + block.first_channel : nullptr;
        const A* v = pass.bias ? pass.bias + block.first_channel : nullptr;
        if (of.inner == 1) {
            for (i64 c = 0; c < block.columns; ++c) m[c] = mean[c];
            for (i64 c = 0; c < block.columns; ++c) s[c] = w ? rstd[c] * w[c] : rstd[c];
            for (i64 c = 0; c < block.columns; ++c) b[c] = v ? v[c] : A(0);
        } else {
            for (i64 column = 0; column < block.columns; column += of.stride) {
                const i64 set = column / of.inner, c = column / of.stride;
                const A scale = w ? rstd[set] * w[c] : rstd[set], shift = v ? v[c] : A(0);
                for (i64 i = column; i < column + of.stride; ++i)
                    m[i] = mean[set], s[i] = scale, b[i] = shift;
            }
        }
        repeat(block, m), repeat(block, s), repeat(block, b);
    }

    // What the gradients of a set share.
    template <class Pass>
    void spread_shared(const Pass& pass, const Block& block) const {
        const i64 inner = pass.p.inner;
        for (i64 set = 0; set < block.sets; ++set) {
            const OfSet<A> of_set = pass.of_set(block.first_set + set);
            for (i64 i = set * inner; i < (set + 1) * inner; ++i) p[i] = of_set.p, q[i] = of_set.q;
        }
        repeat(block, p), repeat(block, q);
    }

    static void repeat(const Block& block, A* table) {
        for (i64 j = 1; j < block.fold; ++j)
            std::memcpy(table + j * block.columns, table, block.columns * sizeof(A));
    }
};

template <class Pass>
class ColumnWalk {
    using T = typename Pass::T;
    using A = typename Pass::A;
    using Sums = typename Pass::BlockSums;
    Pass& pass;
    const Partition& p;
    const int threads;
    const ColumnTasks tasks;
    const i64 width, each;  // columns of a block, folded; bytes of one thread's memory
    char* memory = nullptr;
    i64 taken = 0;

    Sums sums_of(int thread) const {
        Arena own{memory + thread * each};
        return Sums(pass, own, width);
    }

    void measure(const Block& block, const Team& sharing, const Sums& mine, const Columns<A>& columns) const {
        mine.clear(width / p.stride);
        for_tiles(block, sharing, false, [&](const Tile& tile) { mine.add(pass, tile, columns); });
        sharing.barrier();
        const auto part = [&](int t) { return sharing.size > 1 ? sums_of(t) : mine; };
        mine.merge(pass, block, sharing.share(block.sets), part, sharing.size);
        sharing.barrier();
    }

    void write(const Block& block, const Team& sharing, const Columns<A>& columns,
               const Coming& coming) const {
        for_tiles(block, sharing, true, [&](const Tile& tile) {
            with_constants<A>(p, columns.from(tile.column), tile.column, [&](const auto& constants) {
                for (i64 r = 0; r < tile.rows; ++r) {
                    const Ahead ahead = tile.ahead<T>(r);
                    pass.write(tile.at(r), tile.n, constants,
                               {coming.ahead(tile.row + r, tile.n, ahead), ahead});
                }
            });
        });
    }

  public:
    ColumnWalk(Pass& the_pass, int team_size)
        : pass(the_pass),
          p(pass.p),
          threads(team_size),
          tasks(column_tasks(p, sizeof(T), pass.element, threads)),
          width(tasks.width * tasks.fold),
          each(Sums::bytes(pass, width) + Tables<A>::bytes(width, Pass::tables)) {}

    void run() {
        Arena arena{scratch(pass.reserve(p.outer) + each * threads)};
        pass.take(arena, p.outer);
        memory = arena.at;
        parallel(threads, [&](const Team& team) {
            Arena own{memory + team.index * each};
            const Sums mine(pass, own, width);
            const Tables<A> tables(own, width, Pass::tables);
            const Team alone;
            const Team& sharing = tasks.teams ? team : alone;
            for_tasks(tasks.count, tasks.teams, team, &taken, [&](i64 task, i64 next) {
                const Block block(p, tasks, task);
                pass.before_first(block, tables);
                if (pass.first) measure(block, sharing, mine, tables.columns());
                if (!pass.second) return;
                pass.before_second(block, tables);
                write(block, sharing, tables.columns(),
                      {block, p, tasks, pass.first ? next : tasks.count, block.width * pass.coming});
            });
            if (pass.streams) fence();
            pass.reduce(team, p.outer);
        });
    }
};

}  // namespace EVENLY_ISA
}  // namespace evenly
