// How a block of the kernel of gated_project.cu divides its work and its shared memory, computed once on the host, and
// what it may be asked for without touching other memory.
#pragma once
#include <algorithm>
#include <cstdint>
#include <iterator>

#include "ops/inverted_residual/gated_project.h"

namespace mnv3_fast {
namespace cuda {

using GatedProject = mnv3_cuda_gated_project_arguments;

// In gated_project.cu, for the type of each dtype; arguments are known (is_known).
template <class Element>
int32_t gated_project(const GatedProject& arguments, void* stream);

constexpr int kFragment = 512;         // bytes of a fragment of 16 x 16
constexpr int kGatedThreads = 256;     // of a block at most
constexpr int kGatedBlocks = 1;        // of a multiprocessor: what ptxas is told, or it spills registers for more
constexpr int kMostShared = 99 << 10;  // bytes of a block, on sm_86, 89 and 120
constexpr int kGatedPad = 8;  // elements between rows of hidden, which then lie an odd number of 16 bytes apart

// n / by as the upper half of n * inverse, exact where n * by < 2^32: a division takes 20 instructions, one behind the
// other, and blocks have nothing to do meanwhile.
struct Divisor {
  uint32_t by, inverse;  // 0 for 1, of which it does not fit
  explicit Divisor(int64_t by) : by(static_cast<uint32_t>(by)), inverse(((uint64_t{1} << 32) + by - 1) / by) {}
};

struct GatedPlan {
  int steps;        // of 16 squeezed channels
  int terms;        // of the squeezed channels that threads add up side by side
  int shares;       // of a product of fc2 and the squeezed channels, for as many warps
  int tiles;        // of 16 channels, of all slabs
  Divisor across;   // threads along the squeezed channels
  Divisor tiles_n;  // tiles of outputs
  Divisor words;    // of 16 bytes in a row of hidden
  int fc1_bias, fc2_bias, fc2, weight, hidden, sums, squeezed, products, gates, missing,
      size;  // bytes of shared memory

  explicit GatedPlan(const GatedProject& of)
      : steps((of.squeeze + 15) / 16),
        terms(std::min(of.count, of.threads * 4 / of.squeeze)),
        shares(std::max(1, of.threads / 32 / (of.slab / 16))),
        tiles((of.channels + 15) / 16),
        across(of.squeeze / 4),
        tiles_n(((of.outputs + 15) / 16 - 1) / (of.column_warps * of.groups) + 1),
        words(of.slab / 8) {
    const int here = of.slab / 16, room = of.slab_warps > 1 ? of.threads * of.groups * 32 : 0;
    fc1_bias = 0;
    fc2_bias = fc1_bias + of.squeeze * 4;
    fc2 = fc2_bias + of.slab * 4;
    weight = fc2 + std::max(here * steps * kFragment, room);
    hidden = weight + of.column_warps * of.groups * here * kFragment;
    sums = hidden + of.row_warps * 16 * (of.slab + kGatedPad) * 2;
    squeezed = sums + terms * of.squeeze * 4;
    products = squeezed + steps * 32;
    gates = products + shares * of.slab * 4;
    missing = gates + of.slab * 4;
    size = missing + 16;
  }
};

inline bool is_aligned(const GatedProject& of) {
  const void* const all[] = {of.hidden, of.parts, of.fc1_bias, of.fc2_weight, of.fc2_bias,
                             of.weight, of.bias,  of.residual, of.output,     of.partials};
  return std::all_of(std::begin(all), std::end(all),
                     [](const void* each) { return reinterpret_cast<uintptr_t>(each) % 16 == 0; });
}

inline bool is_known(const GatedProject& of) {
  constexpr int kMost = 1 << 13, kMostPixels = 1 << 16, kMostBlocks = 65535;
  const auto between = [](int64_t value, int64_t least, int64_t most) { return value >= least && value <= most; };
  const auto channels = [&](int value) { return between(value, 8, kMost) && value % 8 == 0; };
  const bool codes = between(of.dtype, 1, 2) && between(of.squeeze_activation, 0, 3) && between(of.activation, 0, 3) &&
                     between(of.gate, 0, 1);
  const bool sizes = channels(of.channels) && channels(of.squeeze) && channels(of.outputs) &&
                     of.squeeze <= of.threads * 4 && between(of.pixels, 1, kMostPixels) && of.count >= 1;
  const bool warps = between(of.row_warps, 1, 8) && between(of.column_warps, 1, 8) && between(of.slab_warps, 1, 8) &&
                     of.threads == 32 * of.row_warps * of.column_warps * of.slab_warps && of.threads <= kGatedThreads;
  const bool tile = between(of.groups, 1, 2) && between(of.slab, 16, kMost) && of.slab % 16 == 0;
  if (!codes || !sizes || !warps || !tile || !is_aligned(of)) return false;
  const GatedPlan plan(of);
  const auto blocks = [](int64_t count, int64_t each) { return (count - 1) / each + 1; };
  const bool grid = of.grid_x == blocks(of.pixels, 16 * of.row_warps) * plan.tiles_n.by &&
                    of.grid_y == blocks(of.channels, of.slab) && between(of.grid_z, 1, kMostBlocks);
  return grid && of.shared == plan.size && of.shared <= kMostShared && (of.grid_y == 1 || (of.partials && of.arrivals));
}

}  // namespace cuda
}  // namespace mnv3_fast
