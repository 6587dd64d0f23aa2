// Step 1: the sums that become moments, as each walk collects them.
#pragma once

#include "channels.hpp"
#include "columns.hpp"
#include "planes.hpp"
#include "rows.hpp"
#include "sweep.hpp"

namespace evenly {
namespace EVENLY_ISA {

// The sets of a slab.
template <class Pass>
struct SlabMoments {
    using T = typename Pass::T;
    using A = typename Pass::A;
    Sweep<T>* sweeps;
    bool centered;

    static i64 bytes(const Pass&, i64 sets) { return Arena::size_of<Sweep<T>>(sets); }
    SlabMoments(const Pass& pass, i64, char* memory)
        : sweeps(reinterpret_cast<Sweep<T>*>(memory)), centered(pass.f.centered) {}

    void clear(i64 sets) const {
        for (i64 i = 0; i < sets; ++i) sweeps[i].start(centered);
    }
    void close(i64 sets) const {
        for (i64 i = 0; i < sets; ++i) sweeps[i].fold();
    }
    void add(const Pass& pass, const Stretch& stretch, bool apart, i64 next) const {
        const i64 k = stretch.base + stretch.part.begin, length = stretch.part.end - stretch.part.begin;
        Sweep<T>& sweep = sweeps[stretch.slot];
        if (!pass.f.weighs) return sweep.add(pass.x + k, length, ahead_in<T>(length, apart, next));
        A buffer[kTile];
        for (i64 j = 0; j < length; j += kTile) {
            const i64 n = std::min(kTile, length - j);
            sweep.add_masked(pass.x + k + j, pass.mask_of(k + j, n, buffer), n);
        }
    }

    template <class Part>
    static void merge(const Pass& pass, const Slab& slab, const Part& part, int size) {
        for (i64 i = 0; i < slab.size(); ++i) {
            Moments all;
            for (int t = 0; t < size; ++t) all.merge(part(t).sweeps[i].seen);
            pass.finish(slab.first_set + i, all);
        }
    }
};

// The slots of a block: one for each channel of each folded row.
template <class Pass>
struct BlockMoments {
    using T = typename Pass::T;
    using A = typename Pass::A;
    double *count, *mean, *m2;

    static i64 bytes(const Pass& pass, i64 width) {
        return 3 * Arena::size_of<double>(width / pass.p.stride);
    }
    BlockMoments(const Pass& pass, Arena& own, i64 width, int = 0)
        : count(own.take<double>(width / pass.p.stride)),
          mean(own.take<double>(width / pass.p.stride)),
          m2(own.take<double>(width / pass.p.stride)) {}

    void clear(i64 slots) const {
        for (double* moment : {count, mean, m2}) std::fill(moment, moment + slots, 0.0);
    }
    Moments at(i64 slot) const { return {count[slot], mean[slot], m2[slot]}; }
    void merge(i64 slot, const Moments& other) const {
        Moments all = at(slot);
        all.merge(other);
        count[slot] = all.count, mean[slot] = all.mean, m2[slot] = all.m2;
    }

    template <class Constants>  // the mean is not known yet
    void add(const Pass& pass, const Tile& tile, const Constants&) const {
        pass.f.weighs ? add_masked(pass, tile) : add_plain(pass, tile);
    }

    void add_plain(const Pass& pass, const Tile& tile) const {
        TileSums<A> sums;
        A *shift = sums.read(), *s1 = sums.first(), *s2 = sums.second();
        const bool centered = pass.f.centered;
        if (centered) {
            find_shift(pass, tile, shift);
        } else {
            std::fill(shift, shift + tile.n, A(0));
        }
        sum_tile(pass, tile, shift, s1, s2);
        for (int look = 0; centered && look < kLooks && move_shift(pass, tile, shift, s1, s2); ++look)
            sum_tile(pass, tile, shift, s1, s2);
        if (pass.p.stride == 1) return merge_columns(tile, centered, shift, s1, s2);
        for_slot_sums(pass, tile, s1, s2, [&](i64 slot, i64 i, i64, double n, double all1, double all2) {
            merge(slot, about_shift(n, shift[i], all1, all2, centered));
        });
    }

