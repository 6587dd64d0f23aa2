// The walk over rows: a run of `inner` elements shares the mean, each has its own weight (layer norm).
//
// Both sweeps of a set follow one another, while the set is in L1. What the walk asks of a pass is said
// in planes.hpp; besides, RowSums are one thread's sums over some sets: clear, add a set, and flush.
#pragma once

#include "affine.hpp"
#include "tasks.hpp"

namespace evenly {
namespace EVENLY_ISA {

template <class Pass>
class RowWalk {
    using T = typename Pass::T;
    using A = typename Pass::A;
    using Sums = typename Pass::RowSums;
    Pass& pass;
    const Partition& p;
    const int threads;

    // Weight and bias one each per element, whether they are given or not.
    static const A* or_filled(const A* given, A value, A* room, i64 n) {
        if (given) return given;
        std::fill(room, room + n, value);
        return room;
    }

    void visit(i64 set, const A* weight, const A* bias, const Sums& sums) const {
        const i64 offset = set % p.group * p.inner, base = set * p.inner;
        weight += offset, bias += offset;
        if (pass.first) sums.add(pass, set, weight, bias, offset);
        if (!pass.second) return;
        const OfSet<A> of_set = pass.of_set(set);
        const Elementwise<A> affine{of_set.mean, of_set.rstd, weight, bias, of_set.p, of_set.q};
        pass.write(base, p.inner, affine, {{}, ahead_in<T>(p.inner, false, 0)});
    }

  public:
    RowWalk(Pass& the_pass, int team_size) : pass(the_pass), p(pass.p), threads(team_size) {}

    void run() {
        const i64 n = p.channels, each = Sums::bytes(pass);
        Arena arena{scratch(pass.reserve(threads) + 2 * Arena::size_of<A>(n) + each * threads)};
        pass.take(arena, threads);
        A *ones = arena.take<A>(n), *zeros = arena.take<A>(n);
        const A *weight = or_filled(pass.weight, A(1), ones, n), *bias = or_filled(pass.bias, A(0), zeros, n);
        parallel(threads, [&](const Team& team) {
            Arena own{arena.at + team.index * each};
            const Sums sums(pass, own, team.index);
            const Range sets = team.share(p.sets());
            for (i64 begin = sets.begin; begin < sets.end; begin += kTileRows) {
                sums.clear();
                for (i64 set = begin; set < std::min(begin + kTileRows, sets.end); ++set)
                    visit(set, weight, bias, sums);
                sums.flush();
            }
            if (pass.streams) fence();
            pass.reduce(team, team.size);
        });
    }
};

}  // namespace EVENLY_ISA
}  // namespace evenly
