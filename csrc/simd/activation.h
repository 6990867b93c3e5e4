// Element math shared by every kernel. NaN passes through each of them, as in torch.
#pragma once
#include "kernels.h"
#include "simd/vector.h"

namespace mnv3_fast {
namespace MNV3_ISA {
namespace {

template <int L>
MNV3_INLINE Vec<L> relu(Vec<L> x) {
  return at_least<L>(x, Vec<L>{});
}
// clip(slope * x + 1/2, 0, 1)
template <int L>
MNV3_INLINE Vec<L> hardsigmoid(Vec<L> x, float slope) {
  return at_most<L>(at_least<L>(x * slope + 0.5f, Vec<L>{}), broadcast<L>(1.0f));
}
template <int L>
MNV3_INLINE Vec<L> hardswish(Vec<L> x) {
  return x * hardsigmoid<L>(x, 1.0f / 6);
}

// The switch stands outside of the loops over a tile's registers, so it costs one branch a tile.
template <int L, int Rows, int Columns>
MNV3_INLINE void activate(Vec<L> (&tile)[Rows][Columns], int activation, float slope) {
  if (activation == kRelu) {
    MNV3_UNROLL for (int i = 0; i < Rows; i++) MNV3_UNROLL for (int j = 0; j < Columns; j++) tile[i][j] =
        relu<L>(tile[i][j]);
  } else if (activation == kHardswish) {
    MNV3_UNROLL for (int i = 0; i < Rows; i++) MNV3_UNROLL for (int j = 0; j < Columns; j++) tile[i][j] =
        hardswish<L>(tile[i][j]);
  } else if (activation == kHardsigmoid) {
    MNV3_UNROLL for (int i = 0; i < Rows; i++) MNV3_UNROLL for (int j = 0; j < Columns; j++) tile[i][j] =
        hardsigmoid<L>(tile[i][j], slope);
  }
}

}  // namespace
}  // namespace MNV3_ISA
}  // namespace mnv3_fast
