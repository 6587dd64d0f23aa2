// Steps 3 and 4. A visit sums over a slab and then writes its input's gradient in reverse order.

#include "kernels.hpp"
#include "walk.hpp"

namespace evenly {
namespace EVENLY_ISA {
namespace {

// Sums of g and g * d per channel or column.
struct Sums {
    double *g, *gd;

    void clear(i64 n) const {
        std::fill(g, g + n, 0.0);
        std::fill(gd, gd + n, 0.0);
    }
};

template <class T>
struct Walker {
    using A = accumulator_t<T>;
    const Backward& f;
    const Partition& p;
    const T *dy, *x, *residual;
    const A *mask, *mean, *rstd, *counts;
    A *sum_g, *sum_gx, *dweight, *dbias;
    T *dx, *dresidual;
    A arg;
    bool streams;
    double per_element;  // 1 / count

    explicit Walker(const Backward& call)
        : f(call),
          p(call.partition),
          dy(static_cast<const T*>(call.dy)),
          x(static_cast<const T*>(call.x)),
          residual(static_cast<const T*>(call.residual)),
          mask(static_cast<const A*>(call.mask)),
          mean(static_cast<const A*>(call.mean)),
          rstd(static_cast<const A*>(call.rstd)),
          counts(static_cast<const A*>(call.counts)),
          sum_g(static_cast<A*>(call.sum_g)),
          sum_gx(static_cast<A*>(call.sum_gx)),
          dweight(static_cast<A*>(call.dweight)),
          dbias(static_cast<A*>(call.dbias)),
          dx(static_cast<T*>(call.dx)),
          dresidual(static_cast<T*>(call.dresidual)),
          arg(static_cast<A>(call.arg)),
          streams(goes_past_cache(p.numel() * static_cast<i64>(sizeof(T)))),
          per_element(call.count > 0 ? 1 / call.count : 1) {}

    const A* mask_of(i64 k, i64 n, A* buffer) const {
        return mask_tile(mask, f.mask_elements, p, k, n, buffer);
    }

    // Call use(slopes) with where the slopes of the elements from k on come from.
    template <class Use>
    void with_slopes(i64 k, const Use& use) const {
        if (f.bits) return use(OfBits<A>{f.bits, k, f.kind == Kind::leaky_relu ? arg : A(0)});
        with_kind(f.kind, [&](auto kind) {
            constexpr Kind K = decltype(kind)::value;
            if (residual) return use(OfSum<K, T, A>{residual + k, arg});
            use(OfZ<K, A>{arg});
        });
    }

    // g and d of elements k … k + n, 0 where the mask zeroes; at most a tile.
    template <class Affine>
    void masked(i64 k, i64 n, const Affine& affine, A* g, A* d) const {
        with_slopes(k, [&](const auto& slopes) { slope_tile(dy + k, x + k, n, affine, slopes, g, d); });
        if (!f.zeroes) return;
        A buffer[kTile];
        const A* m = mask_of(k, n, buffer);
        for (i64 i = 0; i < n; ++i) g[i] = m[i] > 0 ? g[i] : A(0), d[i] = m[i] > 0 ? d[i] : A(0);
    }

    // Add the sums of g and g * d over elements k … k + n.
    template <class Affine>
    void sum(i64 k, i64 n, const Affine& affine, const Ahead& ahead, double& g_all, double& gd_all) const {
        const i64 most = f.zeroes ? kTile : kPiece;
        for (i64 i = 0; i < n; i += most) {
            const i64 length = std::min(most, n - i);
            if (f.zeroes) {
                sum_masked(k + i, length, affine.from(i), g_all, gd_all);
            } else {
                with_slopes(k + i, [&](const auto& slopes) {
                    slope_sums<A>(dy + k + i, x + k + i, length, affine.from(i), slopes, ahead.from(i), g_all,
                                  gd_all);
                });
            }
        }
    }

