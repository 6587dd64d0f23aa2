// A norm as Python holds it: what is constant, made once, and a call's memory as records of addresses.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels.hpp"

namespace evenly {

using Address = std::uintptr_t;

template <class T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// Numbers that the two halves of a call pass on, in any type of statistics.
inline Address numbers_between(i64 numbers) { return reinterpret_cast<Address>(between(8 * numbers)); }

// The memory of a call that may be absent: 0 says so.
struct Tensors {
    Address weight, bias, residual, mask;
    bool mask_elements;  // the mask has a weight for every element, not for every position
};

// What forward leaves for backward: statistics, what they were taken over, where slopes are 1.
struct Kept {
    Address mean, rstd, m2, counts, bits;
    double count;
};

struct Wanted {
    Address dx, dresidual, dweight, dbias, sum_g, sum_gx;
};

// What a norm is, apart from the memory of a call.
struct Norm {
    Partition p;
    int dtype, kind;
    double arg, eps;
    bool centered, zero_masked;

    i64 bytes() const { return p.numel() * (dtype == 1 ? 8 : dtype == 0 ? 4 : 2); }

    bool walks(bool masked) const { return walk_of(p, masked) != Walk::none; }

    Forward forward_of(Address x, Address y, const Tensors& t, const Kept& kept, int threads) const {
        Forward f{};
        f.partition = p;
        f.dtype = static_cast<DType>(dtype);
        f.kind = static_cast<Kind>(kind);
        f.arg = arg;
        f.x = at(x);
        f.residual = at(t.residual);
        f.weight = at(t.weight);
        f.bias = at(t.bias);
        f.mask = at(t.mask);
        f.mask_elements = t.mask_elements;
        f.zeroes = t.mask != 0 && zero_masked;
        f.y = at(y);
        f.bits = at<std::uint8_t>(kept.bits);
        f.mean = at(kept.mean);
        f.m2 = at(kept.m2);
        f.rstd = at(kept.rstd);
        f.eps = eps;
        f.centered = centered;
        f.threads = threads_for(bytes(), threads);
        return f;
    }

    // Steps 1 and 2 and the running statistics; step 1 alone where there is no y.
    void measure(Address x, Address y, const Tensors& t, const Kept& kept, const Running* running,
                 int threads) const {
        Forward f = forward_of(x, y, t, kept, threads);
        f.measure = true;
        f.apply = y != 0;
        f.weighs = t.mask != 0;
        if (f.m2 == nullptr) f.m2 = at(numbers_between(p.sets()));
        f.count = at(kept.counts);
        evenly::forward(f, running);
    }

    // Step 2.
    void normalize(Address x, Address y, const Tensors& t, const Kept& kept, int threads) const {
        Forward f = forward_of(x, y, t, kept, threads);
        f.apply = true;
        f.weighs = false;
        if (!f.zeroes) f.mask = nullptr;
        evenly::forward(f, nullptr);
    }

    // Step 2 by mean and variance of the channels, which are the sets; rstd is written where it is wanted.
    void given(Address x, Address y, const Tensors& t, Kept kept, Address var, int threads) const {
        if (kept.rstd == 0) kept.rstd = numbers_between(p.sets());
        if (dtype == 1) {
            for (i64 c = 0; c < p.sets(); ++c)
                at<double>(kept.rstd)[c] = 1 / std::sqrt(at<double>(var)[c] + eps);
        } else {
            for (i64 c = 0; c < p.sets(); ++c)
                at<float>(kept.rstd)[c] = 1 / std::sqrt(at<float>(var)[c] + static_cast<float>(eps));
        }
        normalize(x, y, t, kept, threads);
    }

    Backward backward_of(Address dy, Address x, const Tensors& t, const Kept& kept, const Wanted& w,
                         bool measured, int threads) const {
        Backward b{};
        b.partition = p;
        b.dtype = static_cast<DType>(dtype);
        b.kind = static_cast<Kind>(kind);
        b.arg = arg;
        b.dy = at(dy);
        b.x = at(x);
        b.residual = at(t.residual);
        b.bits = at<const std::uint8_t>(kept.bits);
        b.weight = at(t.weight);
        b.bias = at(t.bias);
        b.weighs = t.mask != 0 && measured;
        b.zeroes = t.mask != 0 && zero_masked;
        b.mask = b.weighs || b.zeroes ? at(t.mask) : nullptr;
        b.mask_elements = t.mask_elements;
        b.mean = at(kept.mean);
        b.rstd = at(kept.rstd);
        b.counts = at(kept.counts);
        b.count = kept.count;
        b.sum_g = at(w.sum_g);
        b.sum_gx = at(w.sum_gx);
        b.dweight = at(w.dweight);
        b.dbias = at(w.dbias);
        b.dx = at(w.dx);
        b.dresidual = at(w.dresidual);
        b.centered = centered;
        b.measured = measured;
        b.threads = threads_for(bytes(), threads);
        return b;
    }

    // Steps 3 and 4: the sums where a gradient of weight or bias, or one through the statistics, is wanted.
    void backward(Address dy, Address x, const Tensors& t, const Kept& kept, const Wanted& w, bool measured,
                  int threads) const {
        Backward b = backward_of(dy, x, t, kept, w, measured, threads);
        b.sum = w.dweight != 0;
        b.input = w.dx != 0 || w.dresidual != 0;
        if (b.sum) {
            b.sum_g = at(numbers_between(2 * p.sets()));
            b.sum_gx = static_cast<char*>(b.sum_g) + 8 * p.sets();
        }
        evenly::backward(b);
    }

    // Step 3.
    void sums(Address dy, Address x, const Tensors& t, const Kept& kept, const Wanted& w, int threads) const {
        Backward b = backward_of(dy, x, t, kept, w, true, threads);
        b.weighs = false;  // the mask weighs what step 4 shares, not the sums
        if (!b.zeroes) b.mask = nullptr;
        b.sum = true;
        evenly::backward(b);
    }

    // Step 4, by the sums of all processes.
    void input(Address dy, Address x, const Tensors& t, const Kept& kept, const Wanted& w, bool measured,
               int threads) const {
        Backward b = backward_of(dy, x, t, kept, w, measured, threads);
        b.input = true;
        evenly::backward(b);
    }
};

}  // namespace evenly
