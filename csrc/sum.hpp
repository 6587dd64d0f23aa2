// Step 3: the sums that the gradients need, as each walk collects them.
#pragma once

#include "channels.hpp"
#include "columns.hpp"
#include "loops.hpp"
#include "planes.hpp"
#include "rows.hpp"

namespace evenly {
namespace EVENLY_ISA {

// Sums of g and g * d per channel or column.
struct Sums {
    double *g, *gd;

    static i64 bytes(i64 n) { return 2 * Arena::size_of<double>(n); }
    static Sums take(Arena& arena, i64 n) {
        double* g = arena.take<double>(n);
        return {g, arena.take<double>(n)};
    }
    void clear(i64 n) const {
        std::fill(g, g + n, 0.0);
        std::fill(gd, gd + n, 0.0);
    }
};

// The channels of the sets of a slab.
template <class Pass>
struct SlabGradients {
    using T = typename Pass::T;
    using A = typename Pass::A;
    Sums sums;
    i64 of_set;  // channels

    static i64 channels_of(const Pass& pass) { return pass.p.inner / pass.p.stride; }
    static i64 bytes(const Pass& pass, i64 sets) { return Sums::bytes(sets * channels_of(pass)); }
    SlabGradients(const Pass& pass, i64 sets, char* memory) : of_set(channels_of(pass)) {
        Arena own{memory};
        sums = Sums::take(own, sets * of_set);
    }

    void clear(i64 sets) const { sums.clear(sets * of_set); }
    void close(i64) const {}
    void add(const Pass& pass, const Stretch& stretch, bool apart, i64 next) const {
        const OfSet<A> constants{pass.mean[stretch.set], pass.rstd[stretch.set]};
        for_planes(pass.p, stretch, [&](i64 k, i64 length, i64 plane, i64 c) {
            const i64 slot = stretch.slot * of_set + plane;
            pass.sum(k, length, run_of(constants, pass.weight, pass.bias, c),
                     ahead_in<T>(length, apart, next), sums.g[slot], sums.gd[slot]);
        });
    }

    template <class Part>
    static void merge(const Pass& pass, const Slab& slab, const Part& part, int size) {
        const SlabGradients all = part(0);
        const i64 of_set = all.of_set, slots = slab.size() * of_set;
        for (int t = 1; t < size; ++t) {
            const Sums other = part(t).sums;
            for (i64 i = 0; i < slots; ++i) all.sums.g[i] += other.g[i], all.sums.gd[i] += other.gd[i];
        }
        for (i64 i = 0; i < slab.size(); ++i)
            pass.finish(slab.first_set + i, (slab.groups.begin + i) * of_set, of_set,
                        {all.sums.g + i * of_set, all.sums.gd + i * of_set});
    }
};

// The slots of a block: one for each channel of each folded row.
template <class Pass>
struct BlockGradients {
    using A = typename Pass::A;
    Sums sums, channel;  // of the slots, and of one set's channels

    static i64 bytes(const Pass& pass, i64 width) {
        return Sums::bytes(width / pass.p.stride) + Sums::bytes(pass.p.inner / pass.p.stride);
    }
    BlockGradients(const Pass& pass, Arena& own, i64 width)
        : sums(Sums::take(own, width / pass.p.stride)),
          channel(Sums::take(own, pass.p.inner / pass.p.stride)) {}

    void clear(i64 slots) const { sums.clear(slots); }
    void add(const Pass& pass, const Tile& tile, const Columns<A>& columns) const {
        TileSums<A> room;
        A *g = room.first(), *gd = room.second();
        std::fill(g, g + tile.n, A(0));
        std::fill(gd, gd + tile.n, A(0));
        with_constants<A>(pass.p, columns.from(tile.column), tile.column, [&](const auto& constants) {
            for (i64 r = 0; r < tile.rows; ++r)
                pass.add(tile.at(r), tile.n, constants, tile.ahead<typename Pass::T>(r), g, gd);
        });
        double *all_g = sums.g + tile.column, *all_gd = sums.gd + tile.column;
        const i64 n = tile.n;
        if (pass.p.stride == 1) {
#pragma omp simd
            for (i64 c = 0; c < n; ++c) all_g[c] += g[c], all_gd[c] += gd[c];
            return;
        }
        for_slots(pass.p.stride, tile.column, n, [&](i64 slot, i64 first, i64 length) {
            double run_g = 0, run_gd = 0;
#pragma omp simd reduction(+ : run_g, run_gd)
            for (i64 c = first; c < first + length; ++c) run_g += g[c], run_gd += gd[c];
            sums.g[slot] += run_g, sums.gd[slot] += run_gd;
        });
    }

