// Consecutive layers row by row: each keeps only the rows that the next one still reads, so that a map too large for
// L2 is never written out. A stem and blocks without squeeze-excite can run so.
#pragma once
#include <cstddef>

#include "engine/layers.h"

namespace mnv3_fast {

// The node behind the chain that starts at node `first`, whose input has shape `in`; first + 1 where there is none.
std::size_t chain_end(const Plan& plan, std::size_t first, Shape in, int threads);
// Scratch floats that a thread needs for it.
int64_t chain_scratch(const Plan& plan, std::size_t first, std::size_t end, Shape in);
// Runs nodes [first, end) on one image into a whole map; `map` is the input if the first node is no stem.
void run_chain(const Plan& plan, std::size_t first, std::size_t end, Shape in, const Batch& batch, int64_t image,
               const float* map, float* output, const Team& team);

}  // namespace mnv3_fast
