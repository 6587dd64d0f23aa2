// Steps 1 and 2. A visit measures a slab and applies the result in reverse order, so that what was
// read last, and is still in cache, is read first.

#include "kernels.hpp"
#include "moments.hpp"
#include "walk.hpp"

namespace evenly {
namespace EVENLY_ISA {
namespace {

// The moments of one set, element by element or tile by tile.
template <class T>
struct Sweep {
    using A = accumulator_t<T>;
    Moments seen;
    A shift;
    double n, s1, s2;
    bool centered, started;

    void start(bool is_centered) {
        seen = {};
        shift = 0;
        n = s1 = s2 = 0;
        centered = is_centered;
        started = false;
    }

    void add(const T* x, i64 length, const Ahead& ahead) {
        constexpr i64 kFold = 2 * kPiece;
        if (!started && centered) shift = mean_of<T, A>(x, std::min<i64>(16, length));
        started = true;
        for (i64 i = 0; i < length; i += kPiece) {
            const i64 piece = std::min(kPiece, length - i);
            sum_about(x + i, piece, shift, ahead.from(i), s1, s2);
            n += static_cast<double>(piece);
            if (n >= kFold) fold();
        }
    }

    // Weighted: each tile about its own mean, since what was seen before may weigh nothing.
    void add_masked(const T* x, const A* mask, i64 length) {
        A weight = 0, sum = 0;
#pragma omp simd reduction(+ : weight, sum)
        for (i64 i = 0; i < length; ++i) {
            const A value = load(x + i);
            weight += mask[i];
            sum += mask[i] > 0 ? mask[i] * value : A(0);
        }
        const A about = centered && weight > 0 ? sum / weight : A(0);
        A a1 = 0, a2 = 0;
#pragma omp simd reduction(+ : a1, a2)
        for (i64 i = 0; i < length; ++i) {
            const A value = load(x + i) - about;
            const A d = mask[i] > 0 ? value : A(0);
            a1 = fma(mask[i], d, a1);
            a2 = fma(mask[i] * d, d, a2);
        }
        seen.merge(about_shift(weight, about, a1, a2, centered));
    }

    void fold() {
        seen.merge(about_shift(n, shift, s1, s2, centered));
        shift = static_cast<A>(seen.mean);
        n = s1 = s2 = 0;
    }
};

template <class T>
struct Walker {
    using A = accumulator_t<T>;
    const Forward& f;
    const Partition& p;
    const T* x;
    const T* residual;
    const A* mask;
    T* y;
    A *mean, *m2, *rstd, *count;
    A arg;
    bool streams;

    explicit Walker(const Forward& call)
        : f(call),
          p(call.partition),
          x(static_cast<const T*>(call.x)),
          residual(static_cast<const T*>(call.residual)),
          mask(static_cast<const A*>(call.mask)),
          y(static_cast<T*>(call.y)),
          mean(static_cast<A*>(call.mean)),
          m2(static_cast<A*>(call.m2)),
          rstd(static_cast<A*>(call.rstd)),
          count(static_cast<A*>(call.count)),
          arg(static_cast<A>(call.arg)),
          streams(goes_past_cache(p.numel() * static_cast<i64>(sizeof(T)))) {}

    const A* mask_of(i64 k, i64 n, A* buffer) const {
        return mask_tile(mask, f.mask_elements, p, k, n, buffer);
    }

    // Sets that lie one after the other: a dense layer has as many as elements in a sample.
    void finish(i64 first_set, i64 n, const double* count_, const double* mean_, const double* m2_) const {
        const double eps = f.eps;  // the m2 of an empty set is 0, whatever it is divided by
        A *mean_out = mean + first_set, *m2_out = m2 + first_set, *rstd_out = rstd + first_set;
#pragma omp simd
        for (i64 i = 0; i < n; ++i) {
            mean_out[i] = static_cast<A>(mean_[i]);
            m2_out[i] = static_cast<A>(m2_[i]);
            rstd_out[i] = static_cast<A>(1 / std::sqrt(m2_[i] / std::max(count_[i], 1e-300) + eps));
        }
        for (i64 i = 0; count && i < n; ++i) count[first_set + i] = static_cast<A>(count_[i]);
    }

    void finish(i64 set, const Moments& m) const {
        mean[set] = static_cast<A>(m.mean);
        m2[set] = static_cast<A>(m.m2);
        rstd[set] = static_cast<A>(rstd_of(m, f.eps));
        if (count) count[set] = static_cast<A>(m.count);
    }