    void sum_tile(const Pass& pass, const Tile& tile, const A* shift, A* s1, A* s2) const {
        std::fill(s1, s1 + tile.n, A(0));
        std::fill(s2, s2 + tile.n, A(0));
        with_constants<A>(pass.p, {shift, shift, shift}, tile.column, [&](const auto& about) {
            for (i64 r = 0; r < tile.rows; ++r)
                add_about(pass.x + tile.at(r), tile.n, about, tile.template ahead<T>(r), s1, s2);
        });
    }

    // Visit the sums of each slot: visit(slot, first, length, count, s1, s2).
    template <class Visit>
    static void for_slot_sums(const Pass& pass, const Tile& tile, const A* s1, const A* s2,
                              const Visit& visit) {
        for_slots(pass.p.stride, tile.column, tile.n, [&](i64 slot, i64 i, i64 length) {
            double all1 = 0, all2 = 0;
#pragma omp simd reduction(+ : all1, all2)
            for (i64 c = i; c < i + length; ++c) all1 += s1[c], all2 += s2[c];
            visit(slot, i, length, static_cast<double>(tile.rows * length), all1, all2);
        });
    }

    // What to sum the columns of a tile about: the mean seen so far, or that of a few elements.
    void find_shift(const Pass& pass, const Tile& tile, A* shift) const {
        const i64 n = tile.n;
        if (pass.p.stride == 1) {
            if (count[tile.column] == 0) return shift_columns(pass, tile, shift);
            for (i64 c = 0; c < n; ++c) shift[c] = static_cast<A>(mean[tile.column + c]);
            return;
        }
        for_slots(pass.p.stride, tile.column, n, [&](i64 slot, i64 i, i64 length) {
            A about = static_cast<A>(mean[slot]);
            if (count[slot] == 0) {
                about = 0;
                const i64 some = std::min(kSample, tile.rows * length);
                for (i64 e = 0; e < some; ++e) {
                    const i64 at = e * (tile.rows * length) / some;
                    about += load(pass.x + tile.at(at / length) + i + at % length);
                }
                about /= A(some);
            }
            std::fill(shift + i, shift + i + length, about);
        });
    }

    void shift_columns(const Pass& pass, const Tile& tile, A* shift) const {
        const i64 n = tile.n, some = std::min(kSample, tile.rows);
        std::fill(shift, shift + n, A(0));
        for (i64 e = 0; e < some; ++e) {
            const T* at = pass.x + tile.at(e * tile.rows / some);
            for (i64 c = 0; c < n; ++c) shift[c] += load(at + c);
        }
        for (i64 c = 0; c < n; ++c) shift[c] *= A(1) / A(some);
    }

    // Move the shifts that were far from the mean to the mean that the sums gave; whether there were any.
    bool move_shift(const Pass& pass, const Tile& tile, A* shift, const A* s1, const A* s2) const {
        bool moved = false;
        if (pass.p.stride == 1) {
            if (count[tile.column] > 0) return false;  // as many rows were seen as the tile has
            const A each = A(1) / A(tile.rows);
            const i64 n = tile.n;
            int far = 0;
#pragma omp simd reduction(| : far)
            for (i64 c = 0; c < n; ++c) far |= A(2) * s1[c] * (s1[c] * each) > s2[c] ? 1 : 0;
            for (i64 c = 0; far && c < n; ++c) shift[c] += s1[c] * each;
            return far != 0;
        }
        for_slot_sums(pass, tile, s1, s2,
                      [&](i64 slot, i64 i, i64 length, double n, double all1, double all2) {
                          if (!is_far(at(slot), n, all1, all2)) return;
                          const A about = shift[i] + static_cast<A>(all1 / n);
                          std::fill(shift + i, shift + i + length, about);
                          moved = true;
                      });
        return moved;
    }

