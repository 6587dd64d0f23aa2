// Where the numbers that a loop normalizes with come from.
#pragma once

#include "step.hpp"

namespace evenly {
namespace EVENLY_ISA {

// Where a tile's numbers come from: one each for the whole tile,
//   forward   z  = (x - mean) * scale + bias,  scale = rstd * weight
//   backward  dx = scale * g + p * (x - mean) + q
template <class A>
struct Run {
    A m, s, b, p_ = 0, q_ = 0;
    A mean(i64) const { return m; }
    A scale(i64) const { return s; }
    A bias(i64) const { return b; }
    A p(i64) const { return p_; }
    A q(i64) const { return q_; }
    Run from(i64) const { return *this; }
};
// one each per element,
template <class A>
struct Columns {
    const A *m, *s, *b, *p_ = nullptr, *q_ = nullptr;
    A mean(i64 i) const { return m[i]; }
    A scale(i64 i) const { return s[i]; }
    A bias(i64 i) const { return b[i]; }
    A p(i64 i) const { return p_[i]; }
    A q(i64 i) const { return q_[i]; }
    Columns from(i64 i) const { return {m + i, s + i, b + i, p_ ? p_ + i : nullptr, q_ ? q_ + i : nullptr}; }
    Run<A> run(i64 i) const { return {m[i], s[i], b[i], p_ ? p_[i] : 0, q_ ? q_[i] : 0}; }
};
// one each per run of `stride` elements: kept in registers along a run, and read for each element
// only where a step crosses into the next run,
template <class A>
struct Runs {
    Columns<A> each;
    i64 stride, end;  // end of the run that element 0 is in
    Runs from(i64 i) const { return {each.from(i), stride, end - i + (i - end + stride) / stride * stride}; }
};
// or the mean shared, and weight and bias one each per element.
template <class A>
struct Elementwise {
    A m, r;
    const A *w, *b;
    A p_ = 0, q_ = 0;
    A mean(i64) const { return m; }
    A scale(i64 i) const { return r * w[i]; }
    A bias(i64 i) const { return b[i]; }
    A p(i64) const { return p_; }
    A q(i64) const { return q_; }
    Elementwise from(i64 i) const { return {m, r, w + i, b + i, p_, q_}; }
};
// or mean and rstd one each per element, and weight and bias shared.
template <class A>
struct Places {
    const A *m, *r;
    A w, b;
    const A *p_ = nullptr, *q_ = nullptr;
    A mean(i64 i) const { return m[i]; }
    A rstd(i64 i) const { return r[i]; }
    A scale(i64 i) const { return r[i] * w; }
    A bias(i64) const { return b; }
    A p(i64 i) const { return p_[i]; }
    A q(i64 i) const { return q_[i]; }
    Places from(i64 i) const { return {m + i, r + i, w, b, p_ ? p_ + i : nullptr, q_ ? q_ + i : nullptr}; }
};

// Cut the steps of elements i … last where their constants change: body(constants, first, last). Those
// of a single element: at_each.
template <i64 step, class Affine, class Body>
inline void over(const Affine& f, i64 i, i64 last, const Body& body) {
    body(f, i, last);
}
template <i64 step, class A, class Body>
inline void over(const Runs<A>& f, i64 i, i64 last, const Body& body) {
    for (i64 end = f.end; i < last; end += f.stride) {
        if (end <= i) continue;
        const i64 stop = i + (std::min(end, last) - i) / step * step;
        if (stop > i) body(f.each.run(i), i, stop), i = stop;
        if (i < end && i < last) body(f.each, i, i + step), i += step;
    }
}
template <class Affine>
inline const Affine& at_each(const Affine& f) {
    return f;
}
template <class A>
inline const Columns<A>& at_each(const Runs<A>& f) {
    return f.each;
}
// What the elements of one set share.
template <class A>
struct OfSet {
    A mean, rstd, p = 0, q = 0;
};

// The constants of one set and channel.
template <class A>
inline Run<A> run_of(const OfSet<A>& set, const A* weight, const A* bias, i64 channel) {
    return {set.mean, weight ? set.rstd * weight[channel] : set.rstd, bias ? bias[channel] : A(0), set.p,
            set.q};
}

template <class Affine>
constexpr bool is_run = false;
template <class A>
constexpr bool is_run<Run<A>> = true;

}  // namespace EVENLY_ISA
}  // namespace evenly