    template <class Affine>
    void sum_masked(i64 k, i64 n, const Affine& affine, double& g_all, double& gd_all) const {
        A g[kTile], d[kTile], a1 = 0, a2 = 0;
        masked(k, n, affine, g, d);
#pragma omp simd reduction(+ : a1, a2)
        for (i64 i = 0; i < n; ++i) a1 += g[i], a2 = fma(g[i], d[i], a2);
        g_all += a1;
        gd_all += a2;
    }

    // The same per element, of at most a tile.
    template <class Affine>
    void add(i64 k, i64 n, const Affine& affine, const Ahead& ahead, A* g_each, A* gd_each) const {
        if (!f.zeroes)
            return with_slopes(k, [&](const auto& slopes) {
                slope_add(dy + k, x + k, n, affine, slopes, ahead, g_each, gd_each);
            });
        A g[kTile], d[kTile];
        masked(k, n, at_each(affine), g, d);
#pragma omp simd
        for (i64 i = 0; i < n; ++i) g_each[i] += g[i], gd_each[i] = fma(g[i], d[i], gd_each[i]);
    }

    // dx and dresidual of elements k … k + n.
    template <class Affine>
    void input(i64 k, i64 n, const Affine& affine, const Ahead& ahead) const {
        if (f.zeroes || f.weighs || dx == nullptr || (dresidual && !f.measured)) {
            for (i64 i = 0; i < n; i += kTile)
                input_apart(k + i, std::min(kTile, n - i), at_each(affine).from(i));
            return;
        }
        with_slopes(k, [&](const auto& slopes) {
            if (dresidual) {
                inputs_tile<A>(dy + k, x + k, n, affine, slopes, ahead, dx + k, dresidual + k, streams);
            } else if (f.measured) {
                input_tile<true, A>(dy + k, x + k, n, affine, slopes, ahead, dx + k, streams);
            } else {
                input_tile<false, A>(dy + k, x + k, n, affine, slopes, ahead, dx + k, streams);
            }
        });
    }

    // The same with g and d apart, for what is rare; at most a tile.
    template <class Affine>
    void input_apart(i64 k, i64 n, const Affine& affine) const {
        A g[kTile], d[kTile];
        masked(k, n, affine, g, d);
        for (i64 i = 0; dresidual && i < n; ++i) store(dresidual + k + i, g[i]);
        if (dx == nullptr) return;
        A buffer[kTile];
        const A* m = f.weighs ? mask_of(k, n, buffer) : nullptr;
        for (i64 i = 0; i < n; ++i) {
            const A weight = m ? m[i] : A(1), shared = weight * fma(affine.p(i), d[i], affine.q(i));
            store(dx + k + i, fma(affine.scale(i), g[i], f.measured && weight > 0 ? shared : A(0)));
        }
    }

    // The same for a tile of columns.
    template <class Affine>
    void add_block(const Block& block, i64 row, i64 rows, i64 column, i64 n, const Affine& affine, A* g_each,
                   A* gd_each) const {
        for (i64 r = row; r < row + rows; ++r)
            add(block.base + r * block.pitch + column, n, affine,
                block.template ahead<T>(n, r + 1 < row + rows), g_each, gd_each);
    }

    template <class Affine>
    void input_block(const Block& block, i64 row, i64 rows, i64 column, i64 n, const Affine& affine,
                     const Coming& coming) const {
        for (i64 r = row; r < row + rows; ++r)
            input(block.base + r * block.pitch + column, n, affine,
                  coming.ahead(r, n, block.template ahead<T>(n, r + 1 < row + rows)));
    }

    // What the set's shared gradient needs: dx = scale * g + p * d + q.
    struct Shared {
        A p, q;
    };
    Shared shared(i64 set) const {
        if (!f.measured) return {0, 0};
        const double r = rstd[set] * (counts ? (counts[set] > 0 ? 1.0 / counts[set] : 1.0) : per_element);
        return {static_cast<A>(-r * rstd[set] * sum_gx[set]),
                f.centered ? static_cast<A>(-r * sum_g[set]) : A(0)};
    }

