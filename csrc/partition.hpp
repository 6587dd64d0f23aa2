// A tensor seen as x[outer, batch, group, inner] in memory order: evenly/core/partition.py in C++.
#pragma once

#include <cstdint>

namespace evenly {

using i64 = std::int64_t;

// One mean and variance belong to each (outer, group); they are taken over (batch, inner).
// Element k of the flat tensor uses weight and bias (k / stride) % channels.
struct Partition {
    i64 outer, batch, group, inner, channels, stride;

    i64 row() const { return group * inner; }
    i64 sets() const { return outer * group; }
    i64 count() const { return batch * inner; }
    i64 numel() const { return outer * batch * group * inner; }
};

// How memory is walked. Each norm, channels first or last, is one of four loops.
enum class Walk {
    planes,    // runs of `stride` elements share mean, weight and bias (channels first)
    columns,   // elements one row (group * inner) apart share them (channels last, and small planes)
    rows,      // a run of `inner` elements shares the mean, each has its own weight (layer norm)
    channels,  // elements one row apart share the mean, a row shares weight and bias (layer norm over
               // channels)
    empty,     // no elements: sums are 0
    none,      // no constructor of Partition makes this; the reference serves it
};

// What each walk takes. Planes are whole, a set's are neighbours, and sets do not share channels in part.
inline bool planes_take(const Partition& p) {
    return p.stride > 1 && p.inner % p.stride == 0 && p.channels * p.stride % p.inner == 0;
}
// A row is all channels of a place, or of `stride` places.
inline bool columns_take(const Partition& p) {
    return p.inner % p.stride == 0 && p.row() == p.channels * p.stride;
}
inline bool rows_take(const Partition& p) {
    return p.batch == 1 && p.stride == 1 && p.inner > 1 && p.row() == p.channels;
}
inline bool channels_take(const Partition& p) {
    return p.inner == 1 && p.batch == p.channels && p.group == p.stride;
}

// Planes shorter than this, or than twice this where they are no whole cache lines, are walked as
// columns where there are rows enough to share constants.
constexpr i64 kShortPlane = 512;
constexpr i64 kFewRows = 8;

inline Walk walk_of(const Partition& p, bool masked, i64 bytes_of_element = 4) {
    if (p.numel() == 0) return Walk::empty;
    if (p.channels < 1 || p.stride < 1) return Walk::none;
    const bool ragged = p.stride * bytes_of_element % 64 != 0;
    const bool is_short = p.stride < (ragged ? 2 * kShortPlane : kShortPlane);
    const bool columns = columns_take(p);
    if (rows_take(p) && !masked) return Walk::rows;
    if (planes_take(p) && (!columns || !is_short || p.batch < kFewRows)) return Walk::planes;
    if (columns) return Walk::columns;
    return channels_take(p) && !masked ? Walk::channels : Walk::none;
}

}  // namespace evenly