    // The sums of sets: over the team's parts and the folded rows.
    template <class Part>
    void merge(const Pass& pass, const Block& block, Range sets, const Part& part, int size) const {
        const i64 of_set = pass.p.inner / pass.p.stride;
        if (size == 1 && block.fold == 1 && of_set == 1)
            return pass.finish_single(block.first_set + sets.begin, block.first_channel + sets.begin,
                                      sets.end - sets.begin, {sums.g + sets.begin, sums.gd + sets.begin});
        for (i64 set = sets.begin; set < sets.end; ++set) {
            for (i64 c = 0; c < of_set; ++c) {
                double g = 0, gd = 0;
                for (int t = 0; t < size; ++t) {
                    const Sums all = part(t).sums;
                    for (i64 j = 0; j < block.fold; ++j) {
                        const i64 slot = (j * block.columns + set * pass.p.inner) / pass.p.stride + c;
                        g += all.g[slot], gd += all.gd[slot];
                    }
                }
                channel.g[c] = g, channel.gd[c] = gd;
            }
            pass.finish(block.first_set + set, block.first_channel + set * of_set, of_set, channel);
        }
    }
};

// The places of a block, and the channels of all blocks of a thread.
template <class Pass>
struct PlaceGradients {
    using T = typename Pass::T;
    using A = typename Pass::A;
    Sums sums, channels;

    static i64 bytes(const Pass&, i64 width) { return Sums::bytes(width); }
    PlaceGradients(const Pass& pass, Arena& own, i64 width, int thread)
        : sums(Sums::take(own, width)),
          channels{pass.partial.g + thread * pass.p.channels, pass.partial.gd + thread * pass.p.channels} {
        channels.clear(pass.p.channels);
    }

    void clear(i64 places) const { sums.clear(places); }

    template <class Constants>
    void add(const Pass& pass, const Tile& tile, const Constants& constants) const {
        TileSums<A> room;
        A *g = room.first(), *gd = room.second();
        std::fill(g, g + tile.n, A(0));
        std::fill(gd, gd + tile.n, A(0));
        for (i64 r = 0; r < tile.rows; ++r) {
            const i64 k = tile.at(r), channel = tile.row + r;
            pass.with_slopes(k, [&](const auto& slopes) {
                place_sums<A>(pass.dy + k, pass.x + k, tile.n, constants(channel), slopes,
                              tile.template ahead<T>(r), g, gd, channels.g[channel], channels.gd[channel]);
            });
        }
        double *all_g = sums.g + tile.column, *all_gd = sums.gd + tile.column;
        const i64 n = tile.n;
#pragma omp simd
        for (i64 c = 0; c < n; ++c) all_g[c] += g[c], all_gd[c] += gd[c];
    }

    template <class Part>
    void merge(const Pass& pass, const Block& block, Range places, const Part&, int) const {
        for (i64 i = places.begin; i < places.end; ++i) {
            const i64 set = block.first_set + i;
            pass.sum_g[set] = static_cast<A>(sums.g[i]);
            pass.sum_gx[set] = static_cast<A>(sums.gd[i] * pass.rstd[set]);
        }
    }
};

// One set at a time; sums over sets per element, in float32 for some rows and then in float64.
template <class Pass>
struct RowGradients {
    using A = typename Pass::A;
    i64 n;
    A *g, *gx;
    Sums all;  // this thread's

    static i64 bytes(const Pass& pass) { return 2 * Arena::size_of<A>(pass.p.channels); }
    RowGradients(const Pass& pass, Arena& own, int thread)
        : n(pass.p.channels),
          g(own.take<A>(n)),
          gx(own.take<A>(n)),
          all{pass.partial.g + thread * n, pass.partial.gd + thread * n} {
        all.clear(n);
    }

    void clear() const {
        std::fill(g, g + n, A(0));
        std::fill(gx, gx + n, A(0));
    }
    void flush() const {
        for (i64 c = 0; c < n; ++c) all.g[c] += g[c], all.gd[c] += gx[c];
    }

    void add(const Pass& pass, i64 set, const A* weight, const A* bias, i64 offset) const {
        const i64 width = pass.p.inner, base = set * width;
        const Elementwise<A> affine{pass.mean[set], pass.rstd[set], weight, bias};
        double all_g = 0, all_gd = 0;
        for (i64 i = 0; i < width; i += kTile) {
            const i64 length = std::min(kTile, width - i), k = base + i;
            const Elementwise<A> part = affine.from(i);
            pass.with_slopes(k, [&](const auto& slopes) {
                set_sums(pass.dy + k, pass.x + k, length, part, slopes, g + offset + i, gx + offset + i,
                         all_g, all_gd);
            });
        }
        pass.sum_g[set] = static_cast<A>(all_g);
        pass.sum_gx[set] = static_cast<A>(all_gd * pass.rstd[set]);
    }
};

}  // namespace EVENLY_ISA
}  // namespace evenly