    // Keep the sums of n sets of one channel each that lie one after the other, in vector loops.
    void finish_single(i64 set, i64 channel, i64 n, const double* g, const double* gd,
                       const Sums& partial) const {
        const i64 at = set / p.group * p.channels + channel;
        const A *weight = static_cast<const A*>(f.weight), *r = rstd + set;
        double *kept_g = partial.g + at, *kept_gd = partial.gd + at;
        A *out_g = sum_g + set, *out_gx = sum_gx + set;
        for (i64 i = 0; i < n; ++i) kept_g[i] = g[i], kept_gd[i] = gd[i] * r[i];
        if (weight) {
            for (i64 i = 0; i < n; ++i) out_g[i] = static_cast<A>(kept_g[i] * weight[channel + i]);
            for (i64 i = 0; i < n; ++i) out_gx[i] = static_cast<A>(kept_gd[i] * weight[channel + i]);
        } else {
            for (i64 i = 0; i < n; ++i) out_g[i] = static_cast<A>(kept_g[i]);
            for (i64 i = 0; i < n; ++i) out_gx[i] = static_cast<A>(kept_gd[i]);
        }
    }

    // Keep the sums of one set's channels, and weigh them into the set's own.
    void finish(i64 set, i64 channel, i64 channels, const double* g, const double* gd,
                const Sums& partial) const {
        double all_g = 0, all_gx = 0;
        const double r = rstd[set];
        for (i64 c = 0; c < channels; ++c) {
            const double weight = weight_of<A>(f.weight, channel + c);
            all_g += weight * g[c];
            all_gx += weight * gd[c];
            const i64 at = set / p.group * p.channels + channel + c;
            partial.g[at] = g[c];
            partial.gd[at] = gd[c] * r;
        }
        sum_g[set] = static_cast<A>(all_g);
        sum_gx[set] = static_cast<A>(all_gx * r);
    }

    // dweight and dbias of channels: the partial sums of all `outer` (or threads), in their order.
    void reduce(Range channels, const Sums& partial, i64 parts) const {
        for (i64 c = channels.begin; c < channels.end; ++c) {
            double g = 0, gx = 0;
            for (i64 i = 0; i < parts; ++i)
                g += partial.g[i * p.channels + c], gx += partial.gd[i * p.channels + c];
            dbias[c] = static_cast<A>(g);
            dweight[c] = static_cast<A>(gx);
        }
    }