    // What to ask for while y is made.
    struct Asked {
        Ahead x, residual;
        Asked from(i64 i) const { return {x.from(i), residual.from(i)}; }
    };

    // y of elements k … k + n.
    template <class Affine>
    void apply(i64 k, i64 n, const Affine& affine, const Asked& ahead) const {
        if (!f.zeroes) return apply(k, n, affine, ahead, streams);
        for (i64 i = 0; i < n; i += kTile) {
            const i64 length = std::min(kTile, n - i);
            apply(k + i, length, affine.from(i), ahead.from(i), false);
            A buffer[kTile];
            const A* m = mask_of(k + i, length, buffer);
            for (i64 j = 0; j < length; ++j)
                if (!(m[j] > 0)) store(y + k + i + j, A(0));
        }
    }

    template <class Affine>
    void apply(i64 k, i64 n, const Affine& affine, const Asked& ahead, bool streamed) const {
        with_kind(f.kind, [&](auto kind) {
            constexpr Kind K = decltype(kind)::value;
            if (residual == nullptr) return apply_tile<K>(x + k, n, affine, arg, ahead.x, y + k, streamed);
            if (f.bits)
                return residual_tile<K, true>(x + k, residual + k, n, affine, arg, ahead.x, ahead.residual,
                                              f.bits, k, y + k, streamed);
            residual_tile<K, false>(x + k, residual + k, n, affine, arg, ahead.x, ahead.residual, nullptr, k,
                                    y + k, streamed);
        });
    }

    template <class Affine>
    void apply_block(const Block& block, i64 row, i64 rows, i64 column, i64 n, const Affine& affine,
                     const Coming& coming) const {
        for (i64 r = row; r < row + rows; ++r) {
            const Ahead ahead = block.template ahead<T>(n, r + 1 < row + rows);
            apply(block.base + r * block.pitch + column, n, affine, {coming.ahead(r, n, ahead), ahead});
        }
    }

    void planes() const;
    void columns() const;
    void rows() const;
    void measure_planes(const Slab&, const PlaneShare&, Sweep<T>* sweeps) const;
    void apply_planes(const Slab&, const PlaneShare&, const Coming&) const;
    struct SlotMoments {
        double *count, *mean, *m2;

