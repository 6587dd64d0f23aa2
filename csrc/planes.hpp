// The walk over planes: runs of `stride` elements that share mean, weight and bias.
//
// A task is some neighbouring sets of one `outer`, all their samples. A pass sums over a task's slab,
// merges the sums, and writes the slab in reverse order: what was read last, and is still in the cache,
// is read first. forward.cpp and backward.cpp have the passes; what a walk asks of a pass is
//   first, second               whether to sweep for sums, and to write
//   T, A, p, weight, bias       types, the partition, A[channels] or null
//   element, coming             bytes of an element in all arrays of a slab, and in those asked for ahead
//   streams                     whether what is written goes past the cache
//   reserve, take, reduce       memory of the whole call, and what is done with it at the end
//   SlabSums                    one thread's sums over a slab: clear, add, close, and merge for a team
//   of_set                      a set's numbers for the second sweep
//   write                       the second sweep of neighbouring elements
#pragma once

#include "affine.hpp"
#include "tasks.hpp"

namespace evenly {
namespace EVENLY_ISA {

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
    i64 first_set;

    Slab(const Partition& p, const PlaneTasks& tasks, i64 task) : outer(task / tasks.per_outer) {
        const i64 first = task % tasks.per_outer * tasks.group_size;
        groups = {first, std::min(first + tasks.group_size, p.group)};
        base = (outer * p.batch * p.group + first) * p.inner;
        first_set = outer * p.group + first;
    }
    i64 size() const { return groups.end - groups.begin; }
};

// The part of each set that a member of a team takes: some samples, or a stretch of every sample.
struct PlaneShare {
    Range batch, inner;

    PlaneShare(const Partition& p, const Team& team)
        : batch(p.batch >= team.size ? team.share(p.batch) : Range{0, p.batch}),
          inner(p.batch >= team.size ? Range{0, p.inner} : team.share(p.inner)) {}

    i64 length() const { return inner.end - inner.begin; }
    // Elements of one sample: neighbouring ones, unless the sets' insides are shared.
    i64 of_sample(const Slab& slab) const { return slab.size() * length(); }
};

// The elements of one set in one sample, or a member's part of them.
struct Stretch {
    i64 slot;  // the set's place in the slab
    i64 set;
    i64 base;  // element where the set begins in this sample
    Range part;

    Stretch(const Partition& p, const Slab& slab, const PlaneShare& share, i64 sample, i64 i)
        : slot(i),
          set(slab.first_set + i),
          base(slab.base + sample * p.row() + i * p.inner),
          part(share.inner) {}
};

// Visit the planes of a stretch: visit(first element, length, channel within the set, channel).
template <class Visit>
inline void for_planes(const Partition& p, const Stretch& stretch, const Visit& visit) {
    const i64 first = stretch.base / p.stride % p.channels;
    for (i64 i = stretch.part.begin; i < stretch.part.end;) {
        const i64 plane = i / p.stride;
        const i64 length = std::min((plane + 1) * p.stride, stretch.part.end) - i;
        visit(stretch.base + i, length, plane, first + plane);
        i += length;
    }
}

template <class Pass>
class PlaneWalk {
    using T = typename Pass::T;
    using A = typename Pass::A;
    using Sums = typename Pass::SlabSums;
    Pass& pass;
    const Partition& p;
    const int threads;
    const PlaneTasks tasks;
    const i64 each;  // bytes of one thread's sums
    char* memory = nullptr;
    i64 taken = 0;

    Sums sums_of(int thread) const { return Sums(pass, tasks.group_size, memory + thread * each); }

    void sum(const Slab& slab, const PlaneShare& share, const Sums& sums) const {
        const bool apart = is_short<T>(share.of_sample(slab));
        for (i64 b = share.batch.begin; b < share.batch.end; ++b) {
            const i64 next = b + 1 < share.batch.end ? p.row() : 0;
            for (i64 i = 0; i < slab.size(); ++i) sums.add(pass, Stretch(p, slab, share, b, i), apart, next);
        }
    }

    // The sums of a task, by one thread or by the team that shares its sets.
    void measure(const Slab& slab, const PlaneShare& share, const Team& sharing, const Sums& mine) const {
        mine.clear(slab.size());
        sum(slab, share, mine);
        mine.close(slab.size());
        sharing.barrier();
        if (sharing.index == 0) {
            const auto part = [&](int t) { return sharing.size > 1 ? sums_of(t) : mine; };
            Sums::merge(pass, slab, part, sharing.size);
        }
        sharing.barrier();
    }

    void write(const Slab& slab, const PlaneShare& share, const Coming& coming) const {
        const bool apart = is_short<T>(share.of_sample(slab));
        for (i64 b = share.batch.end - 1; b >= share.batch.begin; --b) {
            // The slab is in L2; a residual of forward is not.
            const Asked ahead{coming.ahead(b - share.batch.begin, share.length(), {}),
                              ahead_in<T>(share.length(), apart, b > share.batch.begin ? -p.row() : 0)};
            for (i64 i = slab.size() - 1; i >= 0; --i) {
                const Stretch stretch(p, slab, share, b, i);
                const OfSet<A> of_set = pass.of_set(stretch.set);
                for_planes(p, stretch, [&](i64 k, i64 length, i64, i64 c) {
                    pass.write(k, length, run_of(of_set, pass.weight, pass.bias, c), ahead);
                });
            }
        }
    }

  public:
    PlaneWalk(Pass& the_pass, int team_size)
        : pass(the_pass),
          p(pass.p),
          threads(team_size),
          tasks(plane_tasks(p, sizeof(T), pass.element, threads)),
          each(Sums::bytes(pass, tasks.group_size)) {}

    void run() {
        Arena arena{scratch(pass.reserve(p.outer) + each * threads)};
        pass.take(arena, p.outer);
        memory = arena.at;
        parallel(threads, [&](const Team& team) {
            const Team alone;
            const Team& sharing = tasks.teams ? team : alone;
            const PlaneShare share(p, sharing);
            const Sums mine = sums_of(team.index);
            for_tasks(tasks.count, tasks.teams, team, &taken, [&](i64 task, i64 next) {
                const Slab slab(p, tasks, task);
                if (pass.first) measure(slab, share, sharing, mine);
                if (!pass.second) return;
                write(slab, share,
                      {slab, p, tasks, pass.first ? next : tasks.count, share.of_sample(slab) * pass.coming});
            });
            if (pass.streams) fence();
            pass.reduce(team, p.outer);
        });
    }
};

}  // namespace EVENLY_ISA
}  // namespace evenly
