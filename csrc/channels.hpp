// The walk of channels: layer norm over an axis of channels that others follow, such as NCHW's.
//
// The places of a sample are columns, and its channels are rows: elements one row apart share the mean, as
// in columns.hpp, and the elements of a row share weight and bias. A task is a block of places whose
// channels stay in L2 between the sweeps. The gradients of weight and bias are summed over tasks by each
// thread, so each thread has a fixed part of the tasks, and equal calls give equal bits.
//
// PlaceSums of a pass are one thread's sums over a block: clear, add a tile, and merge.
#pragma once

#include "columns.hpp"

namespace evenly {
namespace EVENLY_ISA {

// Places as columns, for those who ask which columns share a set.
inline Partition places_of(const Partition& p) { return {p.outer, p.batch, p.group, 1, p.channels, 1}; }

inline ColumnTasks channel_tasks(const Partition& p, i64 bytes, i64 bytes_of_all, int threads) {
    const i64 line = std::max<i64>(1, kLine / bytes), least = 4 * line;
    const i64 fits = caches().l2 * 3 / 4 / (p.batch * bytes_of_all);
    const i64 each = (p.group * p.outer + threads - 1) / threads;  // places of a thread
    const i64 most = std::min(std::min(fits, each), kTile) / line * line;
    const i64 width = std::min(std::max(most, least), p.group);
    const i64 per_outer = (p.group + width - 1) / width;
    return {width, per_outer, p.outer * per_outer, 1, false};
}

template <class Pass>
class ChannelWalk {
    using T = typename Pass::T;
    using A = typename Pass::A;
    using Sums = typename Pass::PlaceSums;
    Pass& pass;
    const Partition& p;
    const int threads;
    const ColumnTasks tasks;
    const i64 each;  // bytes of one thread's memory

    // The numbers of a row: those of its channel, and of the places from the tile's first column on.
    Places<A> constants(const Columns<A>& of_places, i64 channel) const {
        const A weight = weight_of<A>(pass.weight, channel), bias = bias_of<A>(pass.bias, channel);
        return {of_places.m, of_places.s, weight, bias, of_places.p_, of_places.q_};
    }

    void fill(const Block& block, const Tables<A>& tables) const {
        for (i64 i = 0; i < block.columns; ++i) {
            const OfSet<A> of_set = pass.of_set(block.first_set + i);
            tables.m[i] = of_set.mean, tables.s[i] = of_set.rstd;
            if (Pass::tables > 3) tables.p[i] = of_set.p, tables.q[i] = of_set.q;
        }
    }

    void measure(const Block& block, const Sums& mine, const Tables<A>& tables) const {
        mine.clear(block.columns);
        if (Pass::tables > 3) fill(block, tables);  // backward knows the mean
        for_tiles(block, Team{}, false, [&](const Tile& tile) {
            const Columns<A> of_places = tables.columns().from(tile.column);
            mine.add(pass, tile, [&](i64 channel) { return constants(of_places, channel); });
        });
        mine.merge(pass, block, {0, block.sets}, [&](int) { return mine; }, 1);
    }

    void write(const Block& block, const Tables<A>& tables) const {
        fill(block, tables);
        for_tiles(block, Team{}, true, [&](const Tile& tile) {
            const Columns<A> of_places = tables.columns().from(tile.column);
            for (i64 r = tile.rows - 1; r >= 0; --r) {
                const Ahead before{-block.pitch, tile.row + r > 0 ? tile.n : 0};  // of what is not in L2
                pass.write(tile.at(r), tile.n, constants(of_places, tile.row + r), {{}, before});
            }
        });
    }

  public:
    // The pass has its partition from places_of.
    ChannelWalk(Pass& the_pass, int team_size)
        : pass(the_pass),
          p(pass.p),
          threads(team_size),
          tasks(channel_tasks(p, sizeof(T), pass.element, threads)),
          each(Sums::bytes(pass, tasks.width) + Tables<A>::bytes(tasks.width, Pass::tables)) {}

    void run() {
        Arena arena{scratch(pass.reserve(threads) + each * threads)};
        pass.take(arena, threads);
        parallel(threads, [&](const Team& team) {
            Arena own{arena.at + team.index * each};
            const Sums mine(pass, own, tasks.width, team.index);
            const Tables<A> tables(own, tasks.width, Pass::tables);
            const Range part = team.share(tasks.count);
            for (i64 task = part.begin; task < part.end; ++task) {
                const Block block(p, tasks, task);
                if (pass.first) measure(block, mine, tables);
                if (pass.second) write(block, tables);
            }
            if (pass.streams) fence();
            pass.reduce(team, team.size);
        });
    }
};

}  // namespace EVENLY_ISA
}  // namespace evenly