    void planes() const;
    void columns() const;
    void rows() const;
    void sum_planes(const Slab&, const PlaneShare&, const Sums& sums) const;
    void input_planes(const Slab&, const PlaneShare&, const Coming&) const;
    void row(i64 set, const A* weight, const A* bias, A* g_each, A* gx_each) const;
};

template <class T>
void Walker<T>::sum_planes(const Slab& slab, const PlaneShare& share, const Sums& sums) const {
    const i64 channels_per_set = p.inner / p.stride;
    const bool apart = is_short<T>(share.row(slab));
    for (i64 b = share.batch.begin; b < share.batch.end; ++b) {
        const i64 next = b + 1 < share.batch.end ? p.row() : 0;
        for (i64 i = 0; i < slab.size(); ++i) {
            const i64 set = slab.outer * p.group + slab.groups.begin + i, slot = i * channels_per_set;
            const i64 base = slab.base + b * p.row() + i * p.inner, first = base / p.stride % p.channels;
            for_planes(p, base, share.inner, [&](i64 k, i64 length, i64 plane) {
                const i64 c = first + plane;
                const Run<A> affine{mean[set], rstd[set] * weight_of<A>(f.weight, c), bias_of<A>(f.bias, c)};
                sum(k, length, affine, ahead_in<T>(length, apart, next), sums.g[slot + plane],
                    sums.gd[slot + plane]);
            });
        }
    }
}

template <class T>
void Walker<T>::input_planes(const Slab& slab, const PlaneShare& share, const Coming& coming) const {
    for (i64 b = share.batch.end - 1; b >= share.batch.begin; --b) {
        for (i64 i = slab.size() - 1; i >= 0; --i) {
            const i64 set = slab.outer * p.group + slab.groups.begin + i;
            const i64 base = slab.base + b * p.row() + i * p.inner, first = base / p.stride % p.channels;
            const Shared s = shared(set);
            for_planes(p, base, share.inner, [&](i64 k, i64 length, i64 plane) {
                const i64 c = first + plane;
                const Run<A> affine{mean[set], rstd[set] * weight_of<A>(f.weight, c), bias_of<A>(f.bias, c),
                                    s.p, s.q};
                input(k, length, affine, coming.ahead(b - share.batch.begin, length, {}));
            });
        }
    }
}

template <class T>
void Walker<T>::planes() const {
    const i64 element = static_cast<i64>(sizeof(T)) * (residual ? 3 : 2);
    const PlaneTasks tasks = plane_tasks(p, sizeof(T), element, f.threads);
    const i64 channels_per_set = p.inner / p.stride, slots = tasks.group_size * channels_per_set;
    const i64 partials = p.outer * p.channels;
    Arena arena{scratch(2 * (Arena::size_of<double>(partials) + f.threads * Arena::size_of<double>(slots)))};
    const Sums partial{arena.take<double>(partials), arena.take<double>(partials)};
    char* memory = arena.at;
    const auto sums_of = [&](int thread) {
        Arena own{memory + thread * 2 * Arena::size_of<double>(slots)};
        double* g = own.take<double>(slots);
        return Sums{g, own.take<double>(slots)};
    };
    i64 taken = 0;
    parallel(f.threads, [&](const Team& team) {
        const Team alone;
        const Team& sharing = tasks.teams ? team : alone;
        const PlaneShare share(p, sharing);
        const Sums mine = sums_of(team.index);
        const auto sum = [&](const Slab& slab) {
            mine.clear(slots);
            sum_planes(slab, share, mine);
            sharing.barrier();
            if (sharing.index == 0) {
                for (int t = 1; t < sharing.size; ++t) {
                    const Sums other = sums_of(t);
                    for (i64 i = 0; i < slots; ++i) mine.g[i] += other.g[i], mine.gd[i] += other.gd[i];
                }
                for (i64 i = 0; i < slab.size(); ++i) {
                    const i64 g = slab.groups.begin + i, slot = i * channels_per_set;
                    finish(slab.outer * p.group + g, g * channels_per_set, channels_per_set, mine.g + slot,
                           mine.gd + slot, partial);
                }
            }
            sharing.barrier();
        };
        for_tasks(tasks.count, tasks.teams, team, &taken, [&](i64 task, i64 next) {
            const Slab slab(p, tasks, task);
            if (f.sum) sum(slab);
            if (!f.input) return;
            input_planes(slab, share,
                         {slab, p, tasks, f.sum ? next : tasks.count, share.row(slab) * element});
        });
        if (streams) fence();
        if (f.sum) {
            team.barrier();
            reduce(team.share(p.channels), partial, p.outer);
        }
    });
}

template <class T>
void Walker<T>::columns() const {
    const i64 element = static_cast<i64>(sizeof(T)) * (residual ? 3 : 2);
    const ColumnTasks tasks = column_tasks(p, sizeof(T), element, f.threads);
    const i64 width = tasks.width * tasks.fold, partials = p.outer * p.channels;
    const i64 slots = width / p.stride, channels_per_set = p.inner / p.stride;
    const i64 each = 2 * Arena::size_of<double>(slots) + 5 * Arena::size_of<A>(width) +
                     2 * Arena::size_of<double>(channels_per_set);
    const i64 head = Arena::size_of<Sums>(f.threads);
    Arena arena{scratch(2 * Arena::size_of<double>(partials) + head + each * f.threads)};
    const Sums partial{arena.take<double>(partials), arena.take<double>(partials)};
    Sums* parts = arena.take<Sums>(f.threads);
    char* memory = arena.at;
    i64 taken = 0;
    parallel(f.threads, [&](const Team& team) {
        Arena own{memory + team.index * each};
        Sums& mine = parts[team.index];
        mine = {own.take<double>(slots), own.take<double>(slots)};
        A *m = own.take<A>(width), *s = own.take<A>(width), *b = own.take<A>(width);
        A *ps = own.take<A>(width), *qs = own.take<A>(width);
        const Sums channel{own.take<double>(channels_per_set), own.take<double>(channels_per_set)};
        const Columns<A> affine{m, s, b, ps, qs};
        const Team alone;
        const Team& sharing = tasks.teams ? team : alone;
        const auto sum_tile = [&](const Block& block, i64 row, i64 rows, i64 column, i64 n) {
            TileSums<A> sums;
            A *g = sums.first(), *gd = sums.second();
            std::fill(g, g + n, A(0));
            std::fill(gd, gd + n, A(0));
            with_constants<A>(p, affine.from(column), column, [&](const auto& constants) {
                add_block(block, row, rows, column, n, constants, g, gd);
            });
            if (p.stride == 1) {
#pragma omp simd
                for (i64 c = 0; c < n; ++c) mine.g[column + c] += g[c], mine.gd[column + c] += gd[c];
                return;
            }
            for_slots(p.stride, column, n, [&](i64 slot, i64 first, i64 length) {
                double all_g = 0, all_gd = 0;
#pragma omp simd reduction(+ : all_g, all_gd)
                for (i64 c = first; c < first + length; ++c) all_g += g[c], all_gd += gd[c];
                mine.g[slot] += all_g, mine.gd[slot] += all_gd;
            });
        };
        // The sums of sets [begin, end): over the team's parts and the folded rows.
        const auto merge = [&](const Block& block, Range sets, i64 first_set, const Sums* all, int size) {
            if (size == 1 && block.fold == 1 && channels_per_set == 1)
                return finish_single(first_set + sets.begin, block.first_column / p.stride + sets.begin,
                                     sets.end - sets.begin, all[0].g + sets.begin, all[0].gd + sets.begin,
                                     partial);
            for (i64 set = sets.begin; set < sets.end; ++set) {
                for (i64 c = 0; c < channels_per_set; ++c) {
                    double g = 0, gd = 0;
                    for (int t = 0; t < size; ++t)
                        for (i64 j = 0; j < block.fold; ++j) {
                            const i64 slot = (j * block.columns + set * p.inner) / p.stride + c;
                            g += all[t].g[slot], gd += all[t].gd[slot];
                        }
                    channel.g[c] = g, channel.gd[c] = gd;
                }
                finish(first_set + set, block.first_column / p.stride + set * channels_per_set,
                       channels_per_set, channel.g, channel.gd, partial);
            }
        };
        for_tasks(tasks.count, tasks.teams, team, &taken, [&](i64 task, i64 next) {
            const Block block(p, tasks, task);
            const i64 first_set = (task / tasks.per_outer) * p.group + block.first_column / p.inner;
            spread<A>(p, block, mean + first_set, rstd + first_set, f.weight, f.bias, m, s, b);
            if (f.sum) {
                mine.clear(slots);
                for_column_tiles(block, sharing, false,
                                 [&](i64 row, i64 rows, i64 c, i64 n) { sum_tile(block, row, rows, c, n); });
                sharing.barrier();
                merge(block, sharing.share(block.columns / p.inner), first_set, tasks.teams ? parts : &mine,
                      sharing.size);
                sharing.barrier();
            }
            if (!f.input) return;
            for (i64 set = 0; set < block.columns / p.inner; ++set) {
                const Shared both = shared(first_set + set);
                for (i64 i = set * p.inner; i < (set + 1) * p.inner; ++i) ps[i] = both.p, qs[i] = both.q;
            }
            for (i64 j = 1; j < block.fold; ++j) {
                std::memcpy(ps + j * block.columns, ps, block.columns * sizeof(A));
                std::memcpy(qs + j * block.columns, qs, block.columns * sizeof(A));
            }
            const Coming coming(block, p, tasks, f.sum ? next : tasks.count, block.width * element);
            for_column_tiles(block, sharing, true, [&](i64 row, i64 rows, i64 column, i64 n) {
                with_constants<A>(p, affine.from(column), column, [&](const auto& constants) {
                    input_block(block, row, rows, column, n, constants, coming);
                });
            });
        });
        if (streams) fence();
        if (f.sum) {
            team.barrier();
            reduce(team.share(p.channels), partial, p.outer);
        }
    });
}

// Both steps of one row; sums of g and g * xhat per element go to g_each, gx_each.
template <class T>
void Walker<T>::row(i64 set, const A* weight, const A* bias, A* g_each, A* gx_each) const {
    const i64 width = p.inner, base = set * width;
    Row<A> affine{mean[set], rstd[set], weight, bias};
    if (f.sum) {
        double all_g = 0, all_gd = 0;
        for (i64 i = 0; i < width; i += kTile) {
            const i64 n = std::min(kTile, width - i);
            const Row<A> part = affine.from(i);
            with_slopes(base + i, [&](const auto& slopes) {
                row_sums(dy + base + i, x + base + i, n, part, slopes, g_each + i, gx_each + i, all_g,
                         all_gd);
            });
        }
        sum_g[set] = static_cast<A>(all_g);
        sum_gx[set] = static_cast<A>(all_gd * rstd[set]);
    }
    if (!f.input) return;
    const Shared s = shared(set);
    affine.p_ = s.p, affine.q_ = s.q;
    input(base, width, affine, {});
}

template <class T>
void Walker<T>::rows() const {
    const i64 n = p.channels, doubles = Arena::size_of<double>(f.threads * n),
              each = 2 * Arena::size_of<A>(n);
    Arena arena{scratch(2 * doubles + each * (f.threads + 1))};
    const Sums partial{arena.take<double>(f.threads * n), arena.take<double>(f.threads * n)};
    A *ones = arena.take<A>(n), *zeros = arena.take<A>(n);
    const A *weight = static_cast<const A*>(f.weight), *bias = static_cast<const A*>(f.bias);
    if (weight == nullptr) std::fill(ones, ones + n, A(1)), weight = ones;
    if (bias == nullptr) std::fill(zeros, zeros + n, A(0)), bias = zeros;
    char* memory = arena.at;
    parallel(f.threads, [&](const Team& team) {
        Arena own{memory + team.index * each};
        A *g = own.take<A>(n), *gx = own.take<A>(n);
        const Sums mine{partial.g + team.index * n, partial.gd + team.index * n};
        mine.clear(n);
        const Range sets = team.share(p.sets());
        for (i64 begin = sets.begin; begin < sets.end; begin += kTileRows) {
            std::fill(g, g + n, A(0));
            std::fill(gx, gx + n, A(0));
            for (i64 set = begin; set < std::min(begin + kTileRows, sets.end); ++set) {
                const i64 offset = set % p.group * p.inner;
                row(set, weight + offset, bias + offset, g + offset, gx + offset);
            }
            if (f.sum)
                for (i64 c = 0; c < n; ++c) mine.g[c] += g[c], mine.gd[c] += gx[c];
        }
        if (streams) fence();
        if (f.sum) {
            team.barrier();
            reduce(team.share(n), partial, team.size);
        }
    });
}

template <class T>
void run(const Backward& f) {
    const Walker<T> walker(f);
    if (f.partition.numel() == 0) {
        if (!f.sum) return;
        std::fill(walker.sum_g, walker.sum_g + f.partition.sets(), 0);
        std::fill(walker.sum_gx, walker.sum_gx + f.partition.sets(), 0);
        std::fill(walker.dweight, walker.dweight + f.partition.channels, 0);
        std::fill(walker.dbias, walker.dbias + f.partition.channels, 0);
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
void backward(const Backward& f) { run<bfloat16>(f); }
#else
void backward(const Backward& f) {
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