        Moments at(i64 slot) const { return {count[slot], mean[slot], m2[slot]}; }
        void merge(i64 slot, const Moments& other) const {
            Moments all = at(slot);
            all.merge(other);
            count[slot] = all.count, mean[slot] = all.mean, m2[slot] = all.m2;
        }
    };
    void measure_tile(const Block&, i64 row, i64 rows, i64 column, i64 n, const SlotMoments& seen) const;
    void shift_columns(const T*, i64 pitch, i64 rows, i64 n, const SlotMoments&, i64 column, A* shift) const;
    void merge_columns(double added, i64 n, const A*, const A*, const A*, const SlotMoments&,
                       i64 column) const;
    void measure_tile_masked(const Block&, i64 row, i64 rows, i64 column, i64 n,
                             const SlotMoments& seen) const;
    void merge_slots(const Block&, Range sets, const SlotMoments* parts, int size, i64 first_set) const;
};

template <class T>
void Walker<T>::measure_planes(const Slab& slab, const PlaneShare& share, Sweep<T>* sweeps) const {
    const i64 length = share.inner.end - share.inner.begin;
    const bool apart = is_short<T>(share.row(slab));
    A buffer[kTile];
    for (i64 b = share.batch.begin; b < share.batch.end; ++b) {
        const Ahead ahead = ahead_in<T>(length, apart, b + 1 < share.batch.end ? p.row() : 0);
        for (i64 i = 0; i < slab.size(); ++i) {
            const i64 k = slab.base + b * p.row() + i * p.inner + share.inner.begin;
            Sweep<T>& sweep = sweeps[i];
            if (!f.weighs) {
                sweep.add(x + k, length, ahead);
            } else {
                for (i64 j = 0; j < length; j += kTile) {
                    const i64 n = std::min(kTile, length - j);
                    sweep.add_masked(x + k + j, mask_of(k + j, n, buffer), n);
                }
            }
        }
    }
}

template <class T>
void Walker<T>::apply_planes(const Slab& slab, const PlaneShare& share, const Coming& coming) const {
    const i64 length = share.inner.end - share.inner.begin;
    const bool apart = is_short<T>(share.row(slab));
    for (i64 b = share.batch.end - 1; b >= share.batch.begin; --b) {
        // The slab is in L2; a residual is not.
        const Asked ahead{coming.ahead(b - share.batch.begin, length, {}),
                          ahead_in<T>(length, apart, b > share.batch.begin ? -p.row() : 0)};
        for (i64 i = slab.size() - 1; i >= 0; --i) {
            const i64 set = slab.outer * p.group + slab.groups.begin + i;
            const i64 base = slab.base + b * p.row() + i * p.inner, first = base / p.stride % p.channels;
            for_planes(p, base, share.inner, [&](i64 k, i64 length, i64 plane) {
                const i64 c = first + plane;
                const Run<A> affine{mean[set], rstd[set] * weight_of<A>(f.weight, c), bias_of<A>(f.bias, c)};
                apply(k, length, affine, ahead);
            });
        }
    }
}

template <class T>
void Walker<T>::planes() const {
    const i64 element = static_cast<i64>(sizeof(T)) * (residual ? 2 : 1);
    const PlaneTasks tasks = plane_tasks(p, sizeof(T), element, f.threads);
    const i64 each = Arena::size_of<Sweep<T>>(tasks.group_size);
    char* memory = scratch(each * f.threads);
    const auto sweeps_of = [&](int thread) { return reinterpret_cast<Sweep<T>*>(memory + thread * each); };
    i64 taken = 0;
    parallel(f.threads, [&](const Team& team) {
        const Team alone;
        const Team& sharing = tasks.teams ? team : alone;
        const PlaneShare share(p, sharing);
        Sweep<T>* mine = sweeps_of(team.index);
        const auto measure = [&](const Slab& slab) {
            for (i64 i = 0; i < slab.size(); ++i) mine[i].start(f.centered);
            measure_planes(slab, share, mine);
            for (i64 i = 0; i < slab.size(); ++i) mine[i].fold();
            sharing.barrier();
            for (i64 i = 0; sharing.index == 0 && i < slab.size(); ++i) {
                Moments all;
                for (int t = 0; t < sharing.size; ++t) all.merge((tasks.teams ? sweeps_of(t) : mine)[i].seen);
                finish(slab.outer * p.group + slab.groups.begin + i, all);
            }
            sharing.barrier();
        };
        for_tasks(tasks.count, tasks.teams, team, &taken, [&](i64 task, i64 next) {
            const Slab slab(p, tasks, task);
            if (f.measure) measure(slab);
            if (!f.apply) return;
            const i64 bytes = share.row(slab) * static_cast<i64>(sizeof(T));
            apply_planes(slab, share, {slab, p, tasks, f.measure ? next : tasks.count, bytes});
        });
        if (streams) fence();
    });
}

template <class T>
void Walker<T>::measure_tile(const Block& block, i64 row, i64 rows, i64 column, i64 n,
                             const SlotMoments& seen) const {
    const T* first = x + block.base + row * block.pitch + column;
    TileSums<A> sums;
    A *shift = sums.read(), *s1 = sums.first(), *s2 = sums.second();
    if (p.stride == 1) {
        shift_columns(first, block.pitch, std::min<i64>(8, rows), n, seen, column, shift);
    } else {
        for_slots(p.stride, column, n, [&](i64 slot, i64 i, i64 length) {
            const A about = seen.count[slot] > 0 ? static_cast<A>(seen.mean[slot])
                                                 : mean_of<T, A>(first + i, std::min<i64>(16, length));
            std::fill(shift + i, shift + i + length, f.centered ? about : A(0));
        });
    }
    std::fill(s1, s1 + n, A(0));
    std::fill(s2, s2 + n, A(0));
    for (i64 r = 0; r < rows; ++r) {
        const T* at = first + r * block.pitch;
        with_constants<A>(p, {shift, shift, shift}, column, [&](const auto& about) {
            add_about(at, n, about, block.template ahead<T>(n, r + 1 < rows), s1, s2);
        });
    }
    if (p.stride == 1) return merge_columns(static_cast<double>(rows), n, shift, s1, s2, seen, column);
    for_slots(p.stride, column, n, [&](i64 slot, i64 i, i64 length) {
        double all1 = 0, all2 = 0;
#pragma omp simd reduction(+ : all1, all2)
        for (i64 c = i; c < i + length; ++c) all1 += s1[c], all2 += s2[c];
        const double added = static_cast<double>(rows * length);
        seen.merge(slot, about_shift(added, shift[i], all1, all2, f.centered));
    });
}

// What to sum the columns of a tile about: the mean seen so far, or that of a few rows.
template <class T>
void Walker<T>::shift_columns(const T* first, i64 pitch, i64 rows, i64 n, const SlotMoments& seen, i64 column,
                              A* shift) const {
    if (!f.centered) {
        std::fill(shift, shift + n, A(0));
    } else if (seen.count[column] > 0) {
        for (i64 c = 0; c < n; ++c) shift[c] = static_cast<A>(seen.mean[column + c]);
    } else {
        for (i64 c = 0; c < n; ++c) shift[c] = load(first + c);
        for (i64 r = 1; r < rows; ++r)
            for (i64 c = 0; c < n; ++c) shift[c] += load(first + r * pitch + c);
        for (i64 c = 0; c < n; ++c) shift[c] *= A(1) / A(rows);
    }
}

// Where every column is a slot, all of a tile have seen equally many rows: none needs a division.
template <class T>
void Walker<T>::merge_columns(double added, i64 n, const A* shift, const A* s1, const A* s2,
                              const SlotMoments& seen, i64 column) const {
    double *count_ = seen.count + column, *mean_ = seen.mean + column, *m2_ = seen.m2 + column;
    const double total = count_[0] + added, each = 1 / added, share = added / total;
    const double both = count_[0] * share;
#pragma omp simd
    for (i64 c = 0; c < n; ++c) {
        const double about = s1[c] * each, m2 = f.centered ? s2[c] - s1[c] * about : s2[c];
        const double delta = f.centered ? shift[c] + about - mean_[c] : 0;
        m2_[c] += (m2 < 0 ? 0 : m2) + delta * delta * both;
        mean_[c] += delta * share;
        count_[c] = total;
    }
}

template <class T>
void Walker<T>::measure_tile_masked(const Block& block, i64 row, i64 rows, i64 column, i64 n,
                                    const SlotMoments& seen) const {
    A buffer[kTile], weight[kTile] = {}, about[kTile] = {}, s1[kTile] = {}, s2[kTile] = {};
    const auto each_row = [&](const auto& body) {
        for (i64 r = 0; r < rows; ++r) {
            const i64 k = block.base + (row + r) * block.pitch + column;
            body(x + k, mask_of(k, n, buffer));
        }
    };
    each_row([&](const T* at, const A* m) {
        for (i64 c = 0; c < n; ++c) {
            const A value = load(at + c);
            weight[c] += m[c];
            about[c] += m[c] > 0 ? m[c] * value : A(0);
        }
    });
    for (i64 c = 0; c < n; ++c) about[c] = f.centered && weight[c] > 0 ? about[c] / weight[c] : A(0);
    each_row([&](const T* at, const A* m) {
        for (i64 c = 0; c < n; ++c) {
            const A value = load(at + c) - about[c];
            const A d = m[c] > 0 ? value : A(0);
            s1[c] = fma(m[c], d, s1[c]);
            s2[c] = fma(m[c] * d, d, s2[c]);
        }
    });
    for (i64 c = 0; c < n; ++c)
        seen.merge((column + c) / p.stride, about_shift(weight[c], about[c], s1[c], s2[c], f.centered));
}

// The moments of sets, pooled over the team's parts, the folded rows and the channels of each set.
template <class T>
void Walker<T>::merge_slots(const Block& block, Range sets, const SlotMoments* parts, int size,
                            i64 first_set) const {
    const i64 channels_per_set = p.inner / p.stride, slots = block.columns / p.stride;
    if (size == 1 && block.fold == 1 && channels_per_set == 1) {
        const SlotMoments& own = parts[0];
        return finish(first_set + sets.begin, sets.end - sets.begin, own.count + sets.begin,
                      own.mean + sets.begin, own.m2 + sets.begin);
    }
    const auto each = [&](i64 set, const auto& body) {
        for (int t = 0; t < size; ++t)
            for (i64 j = 0; j < block.fold; ++j)
                for (i64 i = 0; i < channels_per_set; ++i)
                    body(parts[t].at(j * slots + set * channels_per_set + i));
    };
    for (i64 set = sets.begin; set < sets.end; ++set) {
        double n = 0, sum = 0, m2_all = 0;
        each(set, [&](const Moments& m) { n += m.count, sum += m.count * m.mean; });
        const double center = n > 0 ? sum / n : 0;
        each(set,
             [&](const Moments& m) { m2_all += m.m2 + m.count * (m.mean - center) * (m.mean - center); });
        finish(first_set + set, {n, center, m2_all});
    }
}

template <class T>
void Walker<T>::columns() const {
    const i64 element = static_cast<i64>(sizeof(T)) * (residual ? 2 : 1);
    const ColumnTasks tasks = column_tasks(p, sizeof(T), element, f.threads);
    const i64 width = tasks.width * tasks.fold, slots = width / p.stride;
    const i64 each = 3 * (Arena::size_of<double>(slots) + Arena::size_of<A>(width));
    const i64 head = Arena::size_of<SlotMoments>(f.threads);
    char* memory = scratch(head + each * f.threads);
    SlotMoments* parts = reinterpret_cast<SlotMoments*>(memory);
    i64 taken = 0;
    parallel(f.threads, [&](const Team& team) {
        Arena arena{memory + head + team.index * each};
        SlotMoments& mine = parts[team.index];
        mine = {arena.take<double>(slots), arena.take<double>(slots), arena.take<double>(slots)};
        A *m = arena.take<A>(width), *s = arena.take<A>(width), *b = arena.take<A>(width);
        const Team alone;
        const Team& sharing = tasks.teams ? team : alone;
        for_tasks(tasks.count, tasks.teams, team, &taken, [&](i64 task, i64 next) {
            const Block block(p, tasks, task);
            const i64 first_set = (task / tasks.per_outer) * p.group + block.first_column / p.inner;
            if (f.measure) {
                for (double* moment : {mine.count, mine.mean, mine.m2})
                    std::fill(moment, moment + slots, 0.0);
                for_column_tiles(block, sharing, false, [&](i64 row, i64 rows, i64 column, i64 n) {
                    f.weighs ? measure_tile_masked(block, row, rows, column, n, mine)
                             : measure_tile(block, row, rows, column, n, mine);
                });
                sharing.barrier();
                merge_slots(block, sharing.share(block.columns / p.inner), tasks.teams ? parts : &mine,
                            sharing.size, first_set);
                sharing.barrier();
            }
            if (!f.apply) return;
            spread<A>(p, block, mean + first_set, rstd + first_set, f.weight, f.bias, m, s, b);
            const Columns<A> affine{m, s, b};
            const Coming coming(block, p, tasks, f.measure ? next : tasks.count,
                                block.width * static_cast<i64>(sizeof(T)));
            for_column_tiles(block, sharing, true, [&](i64 row, i64 rows, i64 column, i64 n) {
                with_constants<A>(p, affine.from(column), column, [&](const auto& constants) {
                    apply_block(block, row, rows, column, n, constants, coming);
                });
            });
        });
        if (streams) fence();
    });
}

template <class T>
void Walker<T>::rows() const {
    const i64 width = p.inner;
    A* ones = reinterpret_cast<A*>(scratch(2 * p.channels * static_cast<i64>(sizeof(A))));
    const A *weight = static_cast<const A*>(f.weight), *bias = static_cast<const A*>(f.bias);
    if (weight == nullptr) std::fill(ones, ones + p.channels, A(1)), weight = ones;
    if (bias == nullptr) std::fill(ones + p.channels, ones + 2 * p.channels, A(0)), bias = ones + p.channels;
    parallel(f.threads, [&](const Team& team) {
        Sweep<T> sweep;
        const Range mine = team.share(p.sets());
        for (i64 set = mine.begin; set < mine.end; ++set) {
            if (f.measure) {
                sweep.start(f.centered);
                sweep.add(x + set * width, width, ahead_in<T>(width, false, 0));
                sweep.fold();
                finish(set, sweep.seen);
            }
            if (!f.apply) continue;
            const i64 offset = set % p.group * width;
            const Row<A> affine{mean[set], rstd[set], weight + offset, bias + offset};
            apply(set * width, width, affine, {{}, ahead_in<T>(width, false, 0)});
        }
        if (streams) fence();
    });
}

template <class T>
void run(const Forward& f) {
    const Walker<T> walker(f);
    if (f.partition.numel() == 0) {
        if (f.measure)
            for (i64 set = 0; set < f.partition.sets(); ++set) walker.finish(set, {});
        return;
    }
    switch (walk_of(f.partition, f.mask != nullptr, sizeof(T))) {
        case Walk::planes:
            return walker.planes();
        case Walk::columns:
            return walker.columns();
        case Walk::rows:
            return walker.rows();
        case Walk::none:
            return;
    }
}

}  // namespace

#if defined(EVENLY_BFLOAT16_ALONE)
void forward(const Forward& f) { run<bfloat16>(f); }
#else
void forward(const Forward& f) {
    switch (f.dtype) {
        case DType::float32:
            return run<float>(f);
        case DType::float64:
            return run<double>(f);
        case DType::bfloat16:
            return run<bfloat16>(f);
        case DType::float16:
            return run<float16>(f);
    }
}
#endif

}  // namespace EVENLY_ISA
}  // namespace evenly
