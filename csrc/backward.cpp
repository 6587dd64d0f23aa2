// Steps 3 and 4: a pass sums (sum.hpp) and then gives the input's gradient
//   g = dy * activation'(z),  dx = rstd * (weight * g - m * (sum g + xhat * sum gx) / count).

#include "kernels.hpp"
#include "loops.hpp"
#include "mask.hpp"
#include "sum.hpp"
#include "walks.hpp"

namespace evenly {
namespace EVENLY_ISA {
namespace {

template <class Element>
struct Pass {
    using T = Element;
    using A = accumulator_t<T>;
    using SlabSums = SlabGradients<Pass>;
    using BlockSums = BlockGradients<Pass>;
    using RowSums = RowGradients<Pass>;
    using PlaceSums = PlaceGradients<Pass>;
    static constexpr i64 tables = 5;
    const Backward& f;
    const Partition& p;
    const T *dy, *x, *residual;
    const A *weight, *bias, *mask, *mean, *rstd, *counts;
    A *sum_g, *sum_gx, *dweight, *dbias;
    T *dx, *dresidual;
    A arg;
    bool first, second, streams;
    i64 element, coming;
    double per_element;  // 1 / count
    Sums partial{};      // of the channels: one part each for every `outer`, or for every thread

    Pass(const Backward& call, const Partition& partition)
        : f(call),
          p(partition),
          dy(static_cast<const T*>(call.dy)),
          x(static_cast<const T*>(call.x)),
          residual(static_cast<const T*>(call.residual)),
          weight(static_cast<const A*>(call.weight)),
          bias(static_cast<const A*>(call.bias)),
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
          first(call.sum),
          second(call.input),
          streams(goes_past_cache(p.numel() * static_cast<i64>(sizeof(T)))),
          element(static_cast<i64>(sizeof(T)) * (residual ? 3 : 2)),
          coming(element),
          per_element(call.count > 0 ? 1 / call.count : 1) {}

    i64 reserve(i64 parts) const { return Sums::bytes(parts * p.channels); }
    void take(Arena& arena, i64 parts) { partial = Sums::take(arena, parts * p.channels); }
    void before_first(const Block& block, const Tables<A>& of_columns) const {
        of_columns.spread(*this, block);
    }
    void before_second(const Block& block, const Tables<A>& of_columns) const {
        of_columns.spread_shared(*this, block);
    }
    const A* mask_of(i64 k, i64 n, A* buffer) const {
        return mask_tile(mask, f.mask_elements, p, k, n, buffer);
    }

    // A set's numbers: dx = scale * g + p * d + q.
    OfSet<A> of_set(i64 set) const {
        if (!f.measured) return {mean[set], rstd[set]};
        const double r = rstd[set] * (counts ? (counts[set] > 0 ? 1.0 / counts[set] : 1.0) : per_element);
        return {mean[set], rstd[set], static_cast<A>(-r * rstd[set] * sum_gx[set]),
                f.centered ? static_cast<A>(-r * sum_g[set]) : A(0)};
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

    // Add g and g * d to a sum per element, of at most a tile.
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
    void write(i64 k, i64 n, const Affine& affine, const Asked& asked) const {
        if (f.zeroes || f.weighs || dx == nullptr || (dresidual && !f.measured)) {
            for (i64 i = 0; i < n; i += kTile)
                write_apart(k + i, std::min(kTile, n - i), at_each(affine).from(i));
            return;
        }
        const Ahead& ahead = asked.seen;
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

    // dx and dresidual from g and d apart, for what is rare; at most a tile.
    template <class Affine>
    void write_apart(i64 k, i64 n, const Affine& affine) const {
        A g[kTile], d[kTile];
        masked(k, n, affine, g, d);
        for (i64 i = 0; dresidual && i < n; ++i) store(dresidual + k + i, g[i]);
        if (dx == nullptr) return;
        A buffer[kTile];
        const A* m = f.weighs ? mask_of(k, n, buffer) : nullptr;
        for (i64 i = 0; i < n; ++i) {
            const A share = m ? m[i] : A(1), shared = share * fma(affine.p(i), d[i], affine.q(i));
            store(dx + k + i, fma(affine.scale(i), g[i], f.measured && share > 0 ? shared : A(0)));
        }
    }

    // Keep the sums of n sets of one channel each that lie one after the other, in vector loops.
    void finish_single(i64 set, i64 channel, i64 n, const Sums& sums) const {
        const i64 at = set / p.group * p.channels + channel;
        const A* r = rstd + set;
        double *kept_g = partial.g + at, *kept_gd = partial.gd + at;
        A *out_g = sum_g + set, *out_gx = sum_gx + set;
        for (i64 i = 0; i < n; ++i) kept_g[i] = sums.g[i], kept_gd[i] = sums.gd[i] * r[i];
        if (weight) {
            for (i64 i = 0; i < n; ++i) out_g[i] = static_cast<A>(kept_g[i] * weight[channel + i]);
            for (i64 i = 0; i < n; ++i) out_gx[i] = static_cast<A>(kept_gd[i] * weight[channel + i]);
        } else {
            for (i64 i = 0; i < n; ++i) out_g[i] = static_cast<A>(kept_g[i]);
            for (i64 i = 0; i < n; ++i) out_gx[i] = static_cast<A>(kept_gd[i]);
        }
    }

    // Keep the sums of one set's channels, and weigh them into the set's own.
    void finish(i64 set, i64 channel, i64 channels, const Sums& sums) const {
        double all_g = 0, all_gx = 0;
        const double r = rstd[set];
        for (i64 c = 0; c < channels; ++c) {
            const double scale = weight_of<A>(weight, channel + c);
            all_g += scale * sums.g[c];
            all_gx += scale * sums.gd[c];
            const i64 at = set / p.group * p.channels + channel + c;
            partial.g[at] = sums.g[c];
            partial.gd[at] = sums.gd[c] * r;
        }
        sum_g[set] = static_cast<A>(all_g);
        sum_gx[set] = static_cast<A>(all_gx * r);
    }

    // The sums of no elements.
    void nothing() const {
        if (!f.sum) return;
        for (A* sums : {sum_g, sum_gx}) std::fill(sums, sums + p.sets(), A(0));
        for (A* sums : {dweight, dbias}) std::fill(sums, sums + p.channels, A(0));
    }

    // dweight and dbias: each member adds up the parts of some channels, in their order.
    void reduce(const Team& team, i64 parts) const {
        if (!f.sum) return;
        team.barrier();
        const Range channels = team.share(p.channels);
        for (i64 c = channels.begin; c < channels.end; ++c) {
            double g = 0, gx = 0;
            for (i64 i = 0; i < parts; ++i)
                g += partial.g[i * p.channels + c], gx += partial.gd[i * p.channels + c];
            dbias[c] = static_cast<A>(g);
            dweight[c] = static_cast<A>(gx);
        }
    }
};

}  // namespace

void backward(const Backward& call) { walk_any_type<Pass>(call); }

}  // namespace EVENLY_ISA
}  // namespace evenly
