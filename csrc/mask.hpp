// The weights that a mask gives to neighbouring elements.
#pragma once

#include <algorithm>

#include "partition.hpp"

namespace evenly {
namespace EVENLY_ISA {

// The weights of elements k … k + n: a mask by element is read in place, one by position spread out.
template <class A>
inline const A* mask_tile(const A* mask, bool by_element, const Partition& p, i64 k, i64 n, A* buffer) {
    if (by_element) return mask + k;
    const i64 span = p.channels * p.stride;
    for (i64 i = 0; i < n;) {
        const i64 within = (k + i) % span, position = (k + i) / span * p.stride;
        if (p.stride == 1) {  // one weight for all channels of a place
            const i64 length = std::min(n - i, span - within);
            for (i64 j = 0; j < length; ++j) buffer[i + j] = mask[position];
            i += length;
        } else {
            const i64 place = within % p.stride, length = std::min(n - i, p.stride - place);
            for (i64 j = 0; j < length; ++j) buffer[i + j] = mask[position + place + j];
            i += length;
        }
    }
    return buffer;
}

}  // namespace EVENLY_ISA
}  // namespace evenly
