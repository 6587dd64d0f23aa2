// A pass over a tensor of any type by the walk that takes its partition.
#pragma once

#include "channels.hpp"
#include "columns.hpp"
#include "planes.hpp"
#include "rows.hpp"

namespace evenly {
namespace EVENLY_ISA {

template <class Pass, class Call>
void walk(const Call& call) {
    Pass pass(call, call.partition);
    switch (walk_of(call.partition, call.mask != nullptr, sizeof(typename Pass::T))) {
        case Walk::planes:
            return PlaneWalk<Pass>(pass, call.threads).run();
        case Walk::columns:
            return ColumnWalk<Pass>(pass, call.threads).run();
        case Walk::rows:
            return RowWalk<Pass>(pass, call.threads).run();
        case Walk::channels: {
            const Partition places = places_of(call.partition);
            Pass by_places(call, places);
            return ChannelWalk<Pass>(by_places, call.threads).run();
        }
        case Walk::empty:
            return pass.nothing();
        case Walk::none:
            return;
    }
}

template <template <class> class Pass, class Call>
void walk_any_type(const Call& call) {
#if defined(EVENLY_BFLOAT16_ALONE)
    walk<Pass<bfloat16>>(call);
#else
    switch (call.dtype) {
        case DType::float32:
            return walk<Pass<float>>(call);
        case DType::float64:
            return walk<Pass<double>>(call);
        case DType::bfloat16:
            return walk<Pass<bfloat16>>(call);
        case DType::float16:
            return walk<Pass<float16>>(call);
    }
#endif
}

}  // namespace EVENLY_ISA
}  // namespace evenly
