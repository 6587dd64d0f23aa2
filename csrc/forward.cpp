// Steps 1 and 2: a pass measures (measure.hpp) and then applies
//   y = activation(weight * (x - mean) * rstd + bias + residual).

#include "kernels.hpp"
#include "mask.hpp"
#include "measure.hpp"
#include "walks.hpp"

namespace evenly {
namespace EVENLY_ISA {
namespace {

template <class Element>
struct Pass {
    using T = Element;
    using A = accumulator_t<T>;
    using SlabSums = SlabMoments<Pass>;
    using BlockSums = BlockMoments<Pass>;
    using RowSums = RowMoments<Pass>;
    using PlaceSums = BlockMoments<Pass>;
    static constexpr i64 tables = 3;
    static constexpr i64 coming = sizeof(T);
    const Forward& f;
    const Partition& p;
    const T *x, *residual;
    const A *weight, *bias, *mask;
    T* y;
    A *mean, *m2, *rstd, *count;
    A arg;
    bool first, second, streams;
    i64 element;

    Pass(const Forward& call, const Partition& partition)
        : f(call),
          p(partition),
          x(static_cast<const T*>(call.x)),
          residual(static_cast<const T*>(call.residual)),
          weight(static_cast<const A*>(call.weight)),
          bias(static_cast<const A*>(call.bias)),
          mask(static_cast<const A*>(call.mask)),
          y(static_cast<T*>(call.y)),
          mean(static_cast<A*>(call.mean)),
          m2(static_cast<A*>(call.m2)),
          rstd(static_cast<A*>(call.rstd)),
          count(static_cast<A*>(call.count)),
          arg(static_cast<A>(call.arg)),
          first(call.measure),
          second(call.apply),
          streams(goes_past_cache(p.numel() * static_cast<i64>(sizeof(T)))),
          element(static_cast<i64>(sizeof(T)) * (residual ? 2 : 1)) {}

    // Of no elements there is nothing but statistics.
    void nothing() const {
        for (i64 set = 0; f.measure && set < p.sets(); ++set) finish(set, {});
    }
    i64 reserve(i64) const { return 0; }
    void take(Arena&, i64) const {}
    void reduce(const Team&, i64) const {}
    void before_first(const Block&, const Tables<A>&) const {}
    void before_second(const Block& block, const Tables<A>& of_columns) const {
        of_columns.spread(*this, block);
    }
    OfSet<A> of_set(i64 set) const { return {mean[set], rstd[set]}; }
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

    // y of elements k … k + n.
    template <class Affine>
    void write(i64 k, i64 n, const Affine& affine, const Asked& ahead) const {
        if (!f.zeroes) return write(k, n, affine, ahead, streams);
        for (i64 i = 0; i < n; i += kTile) {
            const i64 length = std::min(kTile, n - i);
            write(k + i, length, affine.from(i), ahead.from(i), false);
            A buffer[kTile];
            const A* m = mask_of(k + i, length, buffer);
            for (i64 j = 0; j < length; ++j)
                if (!(m[j] > 0)) store(y + k + i + j, A(0));
        }
    }

    template <class Affine>
    void write(i64 k, i64 n, const Affine& affine, const Asked& ahead, bool streamed) const {
        with_kind(f.kind, [&](auto kind) {
            constexpr Kind K = decltype(kind)::value;
            if (residual == nullptr) return apply_tile<K>(x + k, n, affine, arg, ahead.seen, y + k, streamed);
            if (f.bits)
                return residual_tile<K, true>(x + k, residual + k, n, affine, arg, ahead.seen, ahead.unseen,
                                              f.bits, k, y + k, streamed);
            residual_tile<K, false>(x + k, residual + k, n, affine, arg, ahead.seen, ahead.unseen, nullptr, k,
                                    y + k, streamed);
        });
    }
};

}  // namespace

void forward(const Forward& call) { walk_any_type<Pass>(call); }

}  // namespace EVENLY_ISA
}  // namespace evenly
