// Running statistics: the buffers that follow the batches.
#pragma once

#include "kernels.hpp"

namespace evenly {

// Enter the statistics that `call` measured; the rule is evenly/backends/running.py.
void enter(const Forward& call, const Running& running);

}  // namespace evenly