    // Where every column is a slot, all of a tile have seen equally many rows: none needs a division.
    void merge_columns(const Tile& tile, bool centered, const A* shift, const A* s1, const A* s2) const {
        double *count_ = count + tile.column, *mean_ = mean + tile.column, *m2_ = m2 + tile.column;
        const double added = static_cast<double>(tile.rows), total = count_[0] + added;
        const double each = 1 / added, share = added / total, both = count_[0] * share;
        const i64 n = tile.n;
#pragma omp simd
        for (i64 c = 0; c < n; ++c) {
            const double about = s1[c] * each, squares = centered ? s2[c] - s1[c] * about : s2[c];
            const double delta = centered ? shift[c] + about - mean_[c] : 0;
            m2_[c] += (squares < 0 ? 0 : squares) + delta * delta * both;
            mean_[c] += delta * share;
            count_[c] = total;
        }
    }

    void add_masked(const Pass& pass, const Tile& tile) const {
        A buffer[kTile], weight[kTile] = {}, about[kTile] = {}, s1[kTile] = {}, s2[kTile] = {};
        const i64 n = tile.n;
        const bool centered = pass.f.centered;
        const auto each_row = [&](const auto& body) {
            for (i64 r = 0; r < tile.rows; ++r)
                body(pass.x + tile.at(r), pass.mask_of(tile.at(r), n, buffer));
        };
        each_row([&](const T* at, const A* m) {
            for (i64 c = 0; c < n; ++c) {
                const A value = load(at + c);
                weight[c] += m[c];
                about[c] += m[c] > 0 ? m[c] * value : A(0);
            }
        });
        for (i64 c = 0; c < n; ++c) about[c] = centered && weight[c] > 0 ? about[c] / weight[c] : A(0);
        each_row([&](const T* at, const A* m) {
            for (i64 c = 0; c < n; ++c) {
                const A value = load(at + c) - about[c];
                const A d = m[c] > 0 ? value : A(0);
                s1[c] = fma(m[c], d, s1[c]);
                s2[c] = fma(m[c] * d, d, s2[c]);
            }
        });
        for (i64 c = 0; c < n; ++c)
            merge((tile.column + c) / pass.p.stride,
                  about_shift(weight[c], about[c], s1[c], s2[c], centered));
    }

    // The moments of sets, pooled over the team's parts, the folded rows and the channels of each set.
    template <class Part>
    void merge(const Pass& pass, const Block& block, Range sets, const Part& part, int size) const {
        const i64 of_set = pass.p.inner / pass.p.stride, slots = block.columns / pass.p.stride;
        if (size == 1 && block.fold == 1 && of_set == 1)
            return pass.finish(block.first_set + sets.begin, sets.end - sets.begin, count + sets.begin,
                               mean + sets.begin, m2 + sets.begin);
        const auto each = [&](i64 set, const auto& body) {
            for (int t = 0; t < size; ++t)
                for (i64 j = 0; j < block.fold; ++j)
                    for (i64 i = 0; i < of_set; ++i) body(part(t).at(j * slots + set * of_set + i));
        };
        for (i64 set = sets.begin; set < sets.end; ++set) {
            double n = 0, sum = 0, m2_all = 0;
            each(set, [&](const Moments& m) { n += m.count, sum += m.count * m.mean; });
            const double center = n > 0 ? sum / n : 0;
            each(set,
                 [&](const Moments& m) { m2_all += m.m2 + m.count * (m.mean - center) * (m.mean - center); });
            pass.finish(block.first_set + set, {n, center, m2_all});
        }
    }
};

// One set at a time.
template <class Pass>
struct RowMoments {
    using T = typename Pass::T;
    using A = typename Pass::A;

    static i64 bytes(const Pass&) { return 0; }
    RowMoments(const Pass&, Arena&, int) {}
    void clear() const {}
    void flush() const {}

    void add(const Pass& pass, i64 set, const A*, const A*, i64) const {
        const i64 width = pass.p.inner;
        Sweep<T> sweep;
        sweep.start(pass.f.centered);
        sweep.add(pass.x + set * width, width, ahead_in<T>(width, false, 0));
        sweep.fold();
        pass.finish(set, sweep.seen);
    }
};

}  // namespace EVENLY_ISA
}  // namespace evenly
